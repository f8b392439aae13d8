"""A place where a page's examples are run: commands on the path, files, a real server."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PORT = re.compile(r"\b(?:127\.0\.0\.1:|localhost:|IAFVAE_PORT=|--port )(80\d\d)\b")
COMMANDS = {
    "iafvae": "from service.cli.main import main; main()",
    "iafvae-train": "from training.__main__ import main; main()",
}


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def pages() -> ModuleType:
    """The module `pages.py`: `blocks(page)`, `commands(text)`, `agree(printed, documented)`."""
    return _module("pages")


class Place:
    """A directory in which a page's blocks are run, one after another.

    Ports 80xx of the page become free ones; 8000 is the server that ships, from the start.
    root: the checkout whose program runs.
    """

    def __init__(self, directory: Path, server: int, root: Path = ROOT) -> None:
        self.directory, self.printed = directory, ""
        self.ports = {"8000": str(server)}
        self.servers: list[subprocess.Popen[str]] = []
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("IAFVAE_")},
            "PATH": f"{directory / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "80",
        }
        _furnish(directory)

    def translated(self, text: str) -> str:
        """`text` with ports that are free here."""
        for port in PORT.findall(text):
            if port not in self.ports:
                self.ports[port] = str(_free_port())
        for port, free in self.ports.items():
            text = re.sub(rf"\b{port}\b", free, text)
        return text

    def run(self, language: str, text: str) -> subprocess.CompletedProcess[str]:
        """Run a block; what it prints is kept for the block that shows it."""
        program = [sys.executable, "-"] if language == "python" else ["bash", "-euo", "pipefail"]
        done = subprocess.run(
            program,
            input=self.translated(text),
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        self.printed = done.stdout
        for port, free in self.ports.items():
            self.printed = re.sub(rf"\b{free}\b", port, self.printed)
        return done

    def serve(self, text: str) -> None:
        """Start the server that a block starts, and wait until it is ready."""
        ours = self.translated(text)
        port = PORT.search(text)
        assert port is not None, "the server of an example states its port"
        command = ["bash", "-euc", ours.rstrip().rstrip("&")]
        process = subprocess.Popen(
            command, cwd=self.directory, env=self.environment, text=True, start_new_session=True
        )
        self.servers.append(process)
        _ready(process, self.ports[port[1]])

    def end(self) -> None:
        """End the page's servers as an operator does; each must exit with 0."""
        for process in self.servers:
            os.killpg(process.pid, signal.SIGTERM)
        for process in self.servers:
            assert process.wait(60) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)


def _furnish(directory: Path) -> None:
    """What a reader has: the commands in .venv, the checkout's folders, pictures of his own."""
    bin_ = directory / ".venv" / "bin"
    bin_.mkdir(parents=True)
    for name, code in {**COMMANDS, "python": ""}.items():
        script, start = bin_ / name, f'-c "{code}" ' if code else ""
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {start}"$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    for name in ("service", "training", "model", "deploy", "docs"):
        if not (directory / name).exists():
            (directory / name).symlink_to(ROOT / name)
    noise = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 90 * 120 * 3).reshape(90, 120, 3)
    Image.fromarray((ramp + noise.integers(0, 20, ramp.shape)).clip(0, 255).astype("u1")).save(
        directory / "photo.png"
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _ready(process: subprocess.Popen[str], port: str) -> None:
    for _ in range(600):
        assert process.poll() is None, "the server ended by itself"
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError("the server did not become ready")


@pytest.fixture(scope="session")
def shipped_server() -> Iterator[int]:
    """The port of a server on the bundles that ship."""
    port = _free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("IAFVAE_")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COMMANDS["iafvae"], "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, text=True)
    try:
        _ready(process, str(port))
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Place]:
    """A fresh clone, with no server yet."""
    for program in ("bash", "curl", "git"):
        if shutil.which(program) is None:
            pytest.skip(f"the clone needs {program}")
    if not (ROOT / ".git").exists():
        pytest.skip("there is no history to clone")
    directory = tmp_path / "clone"
    command = ["git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), str(directory)]
    subprocess.run(command, check=True, capture_output=True)
    here = Place(directory, _free_port(), root=directory)
    yield here
    here.end()


@pytest.fixture
def place(tmp_path: Path, shipped_server: int) -> Iterator[Place]:
    """Where one page is run."""
    for program in ("bash", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"the examples need {program}")
    here = Place(tmp_path, shipped_server)
    yield here
    here.end()
