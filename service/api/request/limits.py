"""How large a request may be, and how long it lasts: bytes, a deadline, a client that hangs up.

Limits of bytes are checked in this order, each before the work it protects from: the body's
declared length, the bytes counted while they stream in, those of all bodies together, and what they
become when they are decompressed.
"""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Awaitable, Callable
from types import TracebackType

from starlette.datastructures import Headers
from starlette.types import Receive

from service.api.request.compression import (
    ENCODINGS,
    PLAIN,
    WINDOW_BITS,
    content_encoding,
    decompress,
)
from service.api.security.admission import Shares
from service.errors import (
    ClientGone,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMedia,
)

__all__ = ["INLINE_BYTES", "TIMEOUT_HEADER", "Body", "timeout_of", "until", "while_connected"]

INLINE_BYTES = 2**16  # more than this is coded beside the event loop
# Zeros become a thousand times as many: of so few compressed bytes, no more than INLINE_BYTES.
INLINE_COMPRESSED = INLINE_BYTES // 1024
TIMEOUT_HEADER = "x-iafvae-timeout-seconds"
# Most answers are there before anybody could hang up: only later somebody listens.
LISTEN_SECONDS = 0.1

Beside = Callable[..., Awaitable[bytes]]


class Body:
    """One request's body, counted as `holder`'s in `shares` until `release`."""

    __slots__ = ("_bytes", "_held", "_most", "holder")

    def __init__(self, shares: Shares, holder: str, max_bytes: int) -> None:
        self._bytes, self.holder, self._most = shares, holder, max_bytes
        self._held = 0

    async def read(
        self, headers: Headers, receive: Receive, *, timeout_seconds: float, beside: Beside
    ) -> bytes:
        """All of it, decompressed; long work goes through `beside`.

        Raises:
            Overloaded: all bodies together are above the bound, or this holder's are.
            PayloadTooLarge: declared or counted above the limit; the rest is not read.
            RequestTimeout: not complete after `timeout_seconds`.
            ClientGone: hung up before it was complete.
            UnsupportedMedia: compressed in an unknown way.
            MalformedBody: not what its encoding says.
        """
        encoding = headers.get("content-encoding", PLAIN)
        if encoding != PLAIN and (encoding := content_encoding(encoding)) not in (
            PLAIN,
            *WINDOW_BITS,
        ):
            raise UnsupportedMedia(
                f"send the body compressed with {' or '.join(ENCODINGS)}, or without "
                "Content-Encoding: others are unknown"
            )
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._most:
            raise PayloadTooLarge(_too_large(declared, self._most))
        body = await self._collect(receive, timeout_seconds)
        return body if encoding == PLAIN else await self._decompressed(body, encoding, beside)

    def release(self) -> None:
        """Count it no more."""
        if self._held:
            self._bytes.give(self.holder, self._held)
            self._held = 0

    async def _collect(self, receive: Receive, timeout_seconds: float) -> bytes:
        body = io.BytesIO()  # grows where it is; what is joined is there twice
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone("the client hung up while it sent the body")
                    chunk: bytes = message.get("body", b"")
                    if self._held + len(chunk) > self._most:
                        raise PayloadTooLarge(_too_large(f"more than {self._most}", self._most))
                    if chunk:
                        self._take(len(chunk))
                    if not message.get("more_body", False):
                        if not body.tell():
                            return chunk
                        body.write(chunk)
                        return body.getvalue()
                    body.write(chunk)
        except TimeoutError:
            raise RequestTimeout(
                f"the body was not complete after {timeout_seconds:g} s: send it faster, or less"
            ) from None

    async def _decompressed(self, sent: bytes, encoding: str, beside: Beside) -> bytes:
        if len(sent) <= INLINE_COMPRESSED:
            body = decompress(sent, encoding, self._most)
        else:
            body = await beside(decompress, sent, encoding, self._most)
        self._take(len(body))
        return body

    def _take(self, size: int) -> None:
        if not self._bytes.take(self.holder, size):
            raise Overloaded(
                f"bodies of {self._bytes.held} bytes are being worked on, at most "
                f"{self._bytes.capacity} are held at once, of which nobody may have more than is "
                "free: send the request again later"
            )
        self._held += size


def _too_large(size: str, max_bytes: int) -> str:
    return (
        f"the body has {size} bytes, at most {max_bytes} are taken: send fewer images in a "
        "request, or as application/x-npy"
    )


def timeout_of(headers: Headers, most: float) -> float:
    """The seconds that a request may take: the caller's wish within `most`.

    Raises InvalidInput, DeadlineExceeded.
    """
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return most
    try:
        wish = float(text)
    except ValueError:
        wish = math.nan
    if not (math.isfinite(wish) and wish >= 0):
        raise InvalidInput(f"{TIMEOUT_HEADER}: {text[:40]!r} is not a number of seconds")
    if wish == 0:
        raise DeadlineExceeded(f"{TIMEOUT_HEADER} is 0: allow the work some time")
    return min(wish, most)


class while_connected:  # noqa: N801 - a context manager, read as words
    """Cancel the body when the client disconnects, and raise ClientGone in its stead.

    Whoever listens runs only while the body is suspended, so a cancellation always lands in it.
    """

    # A class, as `until` is: contextlib's generators cost several times as much, on every request.
    __slots__ = ("_gone", "_listener", "_receive", "_task", "_timer")

    def __init__(self, receive: Receive) -> None:
        self._receive, self._gone = receive, False
        self._listener: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(LISTEN_SECONDS, self._begin)

    def _begin(self) -> None:
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        assert self._task is not None  # noqa: S101 - we were entered in a coroutine
        self._task.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._listener is None:
            return
        self._listener.cancel()
        self._listener = None  # its last error holds us
        if self._gone and isinstance(error, asyncio.CancelledError) and self._task is not None:
            self._task.uncancel()
            raise ClientGone("the client hung up before the answer was ready") from None


class until:  # noqa: N801 - a context manager, read as words
    """Bound decoding and encoding beside the loop; the scheduler keeps rows to the deadline."""

    __slots__ = ("_timeout",)

    def __init__(self, deadline: float | None) -> None:
        self._timeout = asyncio.timeout_at(deadline)  # the event loop's clock is time.monotonic

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the answer was ready") from None
