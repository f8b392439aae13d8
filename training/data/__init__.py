"""Data sets by name: `load_dataset`, `load_splits`, and what they are made of."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.cifar import read_cifar10
from training.data.folder import FolderOptions, Survey, decode, survey
from training.data.idx import ARCHIVES, read_images
from training.data.image_files import Files
from training.data.images import FOLDER_NAME, ImageData, drawn_pixels
from training.data.splits import SPLITS, Split, cifar10_indices, epoch_order, split_indices
from training.errors import DataError

__all__ = [
    "CIFAR10",
    "DATASETS",
    "FOLDER_PREFIX",
    "SPLITS",
    "STATIC",
    "FolderOptions",
    "ImageData",
    "Split",
    "drawn_pixels",
    "epoch_order",
    "folder_path",
    "load_dataset",
    "load_splits",
    "public_name",
    "split_indices",
    "whole_folder",
]

FOLDER_PREFIX = "folder:"
CIFAR10 = "cifar10"
# MNIST's digits drawn once, as binary images that stay as they are (the "static" MNIST of the
# literature, whose own draw is another one). Test digits are those that `evaluate` draws of seed 0.
STATIC, STATIC_SEEDS = "mnist-static", {"test": 0, "train": 1}
DATASETS = (*ARCHIVES, STATIC, CIFAR10)

logger = logging.getLogger(__name__)


def load_dataset(
    name: str,
    split: Split,
    data_dir: Path | None = None,
    options: FolderOptions = FolderOptions(),  # noqa: B008  frozen
    *,
    download: bool = True,
) -> ImageData:
    """The images of one split.

    `name` is "mnist", "mnist-static" (binarised once and for all), "fashion-mnist", "cifar10" or
    "folder:PATH" (a path that is not absolute is taken from `data_dir`, where one is given).
    `options` are for folders alone. Raises `DataError` with what to do.
    """
    if split not in SPLITS:
        raise DataError(f"There is no split {split!r}: it is one of {', '.join(SPLITS)}.")
    return load_splits(name, (split,), data_dir, options, download=download)[0]


def load_splits(
    name: str,
    splits: Sequence[Split],
    data_dir: Path | None,
    options: FolderOptions,
    *,
    download: bool = True,
    tell: Callable[[str], None] | None = None,
) -> list[ImageData]:
    """The images of several splits, as `load_dataset` gives each; a folder is looked through once.

    `tell` hears what was found in a folder, before its images are decoded, and what of them is no
    longer seen; without it the latter is a warning.
    """
    if name.startswith(FOLDER_PREFIX):
        found = survey(folder_path(name, data_dir), options)
        if tell is not None:
            for line in found.lines():
                tell(line)
        return [_decoded(found, found.split(split), name, split, tell) for split in splits]
    if name not in DATASETS:
        raise DataError(
            f"There is no data set {name!r}: it is one of {', '.join(DATASETS)} or folder:PATH."
        )
    if options != FolderOptions():
        extent = "32x32 with 3 channels" if name == CIFAR10 else "28x28 with 1 channel"
        raise DataError(f"size, channels and fit are options of a folder; {name} is {extent}.")
    return [
        ImageData(_published(name, split, data_dir, download=download), name, split)
        for split in splits
    ]


def whole_folder(name: str, split: str, data_dir: Path | None, options: FolderOptions) -> ImageData:
    """All images of "folder:PATH", whatever split their names say, as `split`."""
    found = survey(folder_path(name, data_dir), options)
    return _decoded(found, found.files, name, split)


def _decoded(
    found: Survey,
    files: Files,
    name: str,
    split: str,
    tell: Callable[[str], None] | None = None,
) -> ImageData:
    images = decode(found, files)
    for note in images.notes:
        (tell or logger.warning)(f"{split}: {note}")
    return ImageData(images.images, public_name(name), split, bool(images.altered.any()))


def public_name(name: str) -> str:
    """A data set's name for reports and bundles: without the path of somebody's folder."""
    return FOLDER_NAME if name.startswith(FOLDER_PREFIX) else name


def folder_path(name: str, data_dir: Path | None = None) -> Path:
    """The folder that "folder:PATH" names; raises `DataError` where nobody knows the home of ~."""
    path = Path(name.removeprefix(FOLDER_PREFIX))
    try:
        path = path.expanduser()
    except RuntimeError as error:  # "~" where nobody's home is known
        raise DataError(f"{name}: {error}: write the path out.") from None
    return path if data_dir is None else data_dir / path


def _published(
    name: str, split: Split, data_dir: Path | None, *, download: bool
) -> NDArray[np.uint8]:
    part = "test" if split == "test" else "train"
    if name == CIFAR10:
        images, indices = read_cifar10(part, data_dir, download=download), cifar10_indices
    else:  # [N, 1, 28, 28]
        file = "mnist" if name == STATIC else name
        images = read_images(file, part, data_dir, download=download)[:, None]
        if name == STATIC:
            images = drawn_pixels(images, STATIC_SEEDS[part])
        indices = split_indices
    return images if split == "test" else images[indices(len(images), split)]
