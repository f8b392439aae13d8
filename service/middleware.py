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

from service.errors import Overloaded
from service.problems import problem_response
from service.telemetry import Telemetry

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

    limit: of requests to operations at once. Rows that wait are bounded by the scheduler; but of
    small requests many more come in time than the event loop can even read, and they would all
    wait for it. Above the limit a request is refused unread, which costs a fraction of serving it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        targets: Mapping[str, ASGIApp],
        infer: ASGIApp,
        limit: int,
        telemetry: Telemetry,
    ) -> None:
        self._app, self._targets, self._infer = app, targets, infer
        self._limit, self._telemetry = limit, telemetry
        self._in_flight = 0
        self._pace = Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to its operation, or on."""
        hot = scope["type"] == "http" and scope["method"] == "POST"
        target = self._target(scope["path"]) if hot else None
        if target is None:
            await self._app(scope, receive, send)
        elif self._in_flight >= self._limit:
            await self._refuse(scope, receive, send)
        else:
            self._in_flight += 1
            try:
                await target(scope, receive, send)
            finally:
                self._in_flight -= 1
                self._pace.step()

    def _target(self, path: str) -> ASGIApp | None:
        target = self._targets.get(path)
        if target is not None:
            return target
        if path.startswith(INFER_PREFIX) and path.endswith(INFER_SUFFIX):
            return self._infer
        return None

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        seconds = self._in_flight * self._pace.seconds
        error = Overloaded(
            f"{self._in_flight} requests are being worked on, as many as are taken at once: send "
            "the request again later",
            seconds,
        )
        self._telemetry.request(_operation(scope["path"]), "", error.type, seconds=0.0)
        await problem_response(error, scope)(scope, receive, send)


class Pace:
    """How long it takes from one answer to the next: an average over some hundred of them."""

    WEIGHT = 0.01

    def __init__(self) -> None:
        self._last, self.seconds = time.monotonic(), 0.0

    def step(self) -> None:
        """An answer has gone out."""
        now = time.monotonic()
        self.seconds += self.WEIGHT * (now - self._last - self.seconds)
        self._last = now


def _operation(path: str) -> str:
    """As it stands in the metrics."""
    return "infer" if path.startswith(INFER_PREFIX) else path.rpartition("/")[2]


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
