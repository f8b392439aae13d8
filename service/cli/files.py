"""What the commands of `iafvae` write: sheets, arrays and folders of pictures.

A file appears under its name when it is complete: an interrupted command leaves the old one.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from service.cli.progress import shown
from service.codecs.npy import encode_npy, npy_prefix
from service.codecs.png import contact_sheet, encode_png
from service.errors import InvalidInput

__all__ = [
    "check",
    "check_pictures",
    "naming",
    "picture_names",
    "write_array",
    "write_bytes",
    "write_images",
    "write_pairs",
    "write_stream",
    "write_text",
]

IMAGES = (".png", ".npy", "")  # a directory has no suffix
PICTURE = re.compile(r"[0-9]{5,}\.png")


def check(out: Path, suffixes: Sequence[str] = IMAGES) -> None:
    """Whether `out` can be written, before anything is computed. Raises InvalidInput."""
    if out.suffix not in suffixes:
        named = " or ".join(suffix for suffix in suffixes if suffix)
        directory = ", or for a directory one without a dot" if "" in suffixes else ""
        raise InvalidInput(f"{out}: use a name that ends in {named}{directory}")
    if out.exists() and out.is_dir() != (not out.suffix):
        raise InvalidInput(f"{out} is a {'directory' if out.suffix else 'file'}: use another name")
    if out.suffix and not out.parent.is_dir():
        raise InvalidInput(f"{out}: there is no directory {out.parent}")
    folder = out.parent if out.suffix else next(p for p in (out, *out.parents) if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidInput(f"{out}: nothing can be written into {folder}")


def picture_names(n: int) -> list[str]:
    """What `n` pictures in a directory are called: their places from 0, sorted as they are."""
    digits = max(5, len(str(n - 1)))
    return [f"{index:0{digits}d}.png" for index in range(n)]


def check_pictures(out: Path, n: int) -> None:
    """Whether the directory `out` would hold `n` pictures and none of an earlier, larger call,
    before anything is computed. Raises InvalidInput."""
    if out.suffix or not out.exists():
        return
    there = {path.name for path in out.iterdir() if PICTURE.fullmatch(path.name)}
    if left := there.difference(picture_names(n)):
        raise InvalidInput(
            f"{out} holds pictures of another call, such as {max(left)}, that {n} new ones do not "
            "replace: remove them, or use another name"
        )


@contextmanager
def naming(out: Path) -> Iterator[None]:
    """Where `out` is written: an error that names no file, as of a full disk, names it."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise InvalidInput(f"{out} cannot be written: {error.strerror or error}") from None


@contextmanager
def _replacing(out: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `out` when all went well."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with naming(out):
            with part.open("wb") as file:
                yield file
            part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def write_images(images: NDArray[np.uint8], out: Path, *, columns: int | None = None) -> None:
    """A contact sheet (.png), an array (.npy), or one PNG for each image (a directory)."""
    if out.suffix == ".png":
        write_bytes(encode_png(contact_sheet(images, columns=columns)), out)
    elif out.suffix == ".npy":
        write_array(images, out)
    else:
        out.mkdir(parents=True, exist_ok=True)
        for name, image in zip(picture_names(len(images)), images, strict=True):
            write_bytes(encode_png(image), out / name)


def write_pairs(images: NDArray[np.uint8], again: NDArray[np.uint8], out: Path) -> None:
    """As `write_images`, but a sheet shows each of `images` beside what it became."""
    if out.suffix != ".png":
        write_images(again, out)
        return
    pairs = np.stack([images, again], axis=1).reshape(-1, *images.shape[1:])
    write_images(pairs, out, columns=2 * math.ceil(math.sqrt(len(images) / 2)))


def write_array(array: NDArray[Any], out: Path) -> None:
    """Write `array` as the npy file `out`."""
    write_bytes(encode_npy(array), out)


def write_stream(pieces: Iterator[NDArray[np.uint8]], n: int, out: Path) -> None:
    """Write `n` images, which come in pieces uint8 [some, C, H, W], as the npy file `out`."""
    with _replacing(out) as file, shown("drawing", n) as advance:
        for index, piece in enumerate(pieces):
            if index == 0:
                file.write(npy_prefix("|u1", (n, *piece.shape[1:])))
            file.write(piece.tobytes())
            advance(len(piece))


def write_bytes(data: bytes, out: Path) -> None:
    """Write `data` as the file `out`."""
    with _replacing(out) as file:
        file.write(data)


def write_text(text: str, out: Path) -> None:
    """Write `text` as the file `out`, in UTF-8; bytes of file names that are none as `\\udce9`."""
    write_bytes(text.encode(errors="backslashreplace"), out)
