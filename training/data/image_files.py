"""Image files of a folder at any depth, one of them as pixels, and words on what is wrong.

What is hidden is passed over, links are followed, into no folder twice.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp"})
MAX_PIXELS = 64_000_000  # of one file: what is larger is refused before it is decoded
SHOWN = 5  # names of a kind that are shown

Files = dict[str, Path]  # by their path relative to the folder, in its order


def sound_header(path: Path) -> tuple[Header, bytes]:
    """What a file says of itself, and its content.

    Raises OSError, `service.errors.IafvaeError` for what is no image, `DataError` for what is too
    large to be decoded.
    """
    data = path.read_bytes()
    header = read_header(data, shown(path))
    if header.pixels > MAX_PIXELS:
        size = f"{header.width}x{header.height}"
        raise DataError(f"{shown(path)}: {size} pixels are more than {MAX_PIXELS}")
    return header, data


def image_files(folder: Path) -> tuple[Files, list[str]]:
    """All images at any depth, and what else is worth telling."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {shown(folder)}.")
    files: Files = {}
    faults: list[OSError] = []
    hidden: list[str] = []
    dangling: list[str] = []
    others = Counter[str]()
    for path in _walk(folder, faults, hidden):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in EXTENSIONS:
            others[path.suffix.lower() or "without extension"] += 1
        elif path.is_symlink() and not path.exists():
            dangling.append(shown(name))
        else:
            files[name] = path
    refuse([f"{shown(fault.filename)}: {fault.strerror}" for fault in faults], len(files))
    if not files:
        raise DataError(
            f"There are no images in {shown(folder)}: PNG, JPEG and WebP files are read, at any "
            "depth."
        )
    kinds = [f"{count} {kind}" for kind, count in others.most_common()]
    told = {
        "hidden, passed over": hidden,
        "links to nothing, passed over": dangling,
        "other files, passed over": kinds,
    }
    notes = [f"{what}: {some(names)}" for what, names in told.items() if names]
    return dict(sorted(files.items())), notes


def _walk(folder: Path, faults: list[OSError], hidden: list[str]) -> Iterator[Path]:
    """Files below `folder`; links are followed, but into no folder twice."""
    seen = {os.path.realpath(folder)}

    def fresh(place: str, name: str) -> bool:
        real = os.path.realpath(os.path.join(place, name))  # noqa: PTH118  os.walk's own words
        known = real in seen
        seen.add(real)
        return not known

    for place, folders, names in os.walk(folder, onerror=faults.append, followlinks=True):
        hidden += [shown(name) for name in sorted(folders + names) if _is_hidden(name)]
        folders[:] = [
            name for name in sorted(folders) if not _is_hidden(name) and fresh(place, name)
        ]
        yield from (Path(place, name) for name in names if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def read_fitted(path: Path, channels: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One image file, scaled and cut to `size` (height, width), uint8 [channels, H, W].

    Raises OSError, or `service.errors.IafvaeError` for what is no sound image.
    """
    return read_image(
        path.read_bytes(),
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
    """A path for people: bytes that are no text, and line ends, as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
