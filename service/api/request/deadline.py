"""How long a request lasts: until its deadline, or until its client hangs up."""

from __future__ import annotations

import asyncio
import math
import time
from types import TracebackType

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from service.errors import ClientGone, DeadlineExceeded, InvalidInput
from service.operations.results import Call
from service.settings import Settings

__all__ = ["TIMEOUT_HEADER", "call_of", "until", "while_connected"]

TIMEOUT_HEADER = "x-iafvae-timeout-seconds"


def call_of(scope: Scope, headers: Headers, settings: Settings) -> Call:
    """Whose turn a request is counted as, and until when its answer is of use.

    The caller is the holder of its key, else its connection; the deadline the caller's wish within
    our bound, on the monotonic clock. Raises InvalidInput, DeadlineExceeded.
    """
    return Call(caller=_caller(scope), deadline=time.monotonic() + _seconds(headers, settings))


def _caller(scope: Scope) -> str:
    holder = scope.get("state", {}).get("caller")
    if holder is not None:
        return str(holder)
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else ""


def _seconds(headers: Headers, settings: Settings) -> float:
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return settings.timeout_seconds
    try:
        wish = float(text)
    except ValueError:
        wish = math.nan
    if not (math.isfinite(wish) and wish >= 0):
        raise InvalidInput(f"{TIMEOUT_HEADER}: {text[:40]!r} is not a number of seconds")
    if wish == 0:
        raise DeadlineExceeded(f"{TIMEOUT_HEADER} is 0: allow the work some time")
    return min(wish, settings.timeout_seconds)


class while_connected:  # noqa: N801 - a context manager, read as words
    """Cancel the body when the client disconnects, and raise ClientGone in its stead.

    Whoever listens runs only while the body is suspended, so a cancellation always lands in it.
    """

    # A class, as `until` is: contextlib's generators cost several times as much, on every request.
    __slots__ = ("_gone", "_listener", "_receive", "_task")

    def __init__(self, receive: Receive) -> None:
        self._receive, self._gone = receive, False

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
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
        self._listener.cancel()
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
