"""npy, base64 and PNG: numbers and pictures to and from bytes, with sizes checked first.

Reading image files is in `service.pictures`. No function here knows HTTP.
"""

from __future__ import annotations

import ast
import base64
import binascii
import math
import struct
import zlib
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import (
    MalformedBody,
    PayloadTooLarge,
    UndecodableImage,
    WrongDtype,
    WrongShape,
)

__all__ = [
    "NpyHeader",
    "contact_sheet",
    "decode_base64",
    "decode_npy",
    "encode_npy",
    "encode_png",
    "npy_header",
    "npy_prefix",
    "png_base64",
]

Pixels = NDArray[np.uint8]
MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 4096
MAX_DIMS = 8
SHEET_GAP = 2  # pixels between the pictures of a contact sheet
SHEET_GREY = 64  # between the pictures: distinguishable from black digits' background


class NpyHeader(NamedTuple):
    """What an npy header says: a numpy type string, memory order and shape."""

    descr: str
    fortran_order: bool
    shape: tuple[int, ...]


def decode_npy(body: bytes, *, dtypes: tuple[str, ...], max_items: int) -> NDArray[Any]:
    """The array in `body`, of one of `dtypes` (such as "uint8"); nothing is ever unpickled.

    The header is parsed and compared with the body's length and with `max_items` before any array
    exists. The answer may be a read-only view of `body`.

    Raises:
        MalformedBody: not npy, or not as long as its header says.
        WrongDtype: another dtype, or pickled objects.
        PayloadTooLarge: more than `max_items` numbers.
    """
    header, start = npy_header(body)
    dtype = _dtype(header.descr, dtypes)
    items = math.prod(header.shape)
    if items > max_items:
        raise PayloadTooLarge(
            f"the npy array has shape {header.shape}, {items} numbers; at most {max_items} are "
            "taken: send fewer in a request"
        )
    expected = items * dtype.itemsize
    if len(body) - start != expected:
        raise MalformedBody(
            f"the npy header promises shape {header.shape} of {dtype.name}, {expected} bytes, but "
            f"{len(body) - start} follow it: the body is cut off or has bytes too many"
        )
    flat = np.frombuffer(body, dtype, items, start)
    shaped = (
        flat.reshape(header.shape[::-1]).T if header.fortran_order else flat.reshape(header.shape)
    )
    native = shaped.astype(dtype.newbyteorder("="), copy=False)
    return np.require(native, requirements=["C", "A"])


def npy_header(body: bytes) -> tuple[NpyHeader, int]:
    """The header of an npy file and where its numbers start (NEP 1, format versions 1 to 3)."""
    if body[:6] != MAGIC or len(body) < 10:
        raise MalformedBody(
            "the body is not npy: it must begin with \\x93NUMPY, as numpy.save writes it"
        )
    wide = body[6] >= 2  # since version 2 the header's length has four bytes
    if body[6] not in (1, 2, 3) or (wide and len(body) < 12):
        raise MalformedBody(f"npy format version {body[6]}.{body[7]} is not known; send version 1")
    length = int.from_bytes(body[8:12] if wide else body[8:10], "little")
    start = (12 if wide else 10) + length
    if length > MAX_HEADER_BYTES or start > len(body):
        raise MalformedBody(
            f"the npy header claims {length} bytes; it must be complete and at most "
            f"{MAX_HEADER_BYTES}"
        )
    return _parse_header(body[start - length : start]), start


@lru_cache(maxsize=256)
def _parse_header(text: bytes) -> NpyHeader:
    try:
        fields = ast.literal_eval(text.decode("latin-1").strip())
        descr, fortran_order, shape = (fields[k] for k in ("descr", "fortran_order", "shape"))
        well_formed = (
            len(fields) == 3
            and isinstance(fortran_order, bool)
            and isinstance(shape, tuple)
            and len(shape) <= MAX_DIMS
            and all(type(size) is int and 0 <= size < 2**48 for size in shape)
        )
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
        well_formed = False
    if not well_formed:
        raise MalformedBody(
            "the npy header is not a dictionary of descr, fortran_order and shape with at most "
            f"{MAX_DIMS} sizes; write the array with numpy.save"
        )
    return NpyHeader(descr if isinstance(descr, str) else "structured", fortran_order, shape)


