"""Running the application: a socket, uvicorn, and an orderly end on SIGTERM."""

from __future__ import annotations

import asyncio
import errno
import functools
import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from service.api.security.admission import Admission
from service.app import create_app
from service.engine.hardware import tune_allocator
from service.logs import configure_logging
from service.server.acceptor import Acceptor
from service.server.background_logs import background_logs
from service.server.protocol import BoundedHttp
from service.server.proxy import BehindProxy
from service.server.signals import follow, leave
from service.settings import Settings, StartError
from service.streams import occupy_standard_streams

__all__ = ["bind", "listen", "serve"]

logger = logging.getLogger("iafvae")
BACKLOG = 2048  # connections that wait to be accepted, as uvicorn has it
COLLECTOR = (20_000, 20, 20)  # new objects before a collection, collections before an older one
IGNORED = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
KEEP_ALIVE_SECONDS = 75  # above the 60 s of common load balancers, so that they close first


class _DrainingServer(uvicorn.Server):
    """On the first SIGTERM or SIGHUP (its terminal has gone): not ready at once, served for
    `delay_seconds` more, then drained.

    SIGINT (Ctrl-C) does not wait, a second signal cuts short. Unlike uvicorn's own, the process
    exits with 0 after it has drained.
    """

    def __init__(
        self, config: uvicorn.Config, on_signal: Callable[[], None], delay_seconds: float
    ) -> None:
        super().__init__(config)
        self._on_signal, self._delay_seconds = on_signal, delay_seconds
        self._signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, and take connections of `sockets`."""
        await super().startup([])

        def connection() -> asyncio.Protocol:
            return self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )

        self.servers.extend(Acceptor(each, connection) for each in sockets or [])  # type: ignore[misc]

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Follow uvicorn's signals and those that end the process while it serves."""
        with super().capture_signals():
            follow(self.handle_exit)
            yield
            follow(leave)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Called by the operating system in the main thread, between two bytecodes."""
        self._on_signal()
        self._signals += 1
        if self._signals > 1:
            self.force_exit = sig == signal.SIGINT
            self.should_exit = True
        elif sig == signal.SIGINT or self._delay_seconds == 0:
            self.should_exit = True
        else:
            asyncio.get_running_loop().call_soon_threadsafe(self._exit_later)

    def _exit_later(self) -> None:
        logger.info("not ready any more; still serving for %g s", self._delay_seconds)
        asyncio.get_running_loop().call_later(self._delay_seconds, self._exit_now)

    def _exit_now(self) -> None:
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket; nothing can connect before `listen`. Raises StartError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:  # UnicodeError: no host's name, such as ".."
        raise StartError(f"IAFVAE_HOST={host!r} cannot be resolved ({error})") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise StartError(_bind_message(host, port, error)) from None
    return listener


def listen(listener: socket.socket, host: str) -> None:
    """Take connections; they wait in the backlog until the server does. Raises StartError.

    Two sockets may be bound to one address as long as neither listens, and uvloop does not say
    when it cannot: the second server would run on, unheard.
    """
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise StartError(_bind_message(host, listener.getsockname()[1], error)) from None


def _bind_message(host: str, port: int, error: OSError) -> str:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use: stop what listens there, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"{where} needs privileges: choose a port above 1023 with --port"
    return f"cannot listen on {where} ({error.strerror}): choose another with --host"


def serve(settings: Settings) -> None:
    """Load the models, serve until SIGTERM or SIGINT, drain, return.

    Raises:
        StartError: the address is taken.
        BundleError, ProviderUnavailable: a model cannot be served.
    """
    occupy_standard_streams()
    tune_allocator()
    sys.set_int_max_str_digits(640)  # of numbers in JSON: longer ones take quadratic time
    configure_logging(settings.log_level, settings.log_format)
    follow(leave)  # while the models load; then the server's own handler drains
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    listener = bind(settings.host, settings.port)
    with listener, background_logs():
        app = create_app(settings)
        registry = app.state.shared.registry
        app.state.manager.load_all()  # here, so that what is wrong is said in one line
        listen(listener, settings.host)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        what = "serving on http://%s:%d (%s by default, the API at /docs, Ctrl-C stops)"
        logger.info(what, shown, port, registry.default)
        _calm_collector()
        config = _config(app, app.state.shared.admission, settings)
        server = _DrainingServer(config, registry.drain, settings.drain_delay_seconds)
        connections = server.server_state.connections
        metrics = app.state.shared.metrics
        metrics.watch("open_connections", "Of clients.", lambda: len(connections))
        server.run([listener])
    if any(thread.daemon for thread in threading.enumerate()):
        leave()  # a model that the watcher was loading, a batch that never ended


def _config(app: ASGIApp, admission: Admission | None, settings: Settings) -> uvicorn.Config:
    if settings.root_path or settings.forwarded_allow_ips:
        app = BehindProxy(app, root_path=settings.root_path, trusted=settings.forwarded_allow_ips)
    http = functools.partial(BoundedHttp, admission=admission)
    return uvicorn.Config(
        cast("Any", app),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # `BehindProxy` does, where they are to be believed
        http=cast("Any", http),
        backlog=BACKLOG,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )


def _calm_collector() -> None:
    """Look for garbage less often, and not among what lives as long as the process.

    Requests leave hardly any cycles behind, but look like garbage while they are worked on: with
    Python's own thresholds a tenth of the event loop's time went into looking for it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR)
