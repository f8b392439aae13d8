"""Fixtures of the HTTP tests: an application on the tiny bundle, in this process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.codecs.npy import encode_npy
from service.settings import Settings


class AppTransport(httpx.BaseTransport):
    """An application with its lifespan on a loop in a thread, behind synchronous httpx."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._lifespan = app.router.lifespan_context(app)
        try:
            self.run(self._lifespan.__aenter__())
        except BaseException:
            self._end_loop()
            raise

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self.run(self._handle(request, request.read()))

    async def _handle(self, request: httpx.Request, body: bytes) -> httpx.Response:
        again = httpx.Request(request.method, request.url, headers=request.headers, content=body)
        answer = await self._transport.handle_async_request(again)
        raw = b"".join([chunk async for chunk in answer.stream])
        return httpx.Response(answer.status_code, headers=answer.headers, content=raw)

    def close(self) -> None:
        if self.loop.is_closed():
            return
        self.run(self._lifespan.__aexit__(None, None, None))
        self._end_loop()

    def _end_loop(self) -> None:
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class AppClient(httpx.Client):
    """httpx against an application; `app` and `run` reach behind it."""

    def __init__(self, app: FastAPI) -> None:
        self.transport = AppTransport(app)
        self.app, self.run = app, self.transport.run
        super().__init__(transport=self.transport, base_url="http://testserver")

    def metric(self, name: str, **labels: str) -> float:
        """A sample's value; 0 where it does not exist yet."""
        return self.app.state.shared.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture(scope="session")
def server(tiny_bundle: Path) -> Iterator[AppClient]:
    """An application with default settings, shared by the session."""
    with AppClient(create_app(Settings(models=tiny_bundle, provider="cpu"))) as client:
        yield client


def _serving(tiny_bundle: Path) -> Iterator[Callable[..., AppClient]]:
    with ExitStack() as stack:

        def start(**settings: Any) -> AppClient:
            given = {"models": tiny_bundle, "provider": "cpu", **settings}
            return stack.enter_context(AppClient(create_app(Settings(**given))))

        yield start


@pytest.fixture
def serve(tiny_bundle: Path) -> Iterator[Callable[..., AppClient]]:
    """An application with the given settings, closed after the test."""
    yield from _serving(tiny_bundle)


@pytest.fixture(scope="module")
def serve_for_module(tiny_bundle: Path) -> Iterator[Callable[..., AppClient]]:
    """The same, closed after the module."""
    yield from _serving(tiny_bundle)


@pytest.fixture
def root(tmp_path: Path, edition: Callable[..., Path], put: Callable[[Path, Path], Path]) -> Path:
    """A directory of models with one bundle, tiny 1.9.0, in `a`."""
    models = tmp_path / "models"
    models.mkdir()
    put(edition("1.9.0"), models / "a")
    return models


@pytest.fixture
def site(sites: ModuleType, serve: Callable[..., AppClient], root: Path) -> Any:
    """An application on `root`, and its manager's operations as plain functions."""
    return sites.Site(serve(models=root))


@pytest.fixture
def watched(sites: ModuleType, serve: Callable[..., AppClient], root: Path) -> Any:
    """An application on `root`, and a watcher that looks when told to."""
    return sites.Watched(serve(models=root))


@pytest.fixture(scope="session")
def ask_app() -> Callable[..., Coroutine[Any, Any, list[dict[str, Any]]]]:
    """POST to an application without a client between; gives the messages that it sends."""

    async def ask(
        app: FastAPI, path: str, query: bytes, body: bytes, *headers: tuple[bytes, bytes]
    ) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        fed: list[bool] = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "root_path": "",
            "headers": [(b"host", b"h"), *headers, (b"content-length", b"%d" % len(body))],
            "client": ("127.0.0.1", 5),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }

        async def receive() -> dict[str, Any]:
            if fed:
                await asyncio.sleep(3600)
            fed.append(True)
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        return sent

    return ask


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """Six images of the tiny model's shape, uint8 [6, 1, 4, 4]."""
    return np.random.default_rng(3).integers(0, 256, (6, 1, 4, 4), np.uint8)