def _dtype(descr: str, allowed: tuple[str, ...]) -> np.dtype[Any]:
    wanted = " or ".join(allowed)
    if descr.endswith("O") or "O" in descr:
        raise WrongDtype(
            f"the npy array holds pickled Python objects, which are never loaded; send {wanted}"
        )
    for name in allowed:
        dtype = np.dtype(name)
        if descr[1:] == dtype.str[1:] and descr[:1] in "<>|=":
            return np.dtype(descr)
    raise WrongDtype(
        f"the npy array has dtype {descr!r}, this takes {wanted}: convert it with "
        f"array.astype({allowed[0]!r})"
    )


def encode_npy(array: NDArray[Any]) -> bytes:
    """`array` as an npy file of format version 1, C order, little-endian."""
    array = np.ascontiguousarray(array)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return npy_prefix(little.dtype.str, array.shape) + little.tobytes()


@lru_cache(maxsize=256)
def npy_prefix(descr: str, shape: tuple[int, ...]) -> bytes:
    """What stands before the numbers of such an npy file, such as "|u1" and (1000, 1, 28, 28)."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}"
    padding = -(len(MAGIC) + 4 + len(text) + 1) % 64
    text += " " * padding + "\n"
    return MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin-1")


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of base64 `text`; a ``data:...;base64,`` prefix, as browsers write it, is dropped.

    `what` names the value in errors. Raises UndecodableImage.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if "\n" in text:  # as `base64` and MIME wrap it
        text = "".join(text.split())
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UndecodableImage(
            f"{what} is not base64 ({str(error).lower()}): encode the bytes of a PNG, JPEG or "
            "WebP file"
        ) from None


def encode_png(image: Pixels, *, level: int = 6) -> bytes:
    """`image`, uint8 [C, H, W] with C of 1 or 3, as an 8-bit PNG without filters.

    For pictures of a few thousand pixels this is several times cheaper than a general encoder.
    Source: W3C PNG (Third Edition), sections 5 and 11.
    """
    channels, height, width = image.shape
    if channels not in (1, 3):
        raise WrongShape(f"a PNG has 1 or 3 channels, not {channels}; ask for application/x-npy")
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with filter 0
    rows[:, 1:] = image.transpose(1, 2, 0).reshape(height, width * channels)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), level)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return len(data).to_bytes(4, "big") + kind + data + checksum.to_bytes(4, "big")


def png_base64(images: Pixels) -> list[str]:
    """Each of `images`, uint8 [n, C, H, W], as the base64 of a PNG."""
    return [base64.b64encode(encode_png(image)).decode("ascii") for image in images]


def contact_sheet(images: Pixels, *, columns: int | None = None) -> Pixels:
    """`images`, uint8 [n, C, H, W] with n >= 1, side by side, as uint8 [C, H', W'].

    Row by row, `columns` to a row (default: the smallest square that holds them), with grey gaps;
    one image alone is itself.
    """
    n, channels, height, width = images.shape
    if n == 1:
        return np.asarray(images[0])
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    cell_h, cell_w = height + SHEET_GAP, width + SHEET_GAP
    sheet = np.full(
        (channels, rows * cell_h + SHEET_GAP, columns * cell_w + SHEET_GAP), SHEET_GREY, np.uint8
    )
    for index, image in enumerate(images):
        top = SHEET_GAP + index // columns * cell_h
        left = SHEET_GAP + index % columns * cell_w
        sheet[:, top : top + height, left : left + width] = image
    return sheet
