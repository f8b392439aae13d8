"""Real processes on loopback: the service, and what stands around it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
IAFVAE = "from service.cli.main import main; main()"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def process(command, ready: str, log: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """`command` until the end of the block, once the URL `ready` answers 200."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("IAFVAE_")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    with log.open("w") as out:
        running = subprocess.Popen(
            [str(word) for word in command], env=environment, stdout=out, stderr=out, text=True
        )
    try:
        for _ in range(600):
            assert running.poll() is None, log.read_text()
            try:
                if httpx.get(ready).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.1)
        else:
            raise AssertionError(f"{ready} did not answer: {log.read_text()}")
        yield running
    finally:
        running.terminate()
        running.wait(30)


class Place:
    """Starts processes that live as long as the test."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack, self.free_port = folder, stack, free_port
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, command, ready: str, **variables: str) -> subprocess.Popen[str]:
        """A program; `.processes` has them all."""
        log = self.folder / f"{len(self.processes)}.log"
        self.processes.append(self._stack.enter_context(process(command, ready, log, **variables)))
        return self.processes[-1]

    def serve(self, models: Path, port: int | None = None, **variables: str) -> int:
        """The service on the bundles in `models`; gives its port."""
        port = port or free_port()
        self.start(
            [sys.executable, "-c", IAFVAE, "serve", "--port", port, "--models", models],
            f"http://127.0.0.1:{port}/readyz",
            **{"IAFVAE_PROVIDER": "cpu", **variables},
        )
        return port


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path_factory.mktemp("place"), stack)
