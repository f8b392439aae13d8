"""Being reached through a reverse proxy: under a prefix of the path, by a forwarded address."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.settings import PATH_PREFIX

__all__ = ["BehindProxy"]

HEADER = b"x-forwarded-prefix"
PREFIX = re.compile(PATH_PREFIX)
DOCUMENT = "/openapi.json"
MAPPED = "::ffff:"


class BehindProxy:
    """`app` for callers that see it below a prefix; it sees paths without.

    The prefix is `root_path`, or what a proxy at one of the addresses `trusted` forwards (as
    X-Forwarded-Prefix; also whom it speaks for, and by which scheme). Whether a proxy takes the
    prefix off the path or leaves it there makes no difference.
    """

    def __init__(self, app: ASGIApp, *, root_path: str, trusted: Sequence[str]) -> None:
        hosts = "*" if "*" in trusted else list(trusted)
        self._app = ProxyHeadersMiddleware(app, trusted_hosts=hosts)  # type: ignore[arg-type]
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on without its prefix; redirects get it again, and name no host: which
        one callers see, and by which scheme, a proxy need not tell."""
        if scope.get("client"):  # of a socket for IPv4 and IPv6, the first come as ::ffff:10.0.0.1
            host, port = scope["client"]
            scope["client"] = host.removeprefix(MAPPED), port
        if scope["type"] == "http":
            prefix = self._root_path
            client = scope.get("client")
            if client is not None and client[0] in self._app.trusted_hosts:
                scope["headers"] = [_addresses_alone(header) for header in scope["headers"]]
                prefix = self._forwarded(scope)
            if prefix and scope["path"] == prefix:  # what a page loads is relative to the slash
                await RedirectResponse(f"{prefix}/", 308)(scope, receive, send)
                return
            scope, send = _without(prefix, scope), _Redirects(prefix, send)
        await self._app(scope, receive, send)  # type: ignore[arg-type]

    def _forwarded(self, scope: Scope) -> str:
        for name, value in scope["headers"]:
            if name == HEADER and PREFIX.fullmatch(text := value.decode("latin-1")):
                return str(text).rstrip("/")
        return self._root_path


def _addresses_alone(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """What no address is in X-Forwarded-For is left out: it would become whose turn it is."""
    name, value = header
    if name != b"x-forwarded-for":
        return header
    return name, b", ".join(part.strip() for part in value.split(b",") if _is_address(part))


def _is_address(text: bytes) -> bool:
    """Whether it is an IP address, maybe with a port."""
    host = re.sub(r"^\[(.*)\](:\d+)?$|^([^:]*):\d+$", r"\1\3", text.decode("latin-1").strip())
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class _Redirects:
    """`send`, but a redirect within the service leads below the prefix."""

    def __init__(self, prefix: str, send: Send) -> None:
        self._prefix, self._send = prefix, send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and 300 <= message["status"] < 400:
            message["headers"] = [
                (name, self._moved(value) if name == b"location" else value)
                for name, value in message.get("headers", ())
            ]
        await self._send(message)

    def _moved(self, location: bytes) -> bytes:
        """Without scheme and host, which the proxy may have changed."""
        parts = urlsplit(location.decode("latin-1"))
        path = parts._replace(scheme="", netloc="", path=self._prefix + parts.path)
        return path.geturl().encode("latin-1")


def _without(prefix: str, scope: Scope) -> Scope:
    if not prefix:
        return scope
    path, raw = scope["path"], scope.get("raw_path", b"")
    if path.startswith(f"{prefix}/"):
        path, raw = path[len(prefix) :], raw[len(prefix) :]
    scope["path"], scope["raw_path"] = path, raw
    if path == DOCUMENT:  # that says which server is meant
        scope["root_path"] = prefix
    return scope
