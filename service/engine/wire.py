"""Protocol buffers as they are written: just enough to read and edit an ONNX graph.

A message is a run of fields, each a tag (number and wire type) and a value
(https://protobuf.dev/programming-guides/encoding/). The service holds no schema and needs none:
what it does not know, it passes on as it came.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["field", "fields", "packed"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types

Field = tuple[int, int | memoryview, memoryview]


def fields(data: memoryview) -> Iterator[Field]:
    """A message's fields in order: number, value, and the bytes of the whole field.

    The value is a number or, of strings, messages and fixed-width numbers, the bytes. Raises
    ValueError where `data` is no message.
    """
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value, data[start:at]
            continue
        if wire == BYTES:
            size, at = _varint(data, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"no protocol buffer: wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError("no protocol buffer: a field is longer than its message")
        yield tag >> 3, data[at : at + size], data[start : at + size]
        at += size


def packed(data: memoryview) -> list[int]:
    """The numbers of a packed repeated field."""
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values


def field(number: int, value: int | bytes | bytearray | str) -> bytes:
    """One field: a number that is not negative, or a string or message."""
    if isinstance(value, int):
        return _number(number << 3 | VARINT) + _number(value)
    content = value.encode() if isinstance(value, str) else bytes(value)
    return _number(number << 3 | BYTES) + _number(len(content)) + content


def _number(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes((*encoded, value))


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("no protocol buffer: a number does not end")
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
