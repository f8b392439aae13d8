"""The bytes of a request's body, within their limits.

Limits are checked in this order, each before the work it protects from: the body's declared length,
the bytes counted while they stream in, and those of all bodies together.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

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


class read_body:  # noqa: N801 - a context manager, read as words
    """The whole body, counted in `buffers` until the context ends.

    encodings: that it may be compressed with; it is given as it came.

    Raises:
        Overloaded: all bodies together are above the bound of `buffers`.
        PayloadTooLarge: declared or counted above `max_bytes`; the rest is not read.
        RequestTimeout: not complete after `timeout_seconds`.
        ClientGone: hung up before it was complete.
        UnsupportedMedia: compressed in another way.
    """

    # A class: contextlib's generators cost several times as much, on every request.
    def __init__(
        self,
        headers: Headers,
        receive: Receive,
        *,
        max_bytes: int,
        timeout_seconds: float,
        buffers: Buffers,
        encodings: tuple[str, ...] = (),
    ) -> None:
        self._headers, self._receive, self._encodings = headers, receive, encodings
        self._max_bytes, self._timeout_seconds = max_bytes, timeout_seconds
        self._buffers, self._held = buffers, 0

    async def __aenter__(self) -> bytes:
        headers, most = self._headers, self._max_bytes
        if headers.get("content-encoding", "identity") not in ("identity", *self._encodings):
            taken = " or ".join(self._encodings)
            with_ = f"compressed with {taken}, or " if taken else ""
            raise UnsupportedMedia(
                f"send the body {with_}without Content-Encoding: others are unknown"
            )
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > most:
            raise PayloadTooLarge(_too_large(declared, most))
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._collect()
        except TimeoutError:
            self._give()
            raise RequestTimeout(
                f"the body was not complete after {self._timeout_seconds:g} s: send it faster, or "
                "less"
            ) from None
        except BaseException:
            self._give()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give()

    def _give(self) -> None:
        self._buffers.give(self._held)
        self._held = 0

    async def _collect(self) -> bytes:
        """All of it; each chunk is counted when it comes."""
        chunks: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone("the client hung up while it sent the body")
            chunk: bytes = message.get("body", b"")
            if self._held + len(chunk) > self._max_bytes:
                raise PayloadTooLarge(_too_large(f"more than {self._max_bytes}", self._max_bytes))
            self._buffers.take(len(chunk))
            self._held += len(chunk)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(size: str, max_bytes: int) -> str:
    return (
        f"the body has {size} bytes, at most {max_bytes} are taken: send fewer images in a "
        "request, or as application/x-npy"
    )
