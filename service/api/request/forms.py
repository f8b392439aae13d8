"""Forms of files, ``multipart/form-data`` (RFC 7578), cut into their parts.

The body is here as a whole, so `bytes.find` looks for its boundaries, and rests on the way: a
parser that looks at every line end would hold the event loop for seconds where there is little
else.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import NamedTuple

from python_multipart.multipart import parse_options_header

from service.errors import MalformedBody

__all__ = ["Part", "parse_form"]

MAX_HEAD_BYTES = 2**13  # of a part
# So many bytes are searched at once, in 0.03 ms, or thirty times that where they are much like a
# boundary; then others come first for so many times as long.
STEP_BYTES, REST = 2**18, 3.0
# As RFC 5987 has it, which RFC 7578 forbids and older clients send for names beyond ASCII.
FILENAME_STAR = re.compile(rb"\bfilename\*=(?:[^';\"]*'[^';\"]*')?")


class Part(NamedTuple):
    """One field; filename: of a file, None where it is none; content: a view of the body."""

    name: str
    filename: str | None
    content: memoryview


async def parse_form(body: bytes, boundary: bytes, most: int) -> list[Part]:
    """The parts of `body`, at most one more than `most`. Raises MalformedBody."""
    delimiter = b"\r\n--" + boundary
    parts: list[Part] = []
    if body.startswith(delimiter[2:]):
        start = len(delimiter) - 2
    else:  # what stands before the first boundary is nobody's
        start = await _after(body, delimiter, 0)
    while not body.startswith(b"--", start) and len(parts) <= most:
        after = await _after(body, delimiter, start)
        parts.append(_part(body, start, after - len(delimiter)))
        start = after
    return parts


async def _after(body: bytes, delimiter: bytes, start: int) -> int:
    """Where the next `delimiter` from `start` on ends. Raises MalformedBody."""
    while start < len(body):
        began = time.perf_counter()
        found = body.find(delimiter, start, start + STEP_BYTES + len(delimiter))
        if found >= 0:
            return found + len(delimiter)
        start += STEP_BYTES
        await asyncio.sleep(REST * (time.perf_counter() - began))
    raise MalformedBody("the multipart body is cut off: it lacks its closing boundary")


def _part(body: bytes, start: int, stop: int) -> Part:
    """What stands between two boundaries."""
    end = body.find(b"\r\n\r\n", start, min(stop, start + MAX_HEAD_BYTES))
    padding, *lines = body[start : max(start, end)].split(b"\r\n")
    if end < 0 or padding.strip(b" \t"):
        raise MalformedBody(
            "the multipart body cannot be parsed: a boundary must end its line, and headers of at "
            f"most {MAX_HEAD_BYTES} bytes and an empty line must follow it"
        )
    options: dict[bytes, bytes] = {}
    for line in lines:
        header, _, value = line.partition(b":")
        if header.strip().lower() == b"content-disposition":
            if b"filename=" not in value:
                value = FILENAME_STAR.sub(b"filename=", value)
            _, options = parse_options_header(value)
    if b"name" not in options:
        raise MalformedBody(
            'the multipart body cannot be parsed: each part needs a Content-Disposition with "name"'
        )
    filename = options.get(b"filename")
    return Part(
        options[b"name"].decode("utf-8", "replace"),
        None if filename is None else filename.decode("utf-8", "replace"),
        memoryview(body)[end + 4 : stop],  # a copy of megabytes would hold the event loop up
    )
