"""Real connections on loopback to uvicorn's protocol with our bounds, all on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from service.server import protocol


class Line:
    """A server of `app`, and what it was asked; `connect` gives a reader and a writer."""

    def __init__(self, app: Callable[..., Any] | None = None, **how: Any) -> None:
        self.asked: list[tuple[str, str, bytes, dict[bytes, bytes]]] = []
        self.told: list[str] = []
        self.release = asyncio.Event()
        self.config = Config(
            app or self.app,
            interface="asgi3",
            log_config=None,
            lifespan="off",
            timeout_keep_alive=1,
        )
        self.http = partial(protocol.BoundedHttp, **how)
        self.state = ServerState()
        self.made: list[protocol.BoundedHttp] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def app(self, scope, receive, send):
        """Path -> habit: /early answers at once, /slow when released; others read the body."""
        body, path = b"", scope["path"]
        while path != "/early":
            message = await receive()
            if message["type"] == "http.disconnect":
                self.told.append(f"{path} gone")
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.asked.append((scope["method"], path, body, dict(scope["headers"])))
        if path == "/slow":
            ends = asyncio.create_task(receive()), asyncio.create_task(self.release.wait())
            done, rest = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in rest:
                task.cancel()
            if ends[0] in done:
                self.told.append(f"{path} gone")
                return
        text = b"%d bytes" % len(body)
        headers = [(b"content-length", b"%d" % len(text))]
        status = 401 if path == "/early" else 200
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text})

    async def __aenter__(self) -> Line:
        loop = asyncio.get_running_loop()

        def make() -> protocol.BoundedHttp:
            self.made.append(self.http(self.config, self.state, {}))
            return self.made[-1]

        self.server = await loop.create_server(make, "127.0.0.1", 0)
        return self

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.server.sockets[0].getsockname())
        self.writers.append(writer)
        return reader, writer

    async def talk(self, *parts: bytes, seconds: float = 0.3) -> tuple[bytes, bool]:
        """Send `parts` one by one; all that is answered in time, and whether it was closed."""
        reader, writer = await self.connect()
        answer, closed = b"", True
        with suppress(ConnectionError, RuntimeError):  # closed while it is written to
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0.02)
        try:
            async with asyncio.timeout(seconds):
                while chunk := await reader.read(65536):
                    answer += chunk
        except ConnectionError:
            pass
        except TimeoutError:
            closed = False
        writer.transport.abort()
        return answer, closed

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        self.release.set()
        for connection in self.state.connections | set(self.writers):
            connection.transport.abort()
        await asyncio.sleep(0.01)


async def until(true: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait for what must come true."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture
def line(monkeypatch):
    """`line(app=None, admission=None)`, with timers of tenths of seconds."""
    monkeypatch.setattr(protocol, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(protocol, "DRAIN_SECONDS", 0.2)
    monkeypatch.setattr(protocol, "CLOSE_SECONDS", 0.2)
    return Line


@pytest.fixture
def wait_until():
    """`await wait_until(condition)`."""
    return until
