"""One request to an operation, from bytes to bytes: the route that FastAPI finds for it.

`OperationRoute` declares an operation's options, answers and errors for the documentation as every
FastAPI route does, and handles the request itself: FastAPI would read and validate the body before
any limit is looked at, and takes ten times as long.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from service.api.request.limits import INLINE_BYTES, OperationRequest, while_connected
from service.api.request.negotiation import negotiate
from service.api.request.parsing import parse_body
from service.api.request.schemas import Options
from service.api.response.problems import PROBLEMS, problem_of, problem_response, unexpected
from service.api.response.rendering import Answer
from service.api.response.streaming import StreamedAnswer
from service.api.state import AppState
from service.errors import ClientGone, IafvaeError, ShuttingDown
from service.operations.model import Model

if TYPE_CHECKING:
    from service.tracing import Tracer

__all__ = ["OperationRoute"]

logger = logging.getLogger("iafvae")
Headers = list[tuple[bytes, bytes]]
# In a server's span, what is the caller's fault is no error (OpenTelemetry's conventions for HTTP).
FAULTS = {problem.type for problem in PROBLEMS.values() if problem.status >= 500}
PARTS = ("parse", "queue", "compute", "encode")  # of a request, one after another


def _let_go(error: BaseException | None) -> None:
    """Drop the frames that `error` came through.

    They hold the request's body, and often the error: a circle of megabytes, which would stay until
    somebody looks for garbage, and that is seldom.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


