"""CIFAR-10 (Krizhevsky 2009): found unpacked or packed, else downloaded; nothing in it can run.

Looked for under the data directory, then in the user's cache, as torchvision and the original
site lay it out: `cifar-10-batches-py/`, `cifar-10-batches-bin/`, or one of the two tarballs. A
tarball must have the published MD5; unpacked batches are known by their names, counts and shapes
(their order may be another: splits follow the order on the disk). Only the binary version, which
needs no unpickling, is ever downloaded.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.download import cache_dir as _cache
from training.data.download import fetch
from training.data.safe_pickle import load_batch
from training.errors import DataError

__all__ = ["IMAGE_SHAPE", "read_cifar10"]

IMAGE_SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
BATCH_IMAGES = 10_000
CLASSES = 10
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}

PYTHON, BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"
TARBALLS = {
    "cifar-10-binary.tar.gz": ("c32a1d4ab5d03f1284b67883e8d87530", BINARY),
    "cifar-10-python.tar.gz": ("c58f30108f718f92721af3b95e74349a", PYTHON),
}
MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)

Pixels = NDArray[np.uint8]
Reader = Callable[[str], bytes]  # the content of a batch by its file's name


def read_cifar10(part: str, data_dir: Path | None, *, download: bool = True) -> Pixels:
    """All images uint8 [N, 3, 32, 32] of one official part: 50,000 of "train", 10,000 of "test".

    Raises `DataError` where nothing is found and nothing can be downloaded, and where a file is
    not what it should be.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise DataError(
            f"The data directory {data_dir} does not exist: create it, or leave --data-dir out."
        )
    roots = [_cache()] if data_dir is None else [data_dir, _cache()]
    for root in roots:
        for layout, folder in ((PYTHON, root / PYTHON), (BINARY, root / BINARY), *_bare(root)):
            if folder.is_dir():
                return _folder_images(folder, layout, part)
        for name in TARBALLS:
            if (root / name).is_file():
                return _tarball_images(root / name, part)
    if not download:
        raise DataError(
            f"CIFAR-10 is not under {data_dir}: put {PYTHON}/, {BINARY}/ or "
            f"{next(iter(TARBALLS))} there, or allow the download."
        )
    name = next(iter(TARBALLS))
    return _tarball_images(fetch(name, MIRRORS, TARBALLS[name][0], roots[0]), part)


def _bare(root: Path) -> Iterator[tuple[str, Path]]:
    """The data directory itself, where it is what holds the batches."""
    if (root / BATCHES["train"][0]).is_file():
        yield PYTHON, root
    if (root / f"{BATCHES['train'][0]}.bin").is_file():
        yield BINARY, root


def _folder_images(folder: Path, layout: str, part: str) -> Pixels:
    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise DataError(
                f"{folder} lacks {name} ({reason}): unpack CIFAR-10 again, or remove the folder "
                "and it is downloaded."
            ) from error

    return _images(read, layout, part, str(folder))


def _tarball_images(path: Path, part: str) -> Pixels:
    md5, layout = TARBALLS[path.name]
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        if found.hexdigest() != md5:
            raise DataError(
                f"{path} has not the published MD5 of {path.name}: delete it and CIFAR-10 is "
                "fetched again."
            )
        with tarfile.open(path) as archive:

            def read(name: str) -> bytes:
                member = archive.extractfile(f"{layout}/{name}")
                if member is None:
                    raise DataError(f"{path}: {layout}/{name} is no file: delete the tarball.")
                return member.read()

            return _images(read, layout, part, str(path))
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({error}): delete it, so that it is fetched again."
        ) from error


def _images(read: Reader, layout: str, part: str, where: str) -> Pixels:
    """The part's batches one after another, in the order of their numbers."""
    parse, suffix = (_binary, ".bin") if layout == BINARY else (_python, "")
    batches = [parse(read(name + suffix), f"{where}/{name}{suffix}") for name in BATCHES[part]]
    return np.concatenate(batches).reshape(-1, *IMAGE_SHAPE)


def _python(content: bytes, name: str) -> Pixels:
    pixels = load_batch(content, name)
    if pixels.shape != (BATCH_IMAGES, PIXELS):
        raise DataError(f"{name} holds {pixels.shape}, not {(BATCH_IMAGES, PIXELS)} pixels.")
    return pixels


def _binary(content: bytes, name: str) -> Pixels:
    """Records of a label and 3,072 pixels: the red plane, the green, the blue, row by row."""
    if len(content) != BATCH_IMAGES * (1 + PIXELS):
        raise DataError(
            f"{name} has {len(content)} bytes, not {BATCH_IMAGES * (1 + PIXELS)}: it is truncated "
            "or no batch of CIFAR-10."
        )
    records = np.frombuffer(content, np.uint8).reshape(BATCH_IMAGES, 1 + PIXELS)
    if records[:, 0].max() >= CLASSES:
        raise DataError(f"{name} has labels above {CLASSES - 1}: it is no batch of CIFAR-10.")
    return records[:, 1:]