@pytest.fixture
def post_npy(server: AppClient) -> Callable[..., Any]:
    """POST an array as npy: `post_npy("/v1/score", array, params={...}, accept=...)`."""

    def post(path: str, array: np.ndarray | bytes, *, accept: str = "*/*", **request: Any) -> Any:
        body = array if isinstance(array, bytes) else encode_npy(array)
        headers = {"content-type": "application/x-npy", "accept": accept}
        return server.post(path, content=body, headers=headers, **request)

    return post


@pytest.fixture(scope="session")
def problem() -> Callable[..., str]:
    """Check that an answer is a problem document of a status and slug; gives its detail."""

    def check(response: Any, status: int, slug: str) -> str:
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/problem+json"
        document = response.json()
        assert document["type"] == f"urn:iafvae:problem:{slug}"
        assert document["status"] == status
        assert document["title"]
        assert document["request_id"] == response.headers["x-request-id"]
        assert len(document["detail"]) > 15, "the detail says what to do"
        return document["detail"]

    return check


@pytest.fixture(scope="session")
def refused_v2() -> Callable[..., str]:
    """Check that an answer is an error of the Open Inference Protocol; gives its text."""

    def check(response: Any, status: int) -> str:
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/json"
        assert list(response.json()) == ["error"]
        return response.json()["error"]

    return check


@pytest.fixture(scope="session")
def as_binary() -> Callable[..., dict[str, Any]]:
    """A request of JSON and bytes: `server.post(url, **as_binary(document, blob))`."""

    def request(document: Any, *blobs: bytes, **headers: str) -> dict[str, Any]:
        head = json.dumps(document).encode()
        headers["Inference-Header-Content-Length"] = str(len(head))
        return {"content": b"".join((head, *blobs)), "headers": headers}

    return request


@pytest.fixture(scope="session")
def image(digits: np.ndarray) -> dict[str, Any]:
    """The digits as an input tensor in JSON."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(digits.shape)}
    return {**tensor, "data": digits.reshape(-1).tolist()}


@dataclass(frozen=True)
class Running:
    """A server process."""

    process: subprocess.Popen[str]
    port: int
    url: str


COMMAND = [sys.executable, "-c", "from service.cli.main import main; main()"]


def _environment(settings: dict[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("IAFVAE_")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error", **settings}


@pytest.fixture(scope="session")
def launch(tiny_bundle: Path) -> Callable[..., Running]:
    """Start `iafvae serve` on the tiny bundle; returns when it is ready."""

    def start(**settings: str) -> Running:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        given = {"IAFVAE_MODELS": str(tiny_bundle), "IAFVAE_PORT": str(port), **settings}
        process = subprocess.Popen([*COMMAND, "serve"], env=_environment(given), text=True)
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert process.poll() is None, "the server ended by itself"
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    return Running(process, port, url)
            except httpx.HTTPError:
                time.sleep(0.05)
        raise AssertionError("the server did not become ready")

    return start


def _end(running: Running) -> None:
    running.process.kill()
    running.process.wait()


@pytest.fixture(scope="session")
def running(launch: Callable[..., Running]) -> Iterator[Running]:
    """A server with default settings, shared by the session."""
    process = launch()
    yield process
    _end(process)


@pytest.fixture
def start_server(launch: Callable[..., Running]) -> Iterator[Callable[..., Running]]:
    """Start a server with variables of its own; ended after the test."""
    with ExitStack() as stack:

        def start(**settings: str) -> Running:
            process = launch(**settings)
            stack.callback(_end, process)
            return process

        yield start


@pytest.fixture
def refused() -> Callable[..., str]:
    """Run `iafvae serve`, which must fail with 1 and one clear line; gives it."""

    def run(**settings: str) -> str:
        done = subprocess.run(
            [*COMMAND, "serve"],
            env=_environment(settings),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("iafvae: error: ")]
        assert len(lines) == 1, done.stderr
        return lines[0]

    return run
