"""Images for training, choosing, calibrating and testing, kept apart by a fixed rule.

MNIST, Fashion-MNIST and CIFAR-10: the official test images are `test`. The 60,000 (CIFAR-10:
50,000) training images are put in the order `argsort(Philox4x64(key=(SPLIT_KEY, 0)))`; the last
2,500 are `calibration`, the 2,500 before them `validation`, all others `train`. The raw output of
NumPy's Philox bit generator is guaranteed not to change between versions, so neither do the splits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from training.data.cifar import IMAGE_SHAPE, read_cifar10
from training.data.folder import FolderOptions, read_folder
from training.data.idx import ARCHIVES, read_images
from training.errors import DataError

__all__ = [
    "SPLITS",
    "ImageData",
    "Split",
    "binarize",
    "drawn_pixels",
    "epoch_order",
    "load_dataset",
    "public_name",
    "split_indices",
]

Split = Literal["train", "validation", "calibration", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# The day arXiv:1606.04934 appeared; any constant would do, but this one is for ever.
SPLIT_KEY = 20160615
SET_ASIDE = 2_500  # images each for validation and for calibration
FOLDER_PREFIX = "folder:"
CIFAR10 = "cifar10"
DATASETS = (*ARCHIVES, CIFAR10)


@dataclass(frozen=True)
class ImageData:
    """One split of a data set: pixels uint8 [N, C, H, W] in 0..255; `name` is for people."""

    pixels: NDArray[np.uint8]
    name: str
    split: str

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4:
            raise DataError(
                f"Images are uint8 [N, C, H, W], not {self.pixels.dtype} {self.pixels.shape}."
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def first(self, count: int | None) -> "ImageData":
        """The first `count` images (all of them where it is None), for quick looks."""
        return self if count is None else ImageData(self.pixels[:count], self.name, self.split)


def load_dataset(
    name: str,
    split: Split,
    data_dir: Path | None = None,
    *,
    download: bool = True,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
) -> ImageData:
    """The images of one split.

    `name` is "mnist", "fashion-mnist", "cifar10" or "folder:PATH" (a path that is not absolute is
    taken from `data_dir`, where one is given). `size` (height, width; one number: a square) and
    `channels` (1 or 3) are for folders alone, see `training.folder`. Raises `DataError` with what
    to do.
    """
    if split not in SPLITS:
        raise DataError(f"There is no split {split!r}: it is one of {', '.join(SPLITS)}.")
    if name.startswith(FOLDER_PREFIX):
        path = Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
        options = FolderOptions(size=size, channels=channels)
        pixels = read_folder(path if data_dir is None else data_dir / path, split, options)
        return ImageData(pixels, public_name(name), split)
    if name not in DATASETS:
        raise DataError(
            f"There is no data set {name!r}: it is one of {', '.join(DATASETS)} or folder:PATH."
        )
    if size is not None or channels is not None:
        raise DataError(f"size and channels are options of a folder; {name} is {_extent(name)}.")
    return ImageData(_archive_split(name, split, data_dir, download=download), name, split)


def _extent(name: str) -> str:
    channels, height, width = IMAGE_SHAPE if name == CIFAR10 else (1, 28, 28)
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"


def public_name(name: str) -> str:
    """A data set's name for reports and bundles: without the path of somebody's folder."""
    return "a folder of images" if name.startswith(FOLDER_PREFIX) else name


def _archive_split(
    name: str, split: Split, data_dir: Path | None, *, download: bool
) -> NDArray[np.uint8]:
    part = "test" if split == "test" else "train"
    if name == CIFAR10:
        images = read_cifar10(part, data_dir, download=download)
    else:
        images = read_images(name, part, data_dir, download=download)[:, None]  # [N, 1, 28, 28]
    return images if split == "test" else images[split_indices(len(images), split)]


def split_indices(count: int, split: Split) -> NDArray[np.int64]:
    """Which of `count` official training images belong to `split`, in the order kept."""
    if count <= 2 * SET_ASIDE:
        raise DataError(f"{count} images are too few to set {2 * SET_ASIDE} aside.")
    order = _permutation(count, SPLIT_KEY, 0)
    train = count - 2 * SET_ASIDE
    bounds = {
        "train": slice(0, train),
        "validation": slice(train, train + SET_ASIDE),
        "calibration": slice(train + SET_ASIDE, count),
    }
    return order[bounds[split]]


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation int64 [count], a pure function of (seed, epoch).

    So a resumed run needs no generator's state. `seed` and `epoch` are in 0 .. 2^64 - 1.
    """
    # Counted from 1: epoch 0 never repeats the order of the splits.
    return _permutation(count, seed, epoch + 1)


def _permutation(count: int, key: int, stream: int) -> NDArray[np.int64]:
    raw = np.random.Philox(key=np.array([key, stream], np.uint64)).random_raw(count)
    return np.argsort(raw, kind="stable").astype(np.int64, copy=False)


def binarize(pixels: NDArray[np.uint8], u: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each pixel one Bernoulli draw, 0.0 or 1.0, of its grey value: `u < pixels / 255`.

    `u` is uniform in [0, 1) and of the same shape. Black stays 0 and white stays 1 whatever `u` is.
    """
    if pixels.shape != u.shape:
        raise ValueError(f"One uniform for each pixel is needed: {u.shape} for {pixels.shape}.")
    return (u < pixels.astype(np.float32) / np.float32(255)).astype(np.float32)


def drawn_pixels(pixels: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Images uint8 [N, C, H, W] binarised once and for all, as 0 and 255.

    This is the protocol by which binarised likelihoods are compared: one Bernoulli draw of each
    pixel, fixed by `seed`. The uniforms are the upper 24 bits of
    `Philox4x64(key=(seed, 2^64 - 1))`, pixel after pixel, so the first images of a set are drawn
    alike whatever follows them.
    """
    generator = np.random.Philox(key=np.array([seed, 2**64 - 1], np.uint64))
    drawn = np.empty_like(pixels)
    for row, image in enumerate(pixels):  # one image at a time: raw output is eight bytes a pixel
        bits = generator.random_raw(image.size).reshape(image.shape) >> np.uint64(40)
        u = bits.astype(np.float32) * np.float32(2**-24)
        drawn[row] = binarize(image, u).astype(np.uint8) * 255
    return drawn
