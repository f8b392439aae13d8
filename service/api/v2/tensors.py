"""Tensors of the Open Inference Protocol: datatypes, and data as JSON lists or as bytes.

Bytes are little-endian and row-major, one tensor after the other (the binary tensor data
extension). No function here knows HTTP.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.codecs.json_numbers import ENCODER, number_list
from service.errors import InvalidInput, MalformedBody, WrongDtype, WrongShape

__all__ = [
    "DATATYPES",
    "Datatype",
    "TensorInfo",
    "from_binary",
    "from_json",
    "shown",
    "to_binary",
    "to_json",
]

Datatype = Literal["FP32", "UINT8", "INT8", "INT64", "BYTES"]
DATATYPES = {"FP32": "<f4", "UINT8": "|u1", "INT8": "|i1", "INT64": "<i8"}  # BYTES: any object
MAX_SIZE = 2**40  # of one dimension
MAX_DEPTH = 8  # of lists in lists: each is another pass over all of them
Json = Any


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """An input or an output; -1 in `shape` is a size that may vary."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    optional: bool = False

    def check(self, datatype: object, shape: object) -> tuple[int, ...]:
        """The sizes that a request states. Raises WrongDtype, WrongShape."""
        if datatype != self.datatype:
            raise WrongDtype(f"{self.name} must be {self.datatype}, not {shown(datatype)}")
        if not isinstance(shape, list) or not all(
            type(size) is int and 0 <= size < MAX_SIZE for size in shape[:MAX_DEPTH]
        ):
            raise WrongShape(f"the shape of {self.name} must be a list of sizes")
        fits = len(shape) == len(self.shape) and all(
            wanted in (-1, size) for wanted, size in zip(self.shape, shape, strict=True)
        )
        if not fits:
            raise WrongShape(
                f"{self.name} must have the shape {list(self.shape)} (-1: any size), not "
                f"{shape[:MAX_DEPTH]}"
            )
        return tuple(shape)


def from_binary(info: TensorInfo, shape: tuple[int, ...], data: memoryview) -> NDArray[Any]:
    """The tensor in `data`, a read-only view of it. Raises MalformedBody."""
    dtype = np.dtype(DATATYPES[info.datatype])
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise MalformedBody(
            f"{info.name}: {list(shape)} of {info.datatype} are {expected} bytes, but "
            f"binary_data_size is {len(data)}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def from_json(info: TensorInfo, shape: tuple[int, ...], data: Json) -> NDArray[Any]:
    """The tensor in `data`, a flat or nested list of numbers. Raises InvalidInput, WrongShape."""
    if not isinstance(data, list):
        raise InvalidInput(f"{info.name} has no data: send a list of numbers, or binary_data_size")
    numbers = _flattened(data, info.name)
    if len(numbers) != math.prod(shape):
        raise WrongShape(
            f"{info.name}: {list(shape)} are {math.prod(shape)} numbers, data has {len(numbers)}"
        )
    kinds = {int, float} if info.datatype == "FP32" else {int}
    if not kinds.issuperset(map(type, numbers)):
        raise InvalidInput(f"the data of {info.name} must be numbers that fit {info.datatype}")
    try:
        array = np.array(numbers, np.float64 if info.datatype == "FP32" else np.int64)
    except OverflowError:
        raise InvalidInput(f"{info.name} holds numbers beyond {info.datatype}") from None
    if info.datatype == "UINT8" and array.size and not (array.min() >= 0 and array.max() <= 255):
        raise InvalidInput(f"{info.name} holds numbers beyond UINT8: send 0 to 255")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity: it is refused
        return array.astype(DATATYPES[info.datatype], copy=False).reshape(shape)


def _flattened(data: list[Json], name: str) -> list[Json]:
    for _ in range(MAX_DEPTH):
        if not data or not isinstance(data[0], list):
            return data
        if not all(isinstance(part, list) for part in data):
            raise InvalidInput(f"the data of {name} must be lists of equal depth")
        data = list(chain.from_iterable(data))
    raise InvalidInput(f"the data of {name} are nested too deep: send a flat list")


def shown(value: Json) -> str:
    """What an error says of a value: of a list or object, which may be long, its kind alone."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return repr(value[:60] if isinstance(value, str) else value)


def to_binary(info: TensorInfo, array: NDArray[Any]) -> bytes:
    """The bytes of `array`; strings have their lengths, as 4 bytes each, in front of them."""
    if info.datatype == "BYTES":
        strings = [text.encode("utf-8") for text in array.reshape(-1)]
        return b"".join(struct.pack("<I", len(text)) + text for text in strings)
    return array.astype(DATATYPES[info.datatype], copy=False).tobytes()


def to_json(info: TensorInfo, array: NDArray[Any]) -> str:
    """The values of `array` as a flat list in JSON; null for what is not finite."""
    if info.datatype == "BYTES":
        return ENCODER.encode(array.reshape(-1).tolist())
    return number_list(array.astype(DATATYPES[info.datatype], copy=False))
