"""``infer`` of the Open Inference Protocol over HTTP: headers, compressed bodies, limits."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Send

from service.api.operation_route import OperationRoute
from service.api.request.compression import accepted_encoding, compress
from service.api.request.inputs import INLINE_NUMBERS, INLINE_PIXELS, check_json_numbers
from service.api.request.limits import INLINE_BYTES, OperationRequest, while_connected
from service.api.request.negotiation import MAX_ACCEPT_BYTES
from service.api.response.rendering import Answer
from service.api.state import AppState
from service.api.v2.codec import InferRequest, InferResponse, encode_response, parse_request
from service.api.v2.models import InferModel, InferModels
from service.codecs import JSON
from service.errors import InvalidInput

__all__ = ["BINARY", "HEADER_LENGTH", "InferRoute"]

HEADER_LENGTH = "inference-header-content-length"
BINARY = "application/octet-stream"
LEAST_COMPRESSED = 1024  # smaller answers gain nothing


class InferRoute(OperationRoute):
    """``POST /v2/models/{model}[/versions/{version}]/infer``.

    The model is found before the body is read, and its operation is what counts.
    """

    def __init__(
        self, path: str, endpoint: Any, shared: AppState, models: InferModels, **declared: Any
    ) -> None:
        super().__init__(path, endpoint, shared, **declared)
        self._models = models

    async def answer(self, request: OperationRequest, send: Send) -> Answer:
        """Find the model, read, compute, send."""
        named = request.path_params
        loaded, infer = self._models.find(named["model"], named.get("version"))
        request.operation = infer.operation
        with loaded as request.model:
            request.set_deadline()
            body = await request.read()
            async with while_connected(request.receive):
                return await self.send(await _computed(request, infer, body), request, send)


async def _computed(request: OperationRequest, infer: InferModel, body: bytes) -> Answer:
    """Parse `body`, run `infer`, encode."""
    asked = parse_request(
        body,
        _header_length(request.headers),
        inputs=infer.inputs,
        outputs=infer.outputs,
        parameters=infer.parameters,
    )
    request.parsed = time.perf_counter()
    request.keep_to(_sooner(request.deadline, asked))
    listed = [info.shape[1:] for info, binary in asked.outputs if not binary]
    written = len(asked.inputs[infer.inputs[0].name]) * sum(map(math.prod, listed))
    check_json_numbers(written, 'outputs with "binary_data": true')
    response = await infer.run(request, request.model, asked)
    encode = partial(encode_response, response, asked, model=infer.name, version=infer.version)
    numbers = sum(response.outputs[info.name].size for info, _ in asked.outputs)
    small = written <= INLINE_NUMBERS and numbers <= INLINE_PIXELS
    content, length = encode() if small else await request.beside(encode)
    return await _encoded(content, length, response, request)


async def _encoded(
    content: bytes, length: int | None, response: InferResponse, request: OperationRequest
) -> Answer:
    """The answer, compressed where the client asks for it and it gains something."""
    accept = ", ".join(request.headers.getlist("accept-encoding"))
    encoding = accepted_encoding(accept[:MAX_ACCEPT_BYTES])
    more = [(b"vary", b"accept-encoding")]
    if encoding is not None and len(content) >= LEAST_COMPRESSED:
        more.append((b"content-encoding", encoding.encode("ascii")))
        if len(content) <= INLINE_BYTES:
            content = compress(content, encoding)
        else:
            content = await request.beside(compress, content, encoding)
    if length is not None:
        more.append((HEADER_LENGTH.encode("ascii"), b"%d" % length))
    media_type = JSON if length is None else BINARY
    answer = Answer(content, media_type, response.result, finite=response.finite)
    answer.raw_headers += more
    return answer


def _header_length(headers: Headers) -> int | None:
    text = headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 15:
        raise InvalidInput(f"{HEADER_LENGTH}: {text[:40]!r} is no number of bytes")
    return int(text)


def _sooner(deadline: float, request: InferRequest) -> float:
    """With the protocol's own ``timeout`` parameter, in microseconds, where there is one."""
    timeout = request.parameters.get("timeout")
    if timeout is None:
        return deadline
    if type(timeout) is not int or not 0 <= timeout < 2**63:
        raise InvalidInput("timeout must be a whole number of microseconds below 2^63")
    return deadline if timeout == 0 else min(deadline, time.monotonic() + 1e-6 * timeout)
