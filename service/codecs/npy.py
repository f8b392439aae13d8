"""npy files: arrays to and from bytes, with sizes checked before any array exists."""

from __future__ import annotations

import ast
import math
import re
import struct
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import MalformedBody, PayloadTooLarge, WrongDtype

__all__ = [
    "NpyHeader",
    "decode_npy",
    "encode_npy",
    "in_order",
    "npy_header",
    "npy_prefix",
    "view_npy",
]

MAGIC = b"\x93NUMPY"
ZIP = b"PK\x03\x04"
PYTHON_2_LONG = re.compile(rb"(?<=\d)L(?=[,)])")  # sizes such as 28L
MAX_HEADER_BYTES = 1024  # numpy.save writes 118 for arrays such as are taken here
MAX_DIMS = 8


class NpyHeader(NamedTuple):
    """What an npy header says: a numpy type string, memory order and shape."""

    descr: str
    fortran_order: bool
    shape: tuple[int, ...]


def decode_npy(body: bytes, *, dtypes: tuple[str, ...], max_items: int) -> NDArray[Any]:
    """As `view_npy`, in C order and the machine's byte order, where need be as a copy."""
    return in_order(view_npy(body, dtypes=dtypes, max_items=max_items))


def in_order(array: NDArray[Any]) -> NDArray[Any]:
    """`array` in C order and the machine's byte order; a copy where it is not."""
    return np.require(array, array.dtype.newbyteorder("="), ["C", "A"])


def view_npy(body: bytes, *, dtypes: tuple[str, ...], max_items: int) -> NDArray[Any]:
    """The array in `body`, of one of `dtypes` (such as "uint8"); nothing is ever unpickled.

    The header is parsed and compared with the body's length and with `max_items` before any array
    exists. The answer is a read-only view of `body`, in whatever memory and byte order: its shape
    can be refused before anything is copied.

    Raises:
        MalformedBody: not npy, or not as long as its header says.
        WrongDtype: another dtype, or pickled objects.
        PayloadTooLarge: more than `max_items` numbers.
    """
    header, start = npy_header(body)
    dtype = _dtype(header.descr, dtypes)
    items = math.prod(header.shape)
    if math.prod([size or 1 for size in header.shape]) > max_items:  # NumPy counts beside a 0, too
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
    if header.fortran_order:
        return flat.reshape(header.shape[::-1]).T
    return flat.reshape(header.shape)


def npy_header(body: bytes) -> tuple[NpyHeader, int]:
    """The header of an npy file and where its numbers start (NEP 1, format versions 1 to 3)."""
    if body[:6] != MAGIC or len(body) < 10:
        hint = "; an npz is a zip file of them, send one" if body[:4] == ZIP else ""
        raise MalformedBody(
            f"the body is not npy: it must begin with \\x93NUMPY, as numpy.save writes it{hint}"
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
        text = PYTHON_2_LONG.sub(b"", text)
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


@lru_cache(maxsize=256)
def _dtype(descr: str, allowed: tuple[str, ...]) -> np.dtype[Any]:
    wanted = " or ".join(allowed)
    if "O" in descr:
        raise WrongDtype(
            f"the npy array holds pickled Python objects, which are never loaded; send {wanted}"
        )
    order, kind = (descr[0], descr[1:]) if descr.startswith(("<", ">", "|", "=")) else ("=", descr)
    for name in allowed:
        dtype = np.dtype(name)
        if kind in (dtype.str[1:], dtype.name, dtype.char):  # of other writers than NumPy too
            return np.dtype(order + dtype.str[1:])
    raise WrongDtype(
        f"the npy array has dtype {descr!r}, this takes {wanted}: {_advice(kind, allowed[0])}"
    )


def _advice(kind: str, wanted: str) -> str:
    """The NumPy expression that gives `wanted`. A cast alone is not always one: fractions and
    booleans become black images, values above 255 noise.
    """
    cast = f"astype({wanted!r})"
    if kind[:1] not in ("f", "b", "u", "i"):
        return "send numbers"
    if wanted != "uint8":
        return f"convert it with array.{cast}"
    if kind[0] in "fb":
        return f"convert it with (255 * array).round().{cast} where its values are in [0, 1]"
    if kind in ("u2", "uint16"):
        return f"convert it with (array / 257).round().{cast} where its values are in [0, 65535]"
    return f"convert it with array.{cast} where its values are in [0, 255]"


def encode_npy(array: NDArray[Any]) -> bytes:
    """`array` as an npy file of format version 1, C order, little-endian."""
    array = np.ascontiguousarray(array)
    if array.dtype.str[0] == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return npy_prefix(array.dtype.str, array.shape) + array.tobytes()


@lru_cache(maxsize=256)
def npy_prefix(descr: str, shape: tuple[int, ...]) -> bytes:
    """What stands before the numbers of such an npy file, such as "|u1" and (1000, 1, 28, 28)."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}"
    padding = -(len(MAGIC) + 4 + len(text) + 1) % 64
    text += " " * padding + "\n"
    return MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin-1")
