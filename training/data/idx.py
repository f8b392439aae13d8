"""MNIST and Fashion-MNIST: the original IDX files, found or downloaded, and checked.

A folder is laid out as torchvision lays out its own:
`DATA_DIR/MNIST/raw/train-images-idx3-ubyte.gz`, packed or not. What is parsed must have the
published content (SHA-256 of the unpacked bytes), what is downloaded also the published MD5 of the
packed file.
"""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.download import cache_dir as _cache
from training.data.download import fetch
from training.errors import DataError

__all__ = ["ARCHIVES", "IdxArchive", "IdxFile", "parse_idx", "read_images"]

IDX_UINT8 = 0x08


@dataclass(frozen=True, kw_only=True)
class IdxFile:
    """One published file: its packed name and the checksums of both its forms."""

    name: str
    md5_packed: str
    sha256_content: str


@dataclass(frozen=True, kw_only=True)
class IdxArchive:
    """One data set: torchvision's folder for it, its mirrors, its images by official split."""

    folder: str
    mirrors: tuple[str, ...]
    files: Mapping[str, IdxFile]


ARCHIVES: Mapping[str, IdxArchive] = {
    "mnist": IdxArchive(
        folder="MNIST",
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        files={
            "train": IdxFile(
                name="train-images-idx3-ubyte.gz",
                md5_packed="f68b3c2dcbeaaa9fbdd348bbdeb94873",
                sha256_content="ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            "test": IdxFile(
                name="t10k-images-idx3-ubyte.gz",
                md5_packed="9fb629c4189551a2d022fa330f9573f3",
                sha256_content="0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
        },
    ),
    "fashion-mnist": IdxArchive(
        folder="FashionMNIST",
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        files={
            "train": IdxFile(
                name="train-images-idx3-ubyte.gz",
                md5_packed="8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                sha256_content="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            "test": IdxFile(
                name="t10k-images-idx3-ubyte.gz",
                md5_packed="bef4ecab320f06d8554ea6380940ec79",
                sha256_content="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
        },
    ),
}


def parse_idx(content: bytes, *, name: str = "IDX data") -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes.

    The format is LeCun, Cortes and Burges's (http://yann.lecun.com/exdb/mnist/): two zero bytes, a
    type (0x08: uint8), the number of dimensions, each dimension as a big-endian uint32, the values.
    Raises `DataError` for any other type and where the length is not exactly what the header
    promises.
    """
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(f"{name} is no IDX file: it does not begin with two zero bytes.")
    kind, rank = content[2], content[3]
    if kind != IDX_UINT8 or not 1 <= rank <= 4:
        raise DataError(
            f"{name} holds IDX type {kind:#04x} of rank {rank}; uint8 of rank 1 to 4 is read here."
        )
    offset = 4 + 4 * rank
    if len(content) < offset:
        raise DataError(f"{name} ends inside its header: it is truncated.")
    shape = struct.unpack(f">{rank}I", content[4:offset])
    if len(content) - offset != math.prod(shape):
        raise DataError(
            f"{name} promises {math.prod(shape)} values of shape {shape} and holds "
            f"{len(content) - offset}: it is truncated or has bytes after its end."
        )
    # A copy, because an array over bytes cannot be written to, and torch wants that of its arrays.
    return np.frombuffer(content, np.uint8, offset=offset).reshape(shape).copy()


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
    file = archive.files[part]
    path = _find(archive, file, data_dir)
    if path is None:
        if not download:
            raise DataError(
                f"{file.name} of {dataset} is not under {data_dir}: put it at "
                f"{archive.folder}/raw/{file.name} there, or allow the download."
            )
        folder = (data_dir or _cache()) / archive.folder / "raw"
        path = fetch(file.name, archive.mirrors, file.md5_packed, folder)
    content = _unpacked(path)
    if hashlib.sha256(content).hexdigest() != file.sha256_content:
        raise DataError(
            f"{path} has not the published content of {dataset}: delete it and it is fetched again."
        )
    return parse_idx(content, name=str(path))


def _find(archive: IdxArchive, file: IdxFile, data_dir: Path | None) -> Path | None:
    if data_dir is not None and not data_dir.is_dir():
        raise DataError(
            f"The data directory {data_dir} does not exist: create it, or leave --data-dir out."
        )
    roots = [_cache()] if data_dir is None else [data_dir, _cache()]
    folders = [
        folder
        for root in roots
        for folder in (root / archive.folder / "raw", root / archive.folder)
    ]
    if data_dir is not None:
        folders.append(data_dir)
    names = (file.name, file.name.removesuffix(".gz"))
    return next(
        (path for folder in folders for name in names if (path := folder / name).is_file()), None
    )


def _unpacked(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({error}): delete it, so that it is fetched again."
        ) from error
