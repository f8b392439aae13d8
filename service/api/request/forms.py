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
# More take a library quadratic time; a file's name may hold many semicolons.
MAX_DISPOSITION_BYTES, MAX_SEMICOLONS = 2**11, 2**8
STEP_BYTES = 2**18  # that are searched at once
# After so many seconds others come first, for so many times as long. What is much like a boundary
# takes thirty times as long to be searched as what is not.
BUSY_SECONDS, REST = 0.0005, 3.0
AS_IT_IS = (b"binary", b"8bit", b"7bit")  # what older clients call a part that is not encoded
FOLD = re.compile(rb"\r\n[ \t]+")  # as mail libraries break a header's line
# As RFC 5987 has it, which RFC 7578 forbids and older clients send for names beyond ASCII.
FILENAME_STAR = re.compile(rb"\bfilename\*=(?:[^';\"]*'[^';\"]*')?")


class Part(NamedTuple):
    """One field; filename: of a file, None where it is none; content: a view of the body."""

    name: str
    filename: str | None
    content: memoryview


async def parse_form(body: bytes, boundary: bytes, most: int) -> list[Part]:
    """The parts of `body`, at most one more than `most`. Raises MalformedBody."""
    delimiter, parts = b"\r\n--" + boundary, list[Part]()
    begun = body.startswith(delimiter[2:])  # what stands before the first boundary is nobody's
    start = at = len(delimiter) - 2 if begun else 0
    since = time.perf_counter()
    while not begun or not (body.startswith(b"--", start) or len(parts) > most):
        found = body.find(delimiter, at, at + STEP_BYTES + len(delimiter))
        if found >= 0:
            if begun:
                parts.append(_part(body, start, found))
            begun, start = True, found + len(delimiter)
            at = start
        else:
            at += STEP_BYTES
            if at >= len(body):
                raise MalformedBody(
                    "the multipart body is cut off: it lacks its closing boundary, or its lines "
                    "do not end with CR LF"
                )
        if (busy := time.perf_counter() - since) > BUSY_SECONDS:
            await asyncio.sleep(REST * busy)
            since = time.perf_counter()
    return parts


def _part(body: bytes, start: int, stop: int) -> Part:
    """What stands between two boundaries."""
    end = body.find(b"\r\n\r\n", start, min(stop, start + MAX_HEAD_BYTES))
    padding, *lines = FOLD.sub(b" ", body[start : max(start, end)]).split(b"\r\n")
    if end < 0 or padding.strip(b" \t"):
        raise MalformedBody(
            "the multipart body cannot be parsed: a boundary must end its line, and headers of at "
            f"most {MAX_HEAD_BYTES} bytes and an empty line must follow it"
        )
    options: dict[bytes, bytes] = {}
    for line in lines:
        header, _, value = line.partition(b":")
        header = header.strip().lower()
        if header == b"content-transfer-encoding" and value.strip().lower() not in AS_IT_IS:
            raise MalformedBody(
                "a part of the form is encoded (Content-Transfer-Encoding), which is not undone "
                "here: send its bytes as they are, without this header"
            )
        if header == b"content-disposition" and not options:
            if len(value) > MAX_DISPOSITION_BYTES or value.count(b";") > MAX_SEMICOLONS:
                raise MalformedBody(
                    "the multipart body cannot be parsed: a Content-Disposition has at most "
                    f"{MAX_DISPOSITION_BYTES} bytes and {MAX_SEMICOLONS} semicolons"
                )
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
