"""The process: its signals, its standard streams, and a log that nobody reads."""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.api.security.keys import key_line
from service.logs import configure_logging
from service.server import background_logs as background_logs_module
from service.server.background_logs import background_logs
from service.settings import SHIPPED_BUNDLE


@pytest.mark.parametrize("serves", [False, True], ids=["at the start", "the watcher"])
def test_the_end_while_models_load(tiny_bundle, put, tmp_path, serves):
    """A thread in native code may abort the interpreter that ends around it."""
    code = (
        "import atexit, os\n"
        "from pathlib import Path\n"
        "from service.engine import onnxruntime_engine as engine\n"
        "from service.server import run\n"
        "from service.settings import load_settings\n"
        "whole, settings = engine.Engine.__init__, load_settings()\n"
        "def often(self, *args, **more):\n"
        f"    if Path({str(tmp_path)!r}, 'second').exists():\n"
        "        print('loads', flush=True)\n"
        "        while True:\n"
        "            whole(self, *args, **more)\n"
        "    whole(self, *args, **more)\n"
        "    print('loaded', flush=True)\n"
        "engine.Engine.__init__ = often\n"
        "atexit.register(os.write, 2, b'the interpreter ends')\n"
        "run.serve(settings)\n"
    )
    settings = os.environ | {"IAFVAE_MODELS": str(tmp_path), "IAFVAE_PORT": "0"}
    settings |= {"IAFVAE_WATCH_SECONDS": "0.1", "IAFVAE_DRAIN_SECONDS": "1"}
    put(tiny_bundle, tmp_path / ("first" if serves else "second"))
    with subprocess.Popen(
        [sys.executable, "-c", code], env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        if serves:
            assert process.stdout.readline() == b"loaded\n"
            put(SHIPPED_BUNDLE, tmp_path / "second")
        assert process.stdout.readline() == b"loads\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert b"the interpreter ends" not in said


def test_the_end_while_modules_are_imported(tiny_bundle):
    """A container's first process does not get a signal that it has no handler for."""
    code = (
        "import sys, time\n"
        "class Slow:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'service.server.run':\n"
        "            print('imports', flush=True)\n"
        "            time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from service.cli.main import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "serve"]
    env = os.environ | {"IAFVAE_MODELS": str(tiny_bundle), "IAFVAE_PORT": "0"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"imports\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"IAFVAE_PORT": "x", "IAFVAE_MAX_N": "0"}, "IAFVAE_PORT='x'.*\nIAFVAE_MAX_N='0'"),
        ({"IAFVAE_MODELS": "nowhere"}, "there is no bundle at nowhere"),
        ({"IAFVAE_DEFAULT_MODEL": "other"}, "'other' is not among the loaded models"),
    ],
)
def test_a_start_that_fails_is_one_object_in_a_log_of_json(tiny_bundle, wrong, reason):
    env = {"IAFVAE_MODELS": str(tiny_bundle), "IAFVAE_PORT": "0", "IAFVAE_LOG_FORMAT": "json"}
    command = [sys.executable, "-c", "from service.cli.main import main; main()", "serve"]
    done = subprocess.run(
        command, env=os.environ | env | wrong, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in lines].count("error") == 1
    assert re.search(reason, lines[-1]["message"])
    assert "exception" not in lines[-1]


def test_the_start_is_said_in_few_lines(tiny_bundle):
    """Of one model: where it computes, that it is loaded, and last the address."""
    settings = os.environ | {"IAFVAE_MODELS": str(tiny_bundle), "IAFVAE_PORT": "0"}
    command = [sys.executable, "-c", "from service.cli.main import main; main()", "serve"]
    with subprocess.Popen(command, env=settings, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        while not (lines and "serving on" in lines[-1]):
            lines.append(process.stderr.readline())
            assert lines[-1], "it ended"
        address = re.search(r"http://[\d.:]+", lines[-1])[0]
        while True:
            try:
                assert httpx.get(f"{address}/readyz").status_code == 200
                break
            except httpx.TransportError:
                time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        after = process.stderr.read().splitlines()
    assert len(lines) <= 3
    assert "tiny by default" in lines[-1]
    assert [line.split("INFO")[-1].strip() for line in after] == ["Shutting down"]


def test_a_stream_that_the_end_cuts_is_no_error(tiny_bundle, tmp_path):
    """Nobody reads it, so it is not done when the drain ends; that is no fault of the service."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = os.environ | {"IAFVAE_MODELS": str(tiny_bundle), "IAFVAE_PORT": f"{port}"}
    log = tmp_path / "log"
    with (
        log.open("w") as stream,
        subprocess.Popen(
            [sys.executable, "-c", "from service.cli.main import main; main()", "serve"],
            env=settings | {"IAFVAE_DRAIN_SECONDS": "0.5"},
            stderr=stream,
        ) as process,
    ):
        for _ in range(600):
            try:
                client = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                time.sleep(0.05)
        body = b'{"n": 1000000}'
        head = "POST /v1/sample HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"
        head += f"accept: application/x-npy\r\ncontent-length: {len(body)}\r\n\r\n"
        with client:
            client.sendall(head.encode() + body)
            assert client.recv(12) == b"HTTP/1.1 200"
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    said = log.read_text()
    assert "ERROR" not in said, said
    assert "Traceback" not in said, said


@pytest.mark.skipif(
    signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, reason="nohup turned SIGHUP off"
)
def test_user_signals_are_ignored_and_a_hang_up_drains(start_server):
    running = start_server()
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        running.process.send_signal(number)
    time.sleep(0.2)
    assert httpx.get(f"{running.url}/readyz").status_code == 200
    running.process.send_signal(signal.SIGHUP)
    assert running.process.wait(60) == 0


def test_connections_and_what_is_no_request_are_in_the_metrics(start_server):
    running = start_server()
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(b"nonsense\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 400"
        page = httpx.get(f"{running.url}/metrics").text
    said = re.findall(r"^(iafvae_open_connections|iafvae_requests_total\{.*) (.*)$", page, re.M)
    found = {name: float(value) for name, value in said}
    assert found["iafvae_open_connections"] >= 1
    malformed = 'iafvae_requests_total{model="",operation="",outcome="bad-request"}'
    assert found[malformed] == 1


def test_every_metric_is_explained_to_operators(start_server, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text(key_line("k", "ada") + "\n")
    running = start_server(IAFVAE_KEYS_FILE=str(keys), IAFVAE_OPEN_METRICS="true")
    page = httpx.get(f"{running.url}/metrics").text
    page_of_docs = Path(__file__).resolve().parents[3] / "docs" / "operations.md"
    text = page_of_docs.read_text(encoding="utf-8").partition("| metric ")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in text.splitlines()[2:]]
    said = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(said) == sorted(re.findall(r"^# HELP iafvae_(\w+)", page, re.M))


def test_streams_that_are_closed(tiny_bundle):
    """No socket gets a number that libraries write their messages to."""
    program = (
        "import os, sys\n"
        "for fd in (0, 1, 2): os.close(fd)\n"
        "sys.stdin = sys.stdout = sys.stderr = None\n"
        "from service.server import run\n"
        "from service.settings import load_settings\n"
        "def stop(listener, host):\n"
        "    good = listener.fileno() > 2 and sys.stderr is not None\n"
        "    os._exit(0 if good else 1)\n"
        "run.listen = stop\n"
        "run.serve(load_settings(port=0))\n"
    )
    env = {**os.environ, "IAFVAE_MODELS": str(tiny_bundle), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", program], env=env, check=False).returncode == 0


@contextmanager
def piped(monkeypatch):
    """Standard error is a pipe; gives the end to read from. (Captures are set between fixtures.)"""
    reads, writes = os.pipe()
    with os.fdopen(writes, "w") as stream, os.fdopen(reads, "rb") as reader:
        monkeypatch.setattr(sys, "stderr", stream)
        loggers = [logging.getLogger(name) for name in ("iafvae", "service", "uvicorn")]
        before = [(one.handlers[:], one.level, one.propagate) for one in loggers]
        configure_logging("info", "text")
        yield reader
        for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
            one.handlers[:] = handlers
            one.setLevel(level)
            one.propagate = propagate


def _read(pipe, seconds=0.3):
    """What is written until nothing comes for a while."""
    text = b""
    while select.select([pipe], [], [], seconds)[0]:
        text += os.read(pipe.fileno(), 65536)
    return text


def test_a_log_that_nobody_reads_stops_nobody(monkeypatch):
    logger = logging.getLogger("iafvae")
    with piped(monkeypatch) as pipe, background_logs(max_lines=100):
        for number in range(3000):  # more than a pipe holds
            logger.info("line %d %s", number, "x" * 100)
        text = _read(pipe)
        logger.info("again")
        text += _read(pipe)
    lines = text.decode().splitlines()
    assert "line 0 xxx" in lines[0]
    note = next(line for line in lines if "were dropped" in line)
    assert "WARNING" in note
    assert len(lines) < 2000


def test_two_loggers_at_the_last_place_wait_for_nobody():
    """Each has a handler with a lock of its own, and all share one queue."""

    class LastPlace(queue.Queue):
        def full(self):  # as both see it, before either has put anything
            return False

    waiting = LastPlace(1)
    record = logging.LogRecord("iafvae", logging.INFO, __file__, 0, "line", None, None)
    first, second = (background_logs_module._Dropping(waiting, None) for _ in range(2))
    first.enqueue(record)
    second.enqueue(record)  # would wait for ever
    waiting.get_nowait()
    second.enqueue(record)
    assert "1 lines of the log were dropped" in waiting.get_nowait().getMessage()


def test_what_is_logged_is_written_before_the_end(monkeypatch):
    with piped(monkeypatch) as pipe:
        with background_logs():
            try:
                raise ValueError("oh")
            except ValueError:
                fields = {"fields": {"a": 5}}
                logging.getLogger("iafvae.x").exception("it %s", "failed", extra=fields)
            logging.getLogger("third.party").warning("careful")
        text = _read(pipe).decode()
    assert "it failed a=5\nTraceback" in text
    assert text.count("ValueError: oh\n") == 1
    assert "WARNING careful" in text


def test_the_end_does_not_wait_for_a_reader(monkeypatch):
    monkeypatch.setattr("service.server.background_logs.FLUSH_SECONDS", 0.2)
    root = logging.getLogger().handlers[:]
    with piped(monkeypatch) as pipe:
        with background_logs():
            for _ in range(2000):
                logging.getLogger("iafvae").info("x" * 100)
            logging.getLogger("iafvae").info("last")
        assert b"last" in _read(pipe)
    logging.getLogger().handlers[:] = root


def test_what_the_server_starts_has_standard_streams_too():
    """A child that is started with closed ones gives their numbers to its first files."""
    program = (
        "from service.streams import occupy_standard_streams as occupy\n"
        "import os, subprocess, sys\n"
        "occupy()\n"
        "child = 'import os; [os.fstat(n) for n in range(3)]'\n"
        "done = subprocess.run([sys.executable, '-c', child], close_fds=False)\n"
        "sys.exit(done.returncode)"
    )
    shell = f'{sys.executable} -c "$0" 0<&- 1>&- 2>&-'
    assert subprocess.run(["bash", "-c", shell, program], check=False).returncode == 0
