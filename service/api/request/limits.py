"""How large a request may be, and how long it lasts: bytes, a deadline, a client that hangs up.

Limits of bytes are checked in this order, each before the work it protects from: the body's
declared length, the bytes counted while they stream in, those of all bodies together, and what they
become when they are decompressed.
"""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope

from service.api.request.compression import (
    ENCODINGS,
    PLAIN,
    WINDOW_BITS,
    content_encoding,
    decompress,
)
from service.api.security.admission import caller_of
from service.api.state import AppState
from service.errors import (
    ClientGone,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMedia,
)
from service.operations.model import Model
from service.scheduler.work import Asked

__all__ = ["INLINE_BYTES", "TIMEOUT_HEADER", "OperationRequest", "while_connected"]

INLINE_BYTES = 2**16  # more than this is coded beside the event loop
# Zeros become a thousand times as many: of so few compressed bytes, no more than INLINE_BYTES.
INLINE_COMPRESSED = INLINE_BYTES // 1024
TIMEOUT_HEADER = "x-iafvae-timeout-seconds"
# Most answers are there before anybody could hang up: only later somebody listens.
LISTEN_SECONDS = 0.1
T = TypeVar("T")
P = ParamSpec("P")


class OperationRequest(Request):
    """A request to an operation: who asks, until when, which model answers, and what came in.

    caller: whose turn it is counted as; holder: whose share it takes from; deadline: on the clock
    of `time.monotonic`; asked: caller and deadline, for operations; model: that answers, not there
    before it is known; payload: of the body; media_type: of the answer; started: its head has gone
    out; began, parsed: when it came, and when its input was there as arrays, on the clock of
    `time.perf_counter`; parts: names and seconds of what was done one after another. From `read`
    to `release` its body is counted as the holder's, and it has one of the slots of those that are
    worked on.
    """

    model: Model
    deadline: float
    asked: Asked

    def __init__(self, scope: Scope, receive: Receive, shared: AppState, operation: str) -> None:
        super().__init__(scope, receive)
        self.shared, self.settings, self.operation = shared, shared.settings, operation
        self.caller, self.holder = caller_of(scope)
        self.payload: Any = None
        self.media_type, self.started = "", False
        self.began = self.parsed = time.perf_counter()
        self.parts: tuple[tuple[str, float], ...] = ()
        self._held, self._is_in = 0, False

    def set_deadline(self) -> None:
        """Keep to the caller's wish within the setting. Raises InvalidInput, DeadlineExceeded."""
        seconds, text = self.settings.timeout_seconds, self.headers.get(TIMEOUT_HEADER)
        if text is not None:
            try:
                wish = math.nan if "_" in text else float(text)  # 1_0 is 10 in Python alone
            except ValueError:
                wish = math.nan
            if not (math.isfinite(wish) and wish >= 0):
                raise InvalidInput(f"{TIMEOUT_HEADER}: {text[:40]!r} is not a number of seconds")
            if wish == 0:
                raise DeadlineExceeded(f"{TIMEOUT_HEADER} is 0: allow the work some time")
            seconds = min(wish, seconds)
        self.keep_to(time.monotonic() + seconds)

    def keep_to(self, deadline: float) -> None:
        """Set the deadline, on the clock of `time.monotonic`; a later answer is an error."""
        self.deadline = deadline
        self.asked = {"caller": self.caller, "deadline": deadline}

    async def beside(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in a thread, when it is the holder's turn, and give its result.

        Raises DeadlineExceeded where the request's deadline passes first.
        """
        work = partial(function, *args, **kwargs)
        try:
            async with asyncio.timeout_at(self.deadline):  # the loop's clock is time.monotonic
                return await self.shared.threads.run(work, caller=self.holder)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the answer was ready") from None

    async def read(self) -> bytes:
        """The body, decompressed.

        Raises:
            Overloaded: all bodies together are above the bound, or this holder's are; or there is
                no slot.
            PayloadTooLarge: declared or counted above the limit; the rest is not read.
            RequestTimeout: not complete in time.
            ClientGone: hung up before it was complete.
            UnsupportedMedia: compressed in an unknown way.
            MalformedBody: not what its encoding says.
        """
        given = self.headers.getlist("content-encoding")
        encoding = content_encoding(",".join(given)) if given else PLAIN
        if encoding not in (PLAIN, *WINDOW_BITS):
            raise UnsupportedMedia(
                f"send the body compressed with {' or '.join(ENCODINGS)}, or without "
                "Content-Encoding: others are unknown"
            )
        declared, most = self.headers.get("content-length", "0"), self.settings.max_body_bytes
        if declared.isdecimal() and int(declared.lstrip("0") or "0") > most:  # int() counts zeros
            raise PayloadTooLarge(_too_large(declared, most))
        body = await self._collect(most)
        if encoding != PLAIN:
            if len(body) <= INLINE_COMPRESSED:
                body = decompress(body, encoding, most)
            else:
                body = await self.beside(decompress, body, encoding, most)
            self.hold(len(body))
        if not body:
            self.hold(0)
        self.shared.admission.enter(self.holder)
        self._is_in = True
        return body

    def release(self) -> None:
        """Count the request, its body and its answer no more."""
        if self._is_in:
            self.shared.admission.leave(self.holder)
            self._is_in = False
        if self._held:
            self.shared.admission.bytes.give(self.holder, self._held)
            self._held = 0

    async def _collect(self, most: int) -> bytes:
        body = io.BytesIO()  # grows where it is; what is joined is there twice
        seconds = self.settings.body_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone("the client hung up while it sent the body")
                    chunk: bytes = message.get("body", b"")
                    if self._held + len(chunk) > most:
                        raise PayloadTooLarge(_too_large(f"more than {most}", most))
                    if chunk:
                        self.hold(len(chunk))
                    if not message.get("more_body", False):
                        if not body.tell():
                            return chunk
                        body.write(chunk)
                        return body.getvalue()
                    body.write(chunk)
        except TimeoutError:
            raise RequestTimeout(
                f"the body was not complete after {seconds:g} s: send it faster, or less"
            ) from None

    def hold(self, size: int) -> None:
        """Count `size` bytes more, of the body or the answer, as held. Raises Overloaded."""
        held = self.shared.admission.bytes
        if not held.take(self.holder, size):
            raise Overloaded(
                f"bodies, and answers that wait for their clients, have {held.held} bytes; at most "
                f"{held.capacity} are held at once, of which nobody may have more than is free: "
                "read your answers, and send the request again later"
            )
        self._held += size


def _too_large(size: str, max_bytes: int) -> str:
    return (
        f"the body has {size} bytes, at most {max_bytes} are taken: send fewer images in a "
        "request, or as application/x-npy"
    )


class while_connected:  # noqa: N801 - a context manager, read as words
    """Cancel the body when the client disconnects, and raise ClientGone in its stead.

    Whoever listens runs only while the body is suspended, so a cancellation always lands in it.
    """

    # A class: contextlib's generators cost several times as much, on every request.
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
