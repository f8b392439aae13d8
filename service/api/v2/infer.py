"""``infer`` of the Open Inference Protocol over HTTP: headers, compressed bodies, limits."""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from service.api.exchange import INLINE_BYTES, PLAIN, Exchange, Record, Reply, model_headers
from service.api.request.body import read_body
from service.api.request.compression import ENCODINGS, accepted_encoding, compress
from service.api.request.deadline import call_of, until, while_connected
from service.api.request.negotiation import JSON
from service.api.state import Context
from service.api.v2.codec import InferRequest, encode_response, parse_request
from service.api.v2.models import Task, find_model
from service.errors import InvalidInput, NotFound
from service.operations.results import Call

__all__ = ["HEADER_LENGTH", "InferExchange"]

HEADER_LENGTH = "inference-header-content-length"
BINARY = "application/octet-stream"
LEAST_COMPRESSED = 1024  # smaller answers gain nothing


class InferExchange(Exchange):
    """The ASGI application of ``/v2/models/{model}[/versions/{version}]/infer``."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, "infer")

    async def reply(self, scope: Scope, receive: Receive, send: Send, record: Record) -> Reply:  # noqa: ARG002
        """As `Exchange.reply`."""
        context, headers = self._context, Headers(scope=scope)
        runtime, model = find_model(context.registry, *_named(scope["path"]))
        record.runtime, record.operation = runtime, model.operation
        header_length = _header_length(headers)
        call = call_of(scope, headers, context.settings)
        async with (
            read_body(
                headers,
                receive,
                max_bytes=context.settings.max_body_bytes,
                timeout_seconds=context.settings.body_timeout_seconds,
                buffers=context.buffers,
                encodings=ENCODINGS,
            ) as sent,
            self.decoded(sent, headers.get("content-encoding", PLAIN)) as body,
        ):
            request = parse_request(
                body,
                header_length,
                inputs=model.inputs,
                outputs=model.outputs,
                parameters=model.parameters,
            )
            call = _sooner(call, request)
            task = Task(runtime=runtime, request=request, call=call, settings=context.settings)
            async with while_connected(receive), until(call.deadline):
                response, timing = await model.run(task)
                content, length = encode_response(
                    response, request, model=model.name, version=model.version
                )
                encoding = accepted_encoding(", ".join(headers.getlist("accept-encoding")))
                if encoding is not None and len(content) >= LEAST_COMPRESSED:
                    content = await self._compressed(content, encoding)
                else:
                    encoding = None
        return Reply(
            headers=[
                (b"content-type", (JSON if length is None else BINARY).encode("ascii")),
                (b"content-length", b"%d" % len(content)),
                (b"vary", b"accept-encoding"),
                *([(b"content-encoding", encoding.encode("ascii"))] if encoding else []),
                *([] if length is None else [(HEADER_LENGTH.encode("ascii"), b"%d" % length)]),
                *model_headers(runtime, record.operation),
                (b"x-iafvae-queue-seconds", b"%.6f" % timing.queue_seconds),
                (b"x-iafvae-compute-seconds", b"%.6f" % timing.compute_seconds),
            ],
            body=content,
            timing=timing,
        )

    async def _compressed(self, content: bytes, encoding: str) -> bytes:
        if len(content) <= INLINE_BYTES:
            return compress(content, encoding)
        return await self._context.beside(compress, content, encoding)


def _named(path: str) -> tuple[str, str | None]:
    """Model and version in a path that begins with ``/v2/models/`` and ends with ``/infer``."""
    parts = path.split("/")[3:-1]
    if len(parts) == 1:
        return parts[0], None
    if len(parts) == 3 and parts[1] == "versions":
        return parts[0], parts[2]
    raise NotFound(f"there is nothing at {path[:200]}; /docs lists what there is")


def _header_length(headers: Headers) -> int | None:
    text = headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 15:
        raise InvalidInput(f"{HEADER_LENGTH}: {text[:40]!r} is no number of bytes")
    return int(text)


def _sooner(call: Call, request: InferRequest) -> Call:
    """With the protocol's own ``timeout`` parameter, in microseconds, where there is one."""
    timeout = request.parameters.get("timeout")
    if timeout is None or call.deadline is None:
        return call
    if type(timeout) is not int or timeout < 0:
        raise InvalidInput("timeout must be a whole number of microseconds")
    if timeout == 0:
        return call
    return Call(call.caller, min(call.deadline, time.monotonic() + 1e-6 * timeout))
