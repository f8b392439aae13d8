"""One request to an operation, from bytes to bytes, whatever the protocol: errors, counts, sending.

A plain ASGI application. A protocol says how a request becomes a reply; while the operation runs
somebody listens for the client's disconnect and cancels it, so that rows nobody waits for are not
computed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.request.compression import decompress
from service.api.response.problems import problem_response, unexpected
from service.api.state import Context
from service.errors import ClientGone, IafvaeError, ShuttingDown
from service.operations.model import ModelRuntime
from service.operations.results import Timing

__all__ = [
    "INLINE_BYTES",
    "PLAIN",
    "Exchange",
    "Headers",
    "Record",
    "Reply",
    "model_headers",
    "send_pieces",
    "send_start",
]

logger = logging.getLogger("iafvae")
Headers = list[tuple[bytes, bytes]]
PLAIN = "identity"  # the encoding of a body that has none
INLINE_BYTES = 2**16  # more than this is coded beside the event loop
# Zeros become a thousand times as many: of so few compressed bytes, no more than INLINE_BYTES.
INLINE_COMPRESSED = INLINE_BYTES // 1024


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What goes out after everything was computed, or after a stream: the last of the body.

    non_finite: results that are no numbers, for the metrics.
    """

    headers: Headers
    body: bytes
    timing: Timing
    non_finite: int = 0


@dataclass(kw_only=True)
class Record:
    """What is known of a request by now: for the metrics, and for what an error says."""

    operation: str
    outcome: str = "ok"
    runtime: ModelRuntime | None = None
    timing: Timing | None = None
    non_finite: int = 0
    started: bool = False  # the status and the headers have gone out


class Exchange(ABC):
    """The ASGI application of one kind of request."""

    def __init__(self, context: Context, operation: str) -> None:
        self._context, self._operation = context, operation

    @abstractmethod
    async def reply(self, scope: Scope, receive: Receive, send: Send, record: Record) -> Reply:
        """Read the request, run the operation, encode; raises IafvaeError."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; an error becomes a document that says what was wrong."""
        began = time.perf_counter()
        record = Record(operation=self._operation)
        try:
            reply = await self.reply(scope, receive, send, record)
        except ClientGone as error:
            record.outcome = error.type
        except IafvaeError as error:
            await self._fail(error, scope, receive, send, record)
        except asyncio.CancelledError:  # by the server, which does not wait any longer
            over = ShuttingDown("the service has stopped before the answer: send the request again")
            await self._fail(over, scope, receive, send, record)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer
            await self._fail(unexpected(error, scope), scope, receive, send, record)
        else:
            record.timing, record.non_finite = reply.timing, reply.non_finite
            if not record.started:
                await send_start(send, reply.headers)
            await send({"type": "http.response.body", "body": reply.body})
        self._count(record, time.perf_counter() - began, scope)

    @asynccontextmanager
    async def decoded(self, sent: bytes, encoding: str) -> AsyncGenerator[bytes, None]:
        """The body without its encoding ("gzip", "deflate", or none), counted like one that came
        without. Raises PayloadTooLarge, MalformedBody, Overloaded.
        """
        if encoding == PLAIN:
            yield sent
            return
        most = self._context.settings.max_body_bytes
        if len(sent) <= INLINE_COMPRESSED:
            body = decompress(sent, encoding, most)
        else:
            body = await self._context.beside(decompress, sent, encoding, most)
        self._context.buffers.take(len(body))
        try:
            yield body
        finally:
            self._context.buffers.give(len(body))

    async def _fail(
        self, error: IafvaeError, scope: Scope, receive: Receive, send: Send, record: Record
    ) -> None:
        record.outcome = error.type
        if record.started:
            # Nothing that is sent now would be understood. An application that returns with its
            # answer incomplete has the connection closed, and the length that was promised, or the
            # last chunk that is missing, tells the client.
            logger.warning(
                "%s: the answer was broken off: %s",
                scope["path"],
                error,
                extra={"fields": {"request_id": scope.get("state", {}).get("request_id", "")}},
            )
            return
        await _problem(error, scope, record)(scope, receive, send)

    def _count(self, record: Record, seconds: float, scope: Scope) -> None:
        telemetry, operation, timing = self._context.telemetry, record.operation, record.timing
        model = record.runtime.name if record.runtime is not None else ""
        telemetry.request(
            operation,
            model,
            record.outcome,
            seconds=seconds,
            queue_seconds=timing.queue_seconds if timing else None,
            compute_seconds=timing.compute_seconds if timing else None,
        )
        if record.non_finite:
            telemetry.non_finite(operation, model, record.non_finite)
        log = scope.get("state", {}).get("log")
        if log is not None:
            log |= {"operation": operation, "model": model, "outcome": record.outcome}
            if timing is not None:
                log["queue_seconds"] = round(timing.queue_seconds, 6)
                log["compute_seconds"] = round(timing.compute_seconds, 6)


async def send_start(send: Send, headers: Headers) -> None:
    """The head of an answer that is no error."""
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_pieces(send: Send, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
    """Send `first`, and what `rest` computes, but not the end of the body.

    While one piece is sent the next is computed, and no further one: `send` returns when the
    client has taken enough of what came before, so a slow client holds the computation up.
    """
    piece: bytes | None = first
    while piece is not None:
        ahead = asyncio.ensure_future(anext(rest, None))
        try:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await ahead
        finally:
            ahead.cancel()
            await asyncio.wait([ahead])
            if not ahead.cancelled():
                ahead.exception()  # known already, or of no interest any more


def _problem(error: IafvaeError, scope: Scope, record: Record) -> Response:
    """The document of `error`, with who refused where that is known."""
    response = problem_response(error, scope)
    if record.runtime is not None:
        response.raw_headers.extend(model_headers(record.runtime, record.operation))
    return response


def model_headers(runtime: ModelRuntime, operation: str) -> Headers:
    """Who computed an answer to `operation`."""
    return [
        (b"x-iafvae-model", runtime.name.encode("latin-1")),
        (b"x-iafvae-version", runtime.bundle.manifest.version.encode("latin-1")),
        (b"x-iafvae-bundle", runtime.bundle.hash.encode("latin-1")),
        (b"x-iafvae-provider", runtime.provider_of(operation).encode("latin-1")),
        (b"x-iafvae-precision", runtime.precision_of(operation).encode("latin-1")),
    ]
