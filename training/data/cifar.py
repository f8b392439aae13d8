"""CIFAR-10 (Krizhevsky 2009): found unpacked or packed, else downloaded; nothing in it can run.

Looked for under the data directory, then in the user's cache, as torchvision and the original
site lay it out: `cifar-10-batches-py/`, `cifar-10-batches-bin/`, or one of the two tarballs. Only
the binary version is ever downloaded. **No pickle is carried out**: of a pickled batch the opcodes
are listed, and the one string that is as long as its pixels is taken.

The images are known by their content, and kept in the order of their SHA-256: whoever has the
official files, or the same images in another order, has the same data set and the same splits.
"""

import hashlib
import itertools
import pickletools
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.download import fetch, first_file, roots
from training.errors import DataError, in_words

__all__ = ["IMAGE_SHAPE", "read_cifar10"]

IMAGE_SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
BATCH_IMAGES = 10_000
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
# SHA-256 over the images' SHA-256, these sorted.
CONTENT = {
    "train": "c4f3d45acfc15350af7065445e9de41001417180428b1d37e2fa37e634414112",
    "test": "2b47ae852d2a691a0f721e2b78f55dfba705c73504ae93a00eda74c8e562b1a8",
}

PYTHON, BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"
BINARY_TARBALL, BINARY_MD5 = "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
TARBALLS = {BINARY_TARBALL: BINARY, "cifar-10-python.tar.gz": PYTHON}
MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
# An official batch has 31 MB and 50,000 opcodes; one that Python 3 wrote as text has 44 MB.
MAX_BYTES, MAX_OPCODES = 64 * 2**20, 200_000

Pixels = NDArray[np.uint8]
Reader = Callable[[str], bytes]  # the content of a batch by its file's name


def read_cifar10(part: str, data_dir: Path | None, *, download: bool = True) -> Pixels:
    """All images uint8 [N, 3, 32, 32] of one official part, in the order of their SHA-256.

    50,000 of "train", 10,000 of "test". Raises `DataError` where nothing is found and nothing can
    be downloaded, and where a file is not what it should be.
    """
    places = roots(data_dir)
    found = next((images for root in places for images in _found(root, part)), None)
    if found is None and not download:
        raise DataError(
            f"CIFAR-10 is not under {data_dir}: put {PYTHON}/, {BINARY}/ or "
            f"{BINARY_TARBALL} there, or allow the download."
        )
    if found is None:
        path = fetch(BINARY_TARBALL, MIRRORS, BINARY_MD5, places[0])
        found = _tarball_images(path, part), path
    images, where = found
    digests = [hashlib.sha256(image).digest() for image in images]
    if hashlib.sha256(b"".join(sorted(digests))).hexdigest() != CONTENT[part]:
        raise DataError(
            f"{where} has not the published images of CIFAR-10: delete it and they are fetched "
            "again."
        )
    return images[sorted(range(len(digests)), key=digests.__getitem__)].reshape(-1, *IMAGE_SHAPE)


def _found(root: Path, part: str) -> Iterator[tuple[Pixels, Path]]:
    """The images of each layout that lies under `root`, or that `root` itself is."""
    first = BATCHES["train"][0]
    for layout, suffix in ((PYTHON, ""), (BINARY, ".bin")):
        if (root / layout).is_dir():
            yield _folder_images(root / layout, layout, part), root / layout
        elif (root / f"{first}{suffix}").is_file():
            yield _folder_images(root, layout, part), root
    if path := first_file(root / name for name in TARBALLS):
        yield _tarball_images(path, part), path


def _folder_images(folder: Path, layout: str, part: str) -> Pixels:
    def read(name: str) -> bytes:
        try:
            with (folder / name).open("rb") as file:
                return file.read(MAX_BYTES)
        except OSError as error:
            reason = error.strerror or error
            raise DataError(
                f"{folder} lacks {name} ({reason}): unpack CIFAR-10 again, or remove the folder "
                "and it is downloaded."
            ) from error

    return _images(read, layout, part, str(folder))


def _tarball_images(path: Path, part: str) -> Pixels:
    layout = TARBALLS[path.name]
    try:
        with tarfile.open(path) as archive:

            def read(name: str) -> bytes:
                member = archive.extractfile(f"{layout}/{name}")
                if member is None:
                    raise DataError(f"{path}: {layout}/{name} is no file: delete the tarball.")
                return member.read(MAX_BYTES)

            return _images(read, layout, part, str(path))
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({in_words(error)}): delete it, so that it is fetched again."
        ) from error


def _images(read: Reader, layout: str, part: str, where: str) -> Pixels:
    """The part's batches one after another, uint8 [N, 3072]."""
    parse, suffix = (_binary, ".bin") if layout == BINARY else (_pickled, "")
    names = [name + suffix for name in BATCHES[part]]
    return np.concatenate([parse(read(name), f"{where}/{name}") for name in names])


def _binary(content: bytes, name: str) -> Pixels:
    """Records of a label and 3,072 pixels: the red plane, the green, the blue, row by row."""
    if len(content) != BATCH_IMAGES * (1 + PIXELS):
        raise DataError(f"{name} is truncated or no batch of CIFAR-10 ({len(content)} bytes).")
    return np.frombuffer(content, np.uint8).reshape(BATCH_IMAGES, 1 + PIXELS)[:, 1:]


def _pickled(content: bytes, name: str) -> Pixels:
    """The string of as many bytes as a batch has pixels (protocol 2 writes them as text)."""
    try:
        for _, value, _ in itertools.islice(pickletools.genops(content), MAX_OPCODES):
            if isinstance(value, str | bytes | bytearray) and len(value) == BATCH_IMAGES * PIXELS:
                data = value.encode("latin1") if isinstance(value, str) else value
                return np.frombuffer(data, np.uint8).reshape(BATCH_IMAGES, PIXELS)
    except ValueError as error:
        raise DataError(f"{name} is no batch of CIFAR-10: {error}") from error
    raise DataError(f"{name} is no batch of CIFAR-10: no array in it has {BATCH_IMAGES} images.")
