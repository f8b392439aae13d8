"""What happens to every request: an id, security headers, an access log, a last answer. Pure ASGI.

Starlette's BaseHTTPMiddleware would hide the client's disconnect from the operations.
"""

from __future__ import annotations

import logging
import random
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.response.problems import problem_of, problem_response, unexpected
from service.errors import InvalidInput
from service.metrics import Metrics

__all__ = ["SECURITY_HEADERS", "RequestContext", "request_id"]

logger = logging.getLogger("iafvae.access")

ACCEPTABLE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
MAX_QUERY_BYTES = 2**13
LONG_QUERY = f"a query has at most {MAX_QUERY_BYTES} bytes: send options as JSON or form fields"
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
SERVER_TIMING = b"server-timing"
NO_STORE = (b"cache-control", b"no-store")


def request_id(scope: Scope) -> bytes:
    """The caller's, if it sent a sane one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and ACCEPTABLE_ID.fullmatch(value):
            return bytes(value)
    # Not os.urandom: no secret, and a system call waits for the interpreter's lock afterwards.
    return b"%024x" % random.getrandbits(96)


def _total(started: float) -> tuple[bytes, bytes]:
    return SERVER_TIMING, b"total;dur=%.2f" % (1e3 * (time.perf_counter() - started))


class RequestContext:
    """Give each request an id (the caller's, if it sent a sane one) and its headers.

    `scope["state"]["request_id"]` holds it; with `access_log`, what routes put into
    `scope["state"]["log"]` joins the request's line, which is written after the answer. What
    nobody foresaw becomes an answer as well.
    """

    def __init__(self, app: ASGIApp, *, access_log: bool, metrics: Metrics) -> None:
        self._app, self._access_log, self._metrics = app, access_log, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with its id in its scope and in its answer's headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = name.decode("ascii")
        # HEAD is what GET is, and the server leaves the body out; FastAPI's routes know GET alone.
        asked = scope if scope["method"] != "HEAD" else {**scope, "method": "GET"}
        more = ((b"x-request-id", name), *SECURITY_HEADERS)
        status = 0

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"] = [*message["headers"], *more]
                names = dict(headers)
                # What operations compute tells its times in parts.
                headers += () if SERVER_TIMING in names else (_total(started),)
                if asked["method"] == "GET" and b"cache-control" not in names:
                    headers.append(NO_STORE)  # caches keep what says nothing
            await send(message)

        app = self._app
        if len(scope["query_string"]) > MAX_QUERY_BYTES:  # FastAPI parses all of it on every path
            error = InvalidInput(LONG_QUERY)
            self._metrics.request("", "", problem_of(error).type, seconds=0.0)
            app = problem_response(error, scope)
        if self._access_log:
            state["log"] = {}
        started = time.perf_counter()
        try:
            await app(asked, receive, with_headers)
        except Exception as error:
            if status:
                raise  # half an answer has gone out: the server closes the connection
            await problem_response(unexpected(error, scope), scope)(scope, receive, with_headers)
        finally:
            if self._access_log:
                seconds = round(time.perf_counter() - started, 6)
                fields = {"status": status, "seconds": seconds, "request_id": state["request_id"]}
                client = scope.get("client")
                fields |= {"client": client[0]} if client else {}
                fields |= {"caller": state["caller"]} if "caller" in state else {}
                fields |= state["log"]
                logger.info("%s %s", scope["method"], scope["path"], extra={"fields": fields})
