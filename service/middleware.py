"""What happens to every request: an id, security headers, an access log, a short way. Pure ASGI.

Starlette's BaseHTTPMiddleware would hide the client's disconnect from the operations.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HotPaths", "RequestContext"]

logger = logging.getLogger("iafvae.access")
ACCEPTABLE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
INFER_PREFIX, INFER_SUFFIX = "/v2/models/", "/infer"


class RequestContext:
    """Give each request an id (the caller's, if it sent a sane one) and its headers.

    `scope["state"]["request_id"]` holds it; with `access_log`, what routes put into
    `scope["state"]["log"]` joins the request's line, which is written after the answer.
    """

    def __init__(self, app: ASGIApp, *, access_log: bool) -> None:
        self._app, self._access_log = app, access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with its id in its scope and in its answer's headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id.decode("ascii")
        more = ((b"x-request-id", request_id), *SECURITY_HEADERS)
        status = 0

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        if not self._access_log:
            await self._app(scope, receive, with_headers)
            return
        state["log"] = {}
        started = time.perf_counter()
        try:
            await self._app(scope, receive, with_headers)
        finally:
            _log(scope, status, time.perf_counter() - started)


class HotPaths:
    """Hand requests to the operations before FastAPI's own stack, which costs as much as they do.

    Only a POST to exactly a path in `targets`, or to the ``infer`` of a model, is taken;
    everything else, other methods too, goes on to the router, which knows the same paths.
    """

    def __init__(self, app: ASGIApp, *, targets: Mapping[str, ASGIApp], infer: ASGIApp) -> None:
        self._app, self._targets, self._infer = app, targets, infer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to its operation, or on."""
        hot = scope["type"] == "http" and scope["method"] == "POST"
        await (self._target(scope["path"]) if hot else self._app)(scope, receive, send)

    def _target(self, path: str) -> ASGIApp:
        target = self._targets.get(path)
        if target is not None:
            return target
        if path.startswith(INFER_PREFIX) and path.endswith(INFER_SUFFIX):
            return self._infer
        return self._app


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and ACCEPTABLE_ID.fullmatch(value):
            return bytes(value)
    return os.urandom(12).hex().encode("ascii")


def _log(scope: Scope, status: int, seconds: float) -> None:
    state = scope["state"]
    fields = {
        "status": status,
        "seconds": round(seconds, 6),
        "request_id": state["request_id"],
        **({"caller": state["caller"]} if "caller" in state else {}),
        **state["log"],
    }
    logger.info("%s %s", scope["method"], scope["path"], extra={"fields": fields})