class OperationRoute(APIRoute):
    """``POST path``, answered by ``endpoint(request, options)``.

    options: their class; payload: the body's field ("images", "latents", "prior_eps"), which may be
    left out where it is `optional`; offers: media types of the answer, in the server's order of
    preference; declared: what FastAPI documents.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Awaitable[Answer]],
        shared: AppState,
        *,
        options: type[Options] = Options,
        payload: str = "",
        optional: bool = False,
        offers: tuple[str, ...] = (),
        **declared: Any,
    ) -> None:
        super().__init__(path, endpoint, methods=["POST"], **declared)
        self.app = self.respond
        self.operation = endpoint.__name__
        self.options, self.payload, self.optional = options, payload, optional
        self.offers = offers
        self._endpoint, self._shared = endpoint, shared
        self._headers: WeakKeyDictionary[Model, Headers] = WeakKeyDictionary()

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; an error becomes a document that says what was wrong."""
        request = OperationRequest(scope, receive, self._shared, self.operation)
        outcome, answer = "ok", None
        failed: BaseException | None = None
        try:
            request.shared.admission.check(request.holder)
            answer = await self.answer(request, send)
        except ClientGone as error:
            outcome, failed = problem_of(error).type, error
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - all get an answer
            failed = error
            outcome = await self._refuse(request, error, send)
        finally:
            request.release()
            _let_go(failed)
        self._count(request, outcome, answer, time.perf_counter() - request.began)

    async def answer(self, request: OperationRequest, send: Send) -> Answer:
        """Negotiate, read, parse, find the model, run the operation, send; raises IafvaeError."""
        accept = ", ".join(request.headers.getlist("accept"))
        request.media_type = negotiate(accept, self.offers)
        request.set_deadline()
        data = await request.read()
        options, request.payload = await parse_body(
            request, self.options, data, payload=self.payload, optional=self.optional
        )
        request.parsed = time.perf_counter()
        with self._shared.registry.find(options.model, options.version) as request.model:
            async with while_connected(request.receive):
                answer = await self._endpoint(request, options)
                return await self.send(answer, request, send)

    async def send(self, answer: Answer, request: OperationRequest, send: Send) -> Answer:
        """Send `answer`, with who computed it. Raises Overloaded where too many are not read."""
        if isinstance(answer, StreamedAnswer):
            # A piece that is sent and one that is made, until the client has the last.
            request.hold(2 * len(answer.body))
            request.scope["state"]["counted"] = len(answer.body)
        elif len(answer.body) > INLINE_BYTES:
            # Until the server's transport counts it, or the client has it.
            request.hold(len(answer.body))
        now, result = time.perf_counter(), answer.result
        parse, rest = request.parsed - request.began, now - request.parsed
        # Batches that ran at once have more seconds together than there were.
        queue = min(result.queue_seconds, rest)
        compute = min(result.compute_seconds, rest - queue)
        encode = rest - queue - compute
        request.parts = tuple(zip(PARTS, (parse, queue, compute, encode), strict=True))
        answer.raw_headers += [
            *self._who(request.model),
            (
                b"server-timing",
                b"parse;dur=%.2f, queue;dur=%.2f, compute;dur=%.2f, encode;dur=%.2f, total;dur=%.2f"
                % (1e3 * parse, 1e3 * queue, 1e3 * compute, 1e3 * encode, 1e3 * (parse + rest)),
            ),
        ]
        request.started = True
        await answer(request.scope, request.receive, send)
        return answer

    def _who(self, model: Model) -> Headers:
        """Headers that say who answers, made once."""
        headers = self._headers.get(model)
        if headers is None:
            headers = self._headers[model] = [
                (f"x-iafvae-{name}".encode("ascii"), value.encode("latin-1"))
                for name, value in model.who.items()
            ]
        return headers

    async def _refuse(self, request: OperationRequest, error: BaseException, send: Send) -> str:
        """Answer with what was wrong; gives the outcome.

        Where half an answer has gone out, nothing that is sent now would be understood. An
        application that returns then has the connection closed, and the length that was promised,
        or the last chunk that is missing, tells the client.
        """
        scope = request.scope
        if not isinstance(error, Exception):
            # Cancelled by the server or registry, which wait no longer.
            error = ShuttingDown("the model has stopped before the answer: send the request again")
        elif not isinstance(error, IafvaeError):
            error = unexpected(error, scope)
        if request.started:
            logger.warning(
                "%s: the answer was broken off: %s",
                scope["path"],
                error,
                extra={"fields": {"request_id": scope["state"].get("request_id", "")}},
            )
            return problem_of(error).type
        response = problem_response(error, scope)
        if hasattr(request, "model"):
            response.raw_headers.extend(self._who(request.model))
        await response(scope, request.receive, send)
        return problem_of(error).type

    def _count(
        self, request: OperationRequest, outcome: str, answer: Answer | None, seconds: float
    ) -> None:
        metrics, operation = self._shared.metrics, request.operation
        model = request.model.name if hasattr(request, "model") else ""
        times: dict[str, float] = {}
        if answer is not None:
            times["queue_seconds"] = answer.result.queue_seconds
            times["compute_seconds"] = answer.result.compute_seconds
            if answer.non_finite:
                metrics.non_finite.labels(operation, model).inc(answer.non_finite)
        tracer = self._shared.tracer
        trace = None if tracer is None else _traced(tracer, request, model, outcome, seconds)
        metrics.request(operation, model, outcome, seconds=seconds, trace=trace, **times)
        log = request.scope["state"].get("log")
        if log is not None:
            log |= {"operation": operation, "model": model, "outcome": outcome}
            log |= {name: round(value, 6) for name, value in times.items()}


def _traced(
    tracer: Tracer, request: OperationRequest, model: str, outcome: str, seconds: float
) -> str | None:
    """Export the request's spans; gives the id of its trace."""
    attributes = {
        "http.request.method": "POST",
        "url.path": request.scope["path"],
        "iafvae.operation": request.operation,
        "iafvae.model": model,
        "iafvae.outcome": outcome,
        "iafvae.request_id": request.scope["state"].get("request_id", ""),
    }
    name = f"{request.operation} {model}".rstrip()
    failed = outcome in FAULTS
    return tracer.request(request.headers, name, seconds, request.parts, attributes, failed=failed)
