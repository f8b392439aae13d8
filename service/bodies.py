"""The bytes of a request's body, within their limits.

Limits are checked in this order, each before the work it protects from: the body's declared length,
the bytes counted while they stream in, and those of all bodies together.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from starlette.datastructures import Headers
from starlette.types import Receive

from service.errors import (
    ClientGone,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMedia,
)

__all__ = ["Buffers", "read_body"]


class Buffers:
    """Bytes of bodies that a process holds at once, bounded by `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.held = 0

    def take(self, size: int) -> None:
        """Hold `size` bytes more. Raises Overloaded."""
        if self.held + size > self._max_bytes:
            raise Overloaded(
                f"bodies of {self.held} bytes are being worked on, at most {self._max_bytes} are "
                "held at once: send the request again later"
            )
        self.held += size

    def give(self, size: int) -> None:
        """Hold `size` bytes less."""
        self.held -= size


@contextlib.asynccontextmanager
async def read_body(
    headers: Headers,
    receive: Receive,
    *,
    max_bytes: int,
    timeout_seconds: float,
    buffers: Buffers,
) -> AsyncGenerator[bytes, None]:
    """The whole body, counted in `buffers` until the context ends.

    Raises:
        Overloaded: all bodies together are above the bound of `buffers`.
        PayloadTooLarge: declared or counted above `max_bytes`; the rest is not read.
        RequestTimeout: not complete after `timeout_seconds`.
        ClientGone: hung up before it was complete.
        UnsupportedMedia: compressed.
    """
    if headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMedia("compressed bodies are not taken: send it without Content-Encoding")
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise PayloadTooLarge(_too_large(declared, max_bytes))
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(timeout_seconds):
            await _collect(chunks, receive, max_bytes, buffers)
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        raise RequestTimeout(
            f"the body was not complete after {timeout_seconds:g} s: send it faster, or less"
        ) from None
    finally:
        buffers.give(sum(map(len, chunks)))
    buffers.take(len(body))
    try:
        yield body
    finally:
        buffers.give(len(body))


async def _collect(chunks: list[bytes], receive: Receive, max_bytes: int, buffers: Buffers) -> None:
    """Append to `chunks` until the body is complete; each is counted in `buffers`."""
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client hung up while it sent the body")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise PayloadTooLarge(_too_large("more than " + str(max_bytes), max_bytes))
        buffers.take(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return


def _too_large(size: str, max_bytes: int) -> str:
    return (
        f"the body has {size} bytes, at most {max_bytes} are taken: send fewer images in a "
        "request, or as application/x-npy"
    )
