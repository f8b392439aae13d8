"""MNIST and Fashion-MNIST: the original IDX files, found or downloaded, and checked.

A folder is laid out as torchvision lays out its own:
`DATA_DIR/MNIST/raw/train-images-idx3-ubyte.gz`, packed or not. What is read has the published
content (SHA-256 of the unpacked bytes), what is downloaded also the published MD5 of the packed
file.
"""

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.download import fetch, roots
from training.errors import DataError, in_words

__all__ = ["ARCHIVES", "read_images"]


@dataclass(frozen=True, kw_only=True)
class IdxArchive:
    """One data set: torchvision's folder for it, its mirrors, and by official part the MD5 of the
    packed file and the SHA-256 of its content."""

    folder: str
    mirrors: tuple[str, ...]
    checksums: Mapping[str, tuple[str, str]]


NAMES = {"train": "train-images-idx3-ubyte.gz", "test": "t10k-images-idx3-ubyte.gz"}
ARCHIVES: Mapping[str, IdxArchive] = {
    "mnist": IdxArchive(
        folder="MNIST",
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        checksums={
            "train": (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            "test": (
                "9fb629c4189551a2d022fa330f9573f3",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
        },
    ),
    "fashion-mnist": IdxArchive(
        folder="FashionMNIST",
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        checksums={
            "train": (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            "test": (
                "bef4ecab320f06d8554ea6380940ec79",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
        },
    ),
}


def read_images(
    dataset: str, part: str, data_dir: Path | None, *, download: bool = True
) -> NDArray[np.uint8]:
    """All images uint8 [N, 28, 28] of one official part.

    `dataset` is "mnist" or "fashion-mnist", `part` "train" or "test". Looks under `data_dir`
    (torchvision's layout, packed or unpacked), then in the user's cache, then downloads into
    `data_dir`, or into the cache where none was given. Raises `DataError` where nothing is found,
    nothing can be downloaded, or the content is not the published one.
    """
    archive = ARCHIVES[dataset]
    file, (md5, sha256) = NAMES[part], archive.checksums[part]
    places = roots(data_dir)
    folders = [root / archive.folder / below for root in places for below in ("raw", "")]
    folders += places[:1]  # the data directory itself
    names = (file, file.removesuffix(".gz"))
    others = {each.checksums[part][1] for each in ARCHIVES.values()} - {sha256}
    for path in (folder / name for folder in folders for name in names):
        if not path.is_file():
            continue
        content = _unpacked(path)
        found = hashlib.sha256(content).hexdigest()
        if found not in others:  # another data set's files have the same names
            break
    else:
        if not download:
            raise DataError(
                f"{file} of {dataset} is not under {data_dir}: put it at "
                f"{archive.folder}/raw/{file} there, or allow the download."
            )
        path = fetch(file, archive.mirrors, md5, folders[0])
        content = _unpacked(path)
        found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path} has not the published content of {dataset}: delete it and it is fetched again."
        )
    # IDX (http://yann.lecun.com/exdb/mnist/): four bytes of type, N, H and W big-endian, the pixels
    shape = np.frombuffer(content, ">u4", 3, offset=4)
    # A copy, for an array over bytes cannot be written to, and torch wants that of its arrays
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape).copy()


def _unpacked(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({in_words(error)}): delete it, so that it is fetched again."
        ) from error
