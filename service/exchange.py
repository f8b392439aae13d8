"""One request to an operation, from bytes to bytes: the only code on the hot path that knows HTTP.

A plain ASGI application: negotiate, read within limits, parse, run, encode, count. While the
operation runs somebody listens for the client's disconnect and cancels it, so that rows nobody
waits for are not computed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.answers import Answer
from service.bodies import Buffers, read_body
from service.errors import (
    ClientGone,
    DeadlineExceeded,
    IafvaeError,
    InvalidInput,
)
from service.intake import Intake, parse_body
from service.media import negotiate
from service.operations import Call, ModelRuntime
from service.problems import problem_response, unexpected
from service.registry import Registry
from service.schemas import OptionsT, parse_options
from service.settings import Settings
from service.telemetry import Telemetry

__all__ = ["Context", "Exchange", "Operation", "Work"]

T = TypeVar("T")
P = ParamSpec("P")
TIMEOUT_HEADER = "x-iafvae-timeout-seconds"


@dataclass(frozen=True, kw_only=True)
class Context:
    """What requests share in one application."""

    settings: Settings
    registry: Registry
    telemetry: Telemetry
    buffers: Buffers
    decoders: Executor


@dataclass(frozen=True, kw_only=True)
class Work(Generic[OptionsT]):
    """A request that is ready to run."""

    runtime: ModelRuntime
    options: OptionsT
    intake: Intake
    media_type: str
    call: Call
    context: Context

    @property
    def settings(self) -> Settings:
        """The application's."""
        return self.context.settings

    async def beside(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function` in a thread, so that long work on bytes does not hold other requests up."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.context.decoders, partial(function, *args, **kwargs))


@dataclass(frozen=True, kw_only=True)
class Operation(Generic[OptionsT]):
    """An operation as HTTP sees it: name, options, its payload's field, what it can answer."""

    name: str
    options: type[OptionsT]
    payload: str | None
    offers: tuple[str, ...]
    handler: Callable[[Work[OptionsT]], Awaitable[Answer]]


class Exchange:
    """The ASGI application that serves `operation`."""

    def __init__(self, operation: Operation[Any], context: Context) -> None:
        self._operation, self._context = operation, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; an error becomes a problem document."""
        started = time.perf_counter()
        record = _Record()
        try:
            answer = await self._answer(scope, receive, record)
            headers = _headers(answer, record.runtime)
        except ClientGone:
            record.outcome = ClientGone("").type
        except IafvaeError as error:
            record.outcome = error.type
            await _problem(error, scope, record)(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer
            fault = unexpected(error, scope)
            record.outcome = fault.type
            await _problem(fault, scope, record)(scope, receive, send)
        else:
            record.answer = answer
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": answer.body})
        self._count(record, time.perf_counter() - started, scope)

    async def _answer(self, scope: Scope, receive: Receive, record: _Record) -> Answer:
        operation, settings = self._operation, self._context.settings
        headers = Headers(scope=scope)
        media_type = negotiate(", ".join(headers.getlist("accept")), operation.offers)
        call = Call(caller=_caller(scope), deadline=_deadline(headers, settings))
        async with read_body(
            headers,
            receive,
            max_bytes=settings.max_body_bytes,
            timeout_seconds=settings.body_timeout_seconds,
            buffers=self._context.buffers,
        ) as body:
            intake = await parse_body(
                headers,
                scope["query_string"],
                body,
                payload=operation.payload,
                max_items=settings.max_images,
            )
            options = parse_options(operation.options, intake.options, text=intake.text)
            record.runtime = runtime = self._context.registry.get(options.model)
            work: Work[Any] = Work(
                runtime=runtime,
                options=options,
                intake=intake,
                media_type=media_type,
                call=call,
                context=self._context,
            )
            async with _cancelled_with_client(receive), _until(call.deadline):
                return await operation.handler(work)

    def _count(self, record: _Record, seconds: float, scope: Scope) -> None:
        telemetry, operation, answer = self._context.telemetry, self._operation.name, record.answer
        model = record.runtime.name if record.runtime is not None else ""
        timing = answer.timing if answer is not None else None
        telemetry.request(
            operation,
            model,
            record.outcome,
            seconds=seconds,
            queue_seconds=timing.queue_seconds if timing else None,
            compute_seconds=timing.compute_seconds if timing else None,
        )
        if answer is not None and answer.non_finite:
            telemetry.non_finite(operation, model, answer.non_finite)
        log = scope.get("state", {}).get("log")
        if log is not None:
            log |= {"operation": operation, "model": model, "outcome": record.outcome}
            if timing is not None:
                log["queue_seconds"] = round(timing.queue_seconds, 6)
                log["compute_seconds"] = round(timing.compute_seconds, 6)


@dataclass
class _Record:
    """What became of a request, as far as it is known, for the metrics."""

    outcome: str = "ok"
    runtime: ModelRuntime | None = None
    answer: Answer | None = None


@contextlib.asynccontextmanager
async def _cancelled_with_client(receive: Receive) -> AsyncGenerator[None, None]:
    """Cancel the body when the client disconnects, and raise ClientGone in its stead.

    Whoever listens runs only while the body is suspended, so a cancellation always lands in it.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - we are in a coroutine
    gone = False

    async def listen() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    listener = asyncio.create_task(listen())
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise ClientGone("the client hung up before the answer was ready") from None
    finally:
        listener.cancel()


@contextlib.asynccontextmanager
async def _until(deadline: float | None) -> AsyncGenerator[None, None]:
    """Bound decoding and encoding as well; the scheduler keeps rows to the same deadline."""
    try:
        async with asyncio.timeout_at(deadline):  # the event loop's clock is time.monotonic
            yield
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the answer was ready") from None


def _problem(error: IafvaeError, scope: Scope, record: _Record) -> Response:
    """The problem document, with who refused where that is known."""
    response = problem_response(error, scope)
    if record.runtime is not None:
        response.raw_headers.extend(model_headers(record.runtime))
    return response


def _caller(scope: Scope) -> str:
    """Whose turn it is counted as: a connection's."""
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else ""


def _deadline(headers: Headers, settings: Settings) -> float:
    """When the answer is worthless, on the monotonic clock: the caller's wish within our bound."""
    text = headers.get(TIMEOUT_HEADER)
    seconds = settings.timeout_seconds
    if text is not None:
        try:
            wish = float(text)
        except ValueError:
            wish = math.nan
        if not (math.isfinite(wish) and wish >= 0):
            raise InvalidInput(f"{TIMEOUT_HEADER}: {text[:40]!r} is not a number of seconds")
        if wish == 0:
            raise DeadlineExceeded(f"{TIMEOUT_HEADER} is 0: allow the work some time")
        seconds = min(wish, seconds)
    return time.monotonic() + seconds


def _headers(answer: Answer, runtime: ModelRuntime | None) -> list[tuple[bytes, bytes]]:
    assert runtime is not None  # noqa: S101 - there is an answer, so a model gave it
    timing = answer.timing
    headers = [
        (b"content-type", answer.media_type.encode("latin-1")),
        (b"content-length", b"%d" % len(answer.body)),
        *model_headers(runtime),
        (b"x-iafvae-queue-seconds", b"%.6f" % timing.queue_seconds),
        (b"x-iafvae-compute-seconds", b"%.6f" % timing.compute_seconds),
    ]
    if answer.seed is not None:
        headers.append((b"x-iafvae-seed", b"%d" % answer.seed))
    if answer.altered:
        headers.append((b"x-iafvae-altered", b"%d" % answer.altered))
    if answer.non_finite:
        headers.append((b"x-iafvae-non-finite", b"%d" % answer.non_finite))
    return headers


def model_headers(runtime: ModelRuntime) -> list[tuple[bytes, bytes]]:
    """Who computed an answer."""
    return [
        (b"x-iafvae-model", runtime.name.encode("latin-1")),
        (b"x-iafvae-version", runtime.bundle.manifest.version.encode("latin-1")),
        (b"x-iafvae-bundle", runtime.bundle.hash.encode("latin-1")),
        (b"x-iafvae-provider", runtime.provider.encode("latin-1")),
        (b"x-iafvae-precision", runtime.precision.encode("latin-1")),
    ]
