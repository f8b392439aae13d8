"""How many requests to operations are worked on at once, and what the others are told.

Rows that wait are bounded by the scheduler; but of small requests many more come in time than the
event loop can even read, and they would all wait for it. Above the limit a request is refused
unread. There are most refusals when there is least time, so they are made of few operations.
"""

from __future__ import annotations

import os
import re
import time

from starlette.types import Scope

from service.api.response.problems import document_of, problem_headers
from service.errors import Overloaded
from service.telemetry import Telemetry

__all__ = ["SECURITY_HEADERS", "Gate", "Pace", "is_infer", "request_id"]

ACCEPTABLE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
INFER_PREFIX, INFER_SUFFIX = "/v2/models/", "/infer"

Headers = list[tuple[bytes, bytes]]


class Gate:
    """Counts the requests to operations; `limit` of them may be inside."""

    def __init__(self, limit: int, operations: frozenset[str], telemetry: Telemetry) -> None:
        self._limit, self._operations, self._telemetry = limit, operations, telemetry
        self._inside = 0
        self._pace = Pace()
        self._reason = (
            f"{limit} requests are being worked on, as many as are taken at once: send the request "
            "again later"
        )

    def enter(self) -> None:
        """A request goes in."""
        self._inside += 1

    def leave(self) -> None:
        """It was answered, or given up."""
        self._inside -= 1
        self._pace.step()

    def refuses(self, scope: Scope) -> bool:
        """Whether a request is one too many."""
        return (
            self._inside >= self._limit and scope["method"] == "POST" and self.guards(scope["path"])
        )

    def guards(self, path: str) -> bool:
        """Whether a POST to `path` asks for an operation."""
        return path in self._operations or is_infer(path)

    def refusal(self, scope: Scope) -> tuple[int, Headers, bytes]:
        """Status, headers and body of a request's refusal, which is counted."""
        error = Overloaded(self._reason, self._inside * self._pace.seconds)
        path = scope["path"]
        operation = "infer" if path.startswith(INFER_PREFIX) else path.rpartition("/")[2]
        self._telemetry.request(operation, "", error.type, seconds=0.0)
        body, media_type = document_of(error, scope)
        headers = [
            (b"content-type", media_type.encode("ascii")),
            (b"content-length", b"%d" % len(body)),
            *((k.encode("ascii"), v.encode("ascii")) for k, v in problem_headers(error).items()),
        ]
        return error.status, headers, body

    def whole_refusal(self, scope: Scope) -> tuple[int, Headers, bytes]:
        """The same with what every answer has."""
        name = request_id(scope)
        scope.setdefault("state", {})["request_id"] = name.decode("ascii")
        status, headers, body = self.refusal(scope)
        return status, [*headers, (b"x-request-id", name), *SECURITY_HEADERS], body


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


def is_infer(path: str) -> bool:
    """Whether `path` is that of the ``infer`` of a model."""
    return path.startswith(INFER_PREFIX) and path.endswith(INFER_SUFFIX)


def request_id(scope: Scope) -> bytes:
    """The caller's, if it sent a sane one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and ACCEPTABLE_ID.fullmatch(value):
            return bytes(value)
    return os.urandom(12).hex().encode("ascii")
