"""Image files of a folder at any depth, one of them as pixels, and words on what is wrong."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.codecs.folders import list_images, printable, read_file
from service.codecs.headers import Header, read_header
from service.codecs.images import read_image
from training.errors import DataError

__all__ = [
    "MAX_PIXELS",
    "Files",
    "by",
    "fault",
    "image_files",
    "read_fitted",
    "refuse",
    "shown",
    "some",
    "sound_header",
]

MAX_PIXELS = 64_000_000  # of one file: what is larger is refused before it is decoded
SHOWN = 5  # names of a kind that are shown

Files = dict[str, Path]  # by their path relative to the folder, in its order


def sound_header(path: Path) -> tuple[Header, bytes]:
    """What a file says of itself, and its content.

    Raises OSError, `service.errors.IafvaeError` for what is no image, `DataError` for what is too
    large to be decoded.
    """
    data = read_file(path)
    header = read_header(data, shown(path))
    if header.pixels > MAX_PIXELS:
        size = f"{header.width}x{header.height}"
        raise DataError(f"{shown(path)}: {size} pixels are more than {MAX_PIXELS}")
    return header, data


def image_files(folder: Path) -> tuple[Files, list[str]]:
    """All images at any depth, and what else is worth telling."""
    if not os.path.isdir(folder):  # noqa: PTH112  Path.is_dir raises where it may not look
        raise DataError(f"There is no folder {shown(folder)}, or it may not be looked at.")
    found = list_images(folder)
    faults = [f"{shown(fault.filename)}: {fault.strerror}" for fault in found.faults]
    refuse(faults, len(found.files))
    told = {
        "hidden, passed over": found.hidden,
        "links to nothing, passed over": found.dangling,
        "pipes and devices, passed over": found.endless,
        "other files, passed over": [f"{n} {kind}" for kind, n in found.others.most_common()],
    }
    notes = [f"{what}: {some([shown(n) for n in names])}" for what, names in told.items() if names]
    if not found.files:
        raise DataError(
            f"There are no images in {shown(folder)}: PNG, JPEG and WebP files are read, at any "
            "depth." + "".join(f" ({note})" for note in notes)
        )
    return found.files, notes


def read_fitted(path: Path, channels: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One image file, scaled and cut to `size` (height, width), uint8 [channels, H, W].

    Raises OSError, or `service.errors.IafvaeError` for what is no sound image.
    """
    return read_image(
        read_file(path),
        channels=channels,
        height=size[0],
        width=size[1],
        what=shown(path),
        max_pixels=MAX_PIXELS,
    )


def fault(path: Path, error: Exception) -> str:
    """What is wrong with a file."""
    return f"{shown(path)}: {error.strerror}" if isinstance(error, OSError) else str(error)


def refuse(faults: Sequence[str], count: int) -> None:
    """Raise `DataError` where there are faults, among so many images."""
    if faults:
        raise DataError(
            f"{len(faults)} of {count} images cannot be used, repair or remove them: "
            + some(faults, "; ")
        )


def some(names: Sequence[str], between: str = ", ") -> str:
    """The first names, and how many more there are."""
    more = len(names) - SHOWN
    return between.join(names[:SHOWN]) + (f"{between}and {more} more" if more > 0 else "")


def by(size: tuple[int, int]) -> str:
    """A size (height, width) for people."""
    return f"{size[0]}x{size[1]}"


def shown(path: Path | str) -> str:
    """A path for people."""
    return printable(str(path))
