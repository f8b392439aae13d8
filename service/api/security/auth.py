"""Who may call: keys before every path but the probes and the pages. Pure ASGI."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.response.problems import problem_of, problem_response
from service.api.security.keys import KeyFile
from service.errors import Unauthorized
from service.metrics import Metrics

__all__ = ["KeyGuard", "is_open"]

PROBES = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
PAGES = frozenset({"/", "/docs"})  # they hold nothing of the models, and ask for a key themselves
ASSETS = "/web/"


class KeyGuard:
    """Refuse requests without a key; `scope["state"]["caller"]` becomes the holder's name."""

    def __init__(
        self, app: ASGIApp, *, keys: KeyFile, open_metrics: bool, metrics: Metrics
    ) -> None:
        self._app, self._keys, self._open_metrics = app, keys, open_metrics
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 without having read its body."""
        app: ASGIApp = self._app
        if scope["type"] == "http" and not (
            is_open(scope["path"]) or (self._open_metrics and scope["path"] == "/metrics")
        ):
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            try:
                if len(given) > 1:
                    raise Unauthorized("there are several Authorization headers: send one")
                key = given[0] if given else None
                scope.setdefault("state", {})["caller"] = self._keys.holder(key)
            except Unauthorized as error:
                self._metrics.request("", "", problem_of(error).type, seconds=0.0)
                app = problem_response(error, scope)
        await app(scope, receive, send)


def is_open(path: str) -> bool:
    """Whether no key is ever needed at `path`."""
    return path in PROBES or path in PAGES or path.startswith(ASSETS)
