"""What happens to every request: an id, security headers, an access log, a short way. Pure ASGI.

Starlette's BaseHTTPMiddleware would hide the client's disconnect from the operations.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.security.admission import SECURITY_HEADERS, Gate, is_infer, request_id

__all__ = ["HotPaths", "RequestContext"]

logger = logging.getLogger("iafvae.access")


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
        name = request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = name.decode("ascii")
        more = ((b"x-request-id", name), *SECURITY_HEADERS)
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
    everything else, other methods too, goes on to the router, which knows the same paths. `gate`
    bounds how many are worked on at once.
    """

    def __init__(
        self, app: ASGIApp, *, targets: Mapping[str, ASGIApp], infer: ASGIApp, gate: Gate
    ) -> None:
        self._app, self._targets, self._infer, self._gate = app, targets, infer, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to its operation, or on."""
        hot = scope["type"] == "http" and scope["method"] == "POST"
        target = self._target(scope["path"]) if hot else None
        if target is None:
            await self._app(scope, receive, send)
            return
        if self._gate.refuses(scope):
            status, headers, body = self._gate.refusal(scope)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        self._gate.enter()
        try:
            await target(scope, receive, send)
        finally:
            self._gate.leave()

    def _target(self, path: str) -> ASGIApp | None:
        target = self._targets.get(path)
        if target is None and is_infer(path):
            return self._infer
        return target


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
