"""Load by h2load: what is computed of its log, and that it does what is asked of it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import load
from benchmarks.load import LoadError, Request, arriving, beside, closed, counted
from benchmarks.server import Server, free_ports, serving

needs_h2load = pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")
POST = Request("/", b"four", {"x-kind": "test"}, images=2)

# Answers 200, and 429 to every third; writes a dot for each request.
SERVER = """
import http.server, itertools, sys
turn = itertools.count(1)
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self): self.answer(200, b"")
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        assert (body, self.headers["x-kind"]) == (b"four", "test")
        number = next(turn)
        open(sys.argv[2], "a").write(".")
        self.answer(200 if number % 3 else 429, b"ok")
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer.request_queue_size = 256
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return tmp_path / "asked"


@pytest.fixture
def server(tmp_path: Path, asked: Path) -> Iterator[Server]:
    (port,) = free_ports(1)
    command = [sys.executable, "-c", SERVER, str(port), str(asked)]
    with serving(command, port, "/", os.environ, tmp_path, tmp_path / "log") as running:
        yield running


def test_figures_are_of_the_log():
    """Ten requests, one every 100 ms: seven answered, one of them late, two refused, one lost."""
    took = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.3, 1.5, 0.01, 0.02, 0.2])
    status = np.array([200] * 7 + [429, 503, -1])
    found = load._figures(np.stack([0.1 * np.arange(10), status, took], axis=1))
    assert (found["ok"], found["refused"], found["failed"]) == (7, 2, 1)
    assert found["images_per_second"] == pytest.approx(7 / 2.1)  # the last answer is at 0.6 + 1.5
    assert found["goodput"] == pytest.approx(6 / 2.1)
    assert (found["p50_ms"], found["p99_ms"]) == (pytest.approx(100), pytest.approx(1500))
    assert found["refused_p99_ms"] == pytest.approx(20)
    assert found["sent_per_second"] == pytest.approx(10 / 0.9)


@needs_h2load
def test_a_closed_loop_counts_images_refusals_and_what_they_cost(server: Server, asked: Path):
    found = counted(server, POST, clients=3, requests=300)
    assert len(asked.read_text()) == found["requests"] == 300
    assert (found["ok"], found["refused"], found["failed"]) == (200, 100, 0)
    seconds = 300 / found["requests_per_second"]
    assert found["images_per_second"] == pytest.approx(2 * 200 / seconds)
    assert found["cpu_us"] > 0  # of so many requests: the system counts in hundredths of a second
    assert closed(server, POST, clients=2, seconds=0.2)["requests"] >= 4


@pytest.mark.parametrize("rate", [3.0, 20.0, 70.0, 333.0, 1500.0, 4321.0])
def test_connections_begin_at_the_rate(rate: float):
    begun, milliseconds = load._pace(rate)
    assert 1e3 * begun / milliseconds == pytest.approx(rate, rel=0.01)
    assert begun < 20  # in small groups


@needs_h2load
def test_arrivals_come_at_their_rate(server: Server):
    found = arriving(server, POST, rate=100.0, seconds=1.0)
    assert found["requests"] == 100
    assert found["unanswered"] == 0
    assert found["sent_per_second"] <= 115  # a busy machine sends later, none sends sooner


@needs_h2load
def test_who_is_beside_ends_with_the_block(server: Server, asked: Path):
    with beside(server, POST):
        while not asked.exists():
            pass
    before = len(asked.read_text())
    assert counted(server, POST, clients=1, requests=3)["requests"] == 3
    assert len(asked.read_text()) - before < 10


@needs_h2load
def test_nobody_there_is_an_error(server: Server):
    server.stop()
    with pytest.raises(LoadError, match="h2load"):
        counted(server, POST, clients=1, requests=1)
