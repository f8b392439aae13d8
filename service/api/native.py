"""``/v1`` as an exchange: negotiate, read within limits, parse, run an operation, encode."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, ParamSpec, TypeVar

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from service.api.exchange import (
    PLAIN,
    Exchange,
    Record,
    Reply,
    model_headers,
    send_pieces,
    send_start,
)
from service.api.exchange import Headers as HeaderList
from service.api.request.body import read_body
from service.api.request.compression import ENCODINGS
from service.api.request.deadline import call_of, until, while_connected
from service.api.request.negotiation import negotiate
from service.api.request.parsing import Intake, parse_body, query_options
from service.api.request.schemas import Options, OptionsT, parse_options
from service.api.response.rendering import Answer
from service.api.state import Context
from service.operations.model import Call, ModelRuntime
from service.settings import Settings

__all__ = ["NativeExchange", "Operation", "Work"]

MAX_REMEMBERED = 256  # bytes of a query
T = TypeVar("T")
P = ParamSpec("P")


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
        """`function` in a thread, awaited until the request's deadline; rows that the scheduler
        has are kept to it there. Raises DeadlineExceeded.
        """
        async with until(self.call.deadline):
            return await self.context.beside(function, *args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Operation(Generic[OptionsT]):
    """An operation as HTTP sees it: name, options, its payload's field, what it can answer.

    optional: the payload may be left out.
    """

    name: str
    options: type[OptionsT]
    payload: str | None
    offers: tuple[str, ...]
    handler: Callable[[Work[OptionsT]], Awaitable[Answer]]
    optional: bool = False


class NativeExchange(Exchange):
    """The ASGI application that serves `operation`."""

    def __init__(self, operation: Operation[Any], context: Context) -> None:
        super().__init__(context, operation.name)
        self._spec = operation

    async def reply(self, scope: Scope, receive: Receive, send: Send, record: Record) -> Reply:
        """As `Exchange.reply`; a streamed answer is sent here but for its end."""
        spec, settings = self._spec, self._context.settings
        headers = Headers(scope=scope)
        media_type = negotiate(", ".join(headers.getlist("accept")), spec.offers)
        call = call_of(scope, headers, settings)
        async with read_body(
            headers,
            receive,
            max_bytes=settings.max_body_bytes,
            timeout_seconds=settings.body_timeout_seconds,
            buffers=self._context.buffers,
            encodings=ENCODINGS,
        ) as sent:
            encoding = headers.get("content-encoding", PLAIN)
            if encoding == PLAIN:  # as almost always, and the context costs some
                work = await self._work(scope, headers, sent, media_type, call, record)
                return await self._answered(work, receive, send, record)
            async with self.decoded(sent, encoding) as body:
                work = await self._work(scope, headers, body, media_type, call, record)
                return await self._answered(work, receive, send, record)

    async def _work(
        self,
        scope: Scope,
        headers: Headers,
        body: bytes,
        media_type: str,
        call: Call,
        record: Record,
    ) -> Work[Any]:
        """What is asked for."""
        spec, query = self._spec, scope["query_string"]
        intake = await parse_body(
            headers,
            query,
            body,
            payload=spec.payload,
            optional=spec.optional,
            max_items=self._context.settings.max_images,
        )
        options = _options(spec.options, intake, query)
        record.runtime = runtime = self._context.registry.get(options.model, options.version)
        return Work(
            runtime=runtime,
            options=options,
            intake=intake,
            media_type=media_type,
            call=call,
            context=self._context,
        )

    async def _answered(
        self, work: Work[Any], receive: Receive, send: Send, record: Record
    ) -> Reply:
        """What comes of it; all of a stream but its end is sent here."""
        async with while_connected(receive):
            answer = await self._spec.handler(work)
            reply = _reply(answer, work.runtime, record.operation)
            if answer.rest is not None:
                record.timing, record.started = answer.timing, True
                async with aclosing(answer.rest):
                    await send_start(send, reply.headers)
                    await send_pieces(send, answer.body, answer.rest)
        return reply


def _options(kind: type[OptionsT], intake: Intake, query: bytes) -> OptionsT:
    """The request's options; those of short queries are remembered, for callers repeat them."""
    if intake.options is not None:
        return parse_options(kind, intake.options, text=intake.text)
    if len(query) > MAX_REMEMBERED:
        return parse_options(kind, query_options(query), text=True)
    options = _remembered(kind, query)
    assert isinstance(options, kind)  # noqa: S101 - lru_cache has forgotten the type
    return options


@lru_cache(maxsize=512)
def _remembered(kind: type[Options], query: bytes) -> Options:
    return parse_options(kind, query_options(query), text=True)


def _reply(answer: Answer, runtime: ModelRuntime, operation: str) -> Reply:
    return Reply(
        headers=_headers(answer, runtime, operation),
        body=answer.body if answer.rest is None else b"",
        timing=answer.timing,
        non_finite=answer.non_finite,
    )


def _headers(answer: Answer, runtime: ModelRuntime, operation: str) -> HeaderList:
    timing = answer.timing
    headers = [
        (b"content-type", answer.media_type.encode("latin-1")),
        (b"content-length", b"%d" % (answer.length or len(answer.body))),
        *model_headers(runtime, operation),
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
