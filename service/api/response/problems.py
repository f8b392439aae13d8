"""Errors as RFC 9457 problem documents: ours, and those that the frameworks raise by themselves.

Under ``/v2`` the Open Inference Protocol has a form of its own: ``{"error": "..."}``.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from service import errors
from service.api.request.negotiation import PROBLEM
from service.codecs import JSON
from service.errors import IafvaeError
from service.metrics import Metrics

__all__ = [
    "PROBLEMS",
    "TYPE_PREFIX",
    "Problem",
    "add_problem_handlers",
    "document_of",
    "problem_headers",
    "problem_of",
    "problem_response",
    "unexpected",
]

TYPE_PREFIX = "urn:iafvae:problem:"
MAX_DETAIL = 1000  # characters: what callers sent is told back in part
logger = logging.getLogger("iafvae")


class Problem(NamedTuple):
    """What every occasion of one error shares: RFC 9457's ``type``, ``title`` and ``status``."""

    type: str
    title: str
    status: int


PROBLEMS: dict[type[IafvaeError], Problem] = {
    errors.BadRequest: Problem("bad-request", "Bad request", 400),
    errors.MalformedBody: Problem("malformed-body", "The body cannot be parsed", 400),
    errors.Unauthorized: Problem("unauthorized", "A key is needed", 401),
    errors.Forbidden: Problem("forbidden", "The key does not allow it", 403),
    errors.NotFound: Problem("not-found", "Not found", 404),
    errors.UnknownModel: Problem("unknown-model", "Unknown model", 404),
    errors.UnknownBundle: Problem("unknown-bundle", "Unknown bundle", 404),
    errors.MethodNotAllowed: Problem("method-not-allowed", "Method not allowed", 405),
    errors.NotAcceptable: Problem("not-acceptable", "No acceptable representation", 406),
    errors.RequestTimeout: Problem("request-timeout", "The body did not arrive in time", 408),
    errors.Conflict: Problem("conflict", "Not possible now", 409),
    errors.ModelLimit: Problem("model-limit", "As many models are loaded as may be", 409),
    errors.PayloadTooLarge: Problem("payload-too-large", "Over a limit", 413),
    errors.UnsupportedMedia: Problem("unsupported-media-type", "Unsupported content type", 415),
    errors.InvalidInput: Problem("invalid-input", "Invalid value", 422),
    errors.BundleRefused: Problem("bundle-refused", "The bundle cannot be served", 422),
    errors.WrongShape: Problem("wrong-shape", "Wrong shape", 422),
    errors.WrongDtype: Problem("wrong-dtype", "Wrong type of numbers", 422),
    errors.UndecodableImage: Problem("undecodable-image", "Undecodable image", 422),
    errors.NonFiniteInput: Problem("non-finite-input", "Non-finite numbers", 422),
    errors.Overloaded: Problem("overloaded", "The queue is full", 429),
    errors.QuotaExceeded: Problem("quota-exceeded", "The quota is used up", 429),
    errors.ClientGone: Problem("client-gone", "The client has gone", 499),
    errors.IafvaeError: Problem("internal-error", "Internal error", 500),
    errors.ServerFault: Problem("internal-error", "Internal error", 500),
    errors.EngineFailure: Problem("engine-failure", "The computation failed", 500),
    errors.DeviceFault: Problem("device-fault", "The device failed", 500),
    errors.ProviderUnavailable: Problem("provider-unavailable", "The provider is unavailable", 500),
    errors.ShuttingDown: Problem("shutting-down", "The service is not ready", 503),
    errors.DeadlineExceeded: Problem("deadline-exceeded", "The deadline has passed", 504),
}


def problem_of(error: IafvaeError) -> Problem:
    """The row of `PROBLEMS` for `error`: its class's own, else the nearest base's."""
    return next(PROBLEMS[kind] for kind in type(error).__mro__ if kind in PROBLEMS)


def problem_response(
    error: IafvaeError, scope: Scope, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer that says `error` on this request, with ``Retry-After`` where it helps."""
    body, media_type = document_of(error, scope)
    more = {**(headers or {}), **problem_headers(error)}
    return Response(body, problem_of(error).status, more, media_type=media_type)


def document_of(error: IafvaeError, scope: Scope) -> tuple[bytes, str]:
    """What the body of an answer says of `error`, and its media type."""
    problem, path = problem_of(error), scope["path"]
    of_v2 = path.startswith("/v2/") or path == "/v2"
    document: dict[str, str | int]
    if of_v2:
        document = {"error": _shortened(str(error) or problem.title)}
    else:
        document = {
            "type": TYPE_PREFIX + problem.type,
            "title": problem.title,
            "status": problem.status,
            "detail": _shortened(str(error)),
            "instance": _shortened(path),
            "request_id": scope.get("state", {}).get("request_id", ""),
        }
    return json.dumps(document).encode("utf-8"), JSON if of_v2 else PROBLEM


def problem_headers(error: IafvaeError) -> dict[str, str]:
    """What a client should do about `error`, as headers."""
    if isinstance(error, errors.Overloaded):
        return {"retry-after": str(max(1, math.ceil(error.retry_after_seconds)))}
    if isinstance(error, errors.RequestTimeout):
        return {"connection": "close"}  # in the middle of a body there is no next request
    if isinstance(error, errors.Unauthorized):
        return {"www-authenticate": error.challenge}
    return {"retry-after": "1"} if problem_of(error).status == 503 else {}


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 3] + "..."


def unexpected(error: Exception, scope: Scope) -> errors.ServerFault:
    """Log what nobody foresaw; the caller learns the request's id, not the program's insides."""
    request_id = scope.get("state", {}).get("request_id", "")
    logger.error(
        "unexpected error in %s: %s",
        scope["path"],
        error,
        exc_info=error,
        extra={"fields": {"request_id": request_id}},
    )
    return errors.ServerFault("an unexpected error; the log has it under this request_id")


def add_problem_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Turn every error that leaves a route of `app` into a problem document, and count it."""

    @app.exception_handler(IafvaeError)
    async def ours(request: Request, error: IafvaeError) -> Response:
        return problem_response(error, request.scope)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        translated = _translate(error, request)
        metrics.request("", "", problem_of(translated).type, seconds=0.0)
        return problem_response(translated, request.scope, error.headers)

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> Response:
        lines = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
        invalid = errors.InvalidInput("; ".join(lines))
        metrics.request("", "", problem_of(invalid).type, seconds=0.0)
        return problem_response(invalid, request.scope)


def _translate(error: HTTPException, request: Request) -> IafvaeError:
    path = request.url.path
    if error.status_code in (404, 405) and path.endswith((":predict", ":explain")):
        return errors.NotFound(
            "KServe's v1 protocol is not spoken here: POST /v2/models/MODEL.score/infer, or "
            "/v1/score; /docs lists what there is"
        )
    if error.status_code == 404 and path.startswith("/v2/repository/models/"):
        return errors.NotFound(
            "an administrator loads and unloads models here: POST /v1/admin/models/NAME/load, or "
            "/unload"
        )
    if error.status_code == 404:
        return errors.NotFound(f"there is nothing at {path[:200]}; /docs lists what there is")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return errors.MethodNotAllowed(f"{path} does not take {request.method}; use {allowed}")
    kind = errors.BadRequest if error.status_code < 500 else errors.ServerFault
    return kind(str(error.detail))
