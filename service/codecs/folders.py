"""The image files of a folder, as people have them.

What is hidden is passed over; links are followed, into no folder twice. Pipes and devices, whose
bytes never end, are no image files, whatever they are called.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "EXTENSIONS",
    "USUAL",
    "Listing",
    "is_hidden",
    "list_images",
    "printable",
    "read_file",
]

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp"})  # jfif: of Windows browsers
USUAL = ("good", "normal", "ok", "ordinary", "usual")  # folders of images that are in order
MAX_FILE_BYTES = 2**29  # more than any picture that is taken has, raw
MAX_DEPTH = 100  # of folders in each other: each costs as many steps as it lies deep
NOWHERE = (errno.ENOENT, errno.ELOOP)


@dataclass(kw_only=True)
class Listing:
    """What lies in a folder at any depth.

    files: images, by their path relative to the folder ("/" between its parts), in order; faults:
    folders that cannot be listed; hidden, dangling (links to nothing), endless (pipes, devices):
    names of what is passed over; others: how many other files, by suffix.
    """

    files: dict[str, Path] = field(default_factory=dict)
    faults: list[OSError] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    endless: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def list_images(folder: Path) -> Listing:
    """PNG, JPEG and WebP files by name; those that nobody may read are among them."""
    found = Listing()
    for path in _walk(folder, found):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in EXTENSIONS:
            found.others[path.suffix.lower() or "without extension"] += 1
        elif (kind := _kind(path)) is None:
            found.dangling.append(name)
        elif kind:
            found.files[name] = path
        else:
            found.endless.append(name)
    found.files = dict(sorted(found.files.items()))
    return found


def printable(text: str) -> str:
    """A name for people: line ends, a terminal's commands and bytes that are no text as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def read_file(path: Path) -> bytes:
    """The content of image file `path`, which may be anything, without end too. Raises OSError."""
    size = path.stat().st_size  # 0 of pipes and devices
    with path.open("rb") as file:
        data = file.read(1 + (min(size, MAX_FILE_BYTES) or MAX_FILE_BYTES))
    if len(data) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
    return data


def _kind(path: Path) -> bool | None:
    """Whether it is a file, as far as can be known; None: a link to nothing."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        return None if error.errno in NOWHERE else True  # who reads it is told why not


def _walk(folder: Path, found: Listing) -> Iterator[Path]:
    """What is no folder below `folder`; links are followed, but into no folder twice."""
    seen = {os.path.realpath(folder)}

    def fresh(place: str, name: str) -> bool:
        real = os.path.realpath(os.path.join(place, name))  # noqa: PTH118  os.walk's own words
        known = real in seen
        seen.add(real)
        return not known

    top = len(folder.parts)
    for place, folders, names in os.walk(folder, onerror=found.faults.append, followlinks=True):
        found.hidden += [name for name in sorted(folders + names) if is_hidden(name)]
        folders[:] = [
            name for name in sorted(folders) if not is_hidden(name) and fresh(place, name)
        ]
        if len(Path(place).parts) - top >= MAX_DEPTH:
            found.faults += [_too_deep(Path(place, name)) for name in folders]
            folders.clear()
        yield from (Path(place, name) for name in names if not is_hidden(name))


def _too_deep(path: Path) -> OSError:
    return OSError(errno.ELOOP, f"lies more than {MAX_DEPTH} folders deep", os.fspath(path))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over."""
    return name.startswith(".") or name == "__MACOSX"
