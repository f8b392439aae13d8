"""The comparison with peers: what is promised, what is printed, and a real server's turn."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from benchmarks import systems
from benchmarks.peers import CROWDED, Run, best_peer, tables, verdicts
from benchmarks.score_graph import ScoreGraph, bare, drawn_images, graph_file
from benchmarks.server import ServerError, descendants, free_ports, serving
from benchmarks.serving import BOUNDS, CLOSED, Bound, lines
from benchmarks.systems import (
    FOLDER,
    OURS,
    PEERS,
    CannotInstall,
    Environment,
    WrongAnswerError,
    ask,
    json_png,
    npy,
    quiet_variables,
    service,
)

needs_h2load = pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")


def results(crowd: float = 700.0, p99: float = 6.0) -> dict:
    """Two rounds on a machine that halves its speed; of the peers, "b" is the better."""
    entries = []
    for round_, drift in ((1, 1.0), (2, 0.5)):
        for system, many, tail in ((OURS, crowd, p99), ("a", 300.0, 5.0), ("b", 500.0, 10.0)):
            for load in (*CLOSED, "arrivals, 80%"):
                figures = {"images_per_second": many * drift, "p99_ms": tail, "failed": 0.0}
                who = {"system": system, "protocol": f"of {system}", "load": load}
                entries.append({**who, "round": round_, "figures": figures})
    return {"entries": entries, "failures": {"c": "CannotInstall: no"}}


def test_promises_are_against_the_best_peer():
    assert best_peer(results()) == "b"
    rate, wait = verdicts(results(crowd=850.0))
    assert rate[1:] == (pytest.approx(1.7), True)
    assert wait[1:] == (pytest.approx(0.6), True)
    rate, wait = verdicts(results(crowd=845.0, p99=8.0))
    assert rate[1:] == (pytest.approx(1.69), False)
    assert wait[1:] == (pytest.approx(0.8), False)


def test_tables_have_medians_and_who_is_missing():
    text = tables(results())
    (row,) = [x for x in text.split("\n\n")[0].splitlines() if x.startswith("| b, of b ")]
    assert CROWDED in text
    assert row.split("|")[2].strip() == "375"  # between 500 and 250
    assert "- c: CannotInstall: no" in text


def test_bounds_are_met_or_missed():
    assert Bound(0.9, at_least=True).met(0.9)
    assert not Bound(0.9, at_least=True).met(0.89)
    assert not Bound(2).met(2.1)
    name = next(iter(BOUNDS))
    assert lines({name: [0.1, 0.2, 0.9], "else": [1.0]}) == [
        (name, 0.2, False),
        ("else", 1.0, None),
    ]


def test_the_bare_graph_uses_every_caller(tiny_bundle: Path):
    images = drawn_images(tiny_bundle, 8)
    assert images.dtype == np.uint8
    assert len(np.unique(images, axis=0)) > 1
    graph = ScoreGraph(graph_file(tiny_bundle, "score"))
    found = bare(graph, images, 2, 0.05)
    assert found["images_per_second"] > 0
    assert found["cpu_us"] > 0


@pytest.mark.parametrize("body", [b"", b"{}", b'{"results": [{}]}', b'{"results": 3}'])
def test_a_strange_answer_is_a_wrong_one(body: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(systems.httpx, "post", lambda *_, **__: httpx.Response(200, content=body))
    for protocol in (npy(), json_png()):
        with pytest.raises(WrongAnswerError, match=protocol.name):
            ask(1, protocol, np.zeros((1, 1, 4, 4), np.uint8))


def test_no_answer_is_a_wrong_one():
    (port,) = free_ports(1)
    with pytest.raises(WrongAnswerError, match="npy: ConnectError"):
        ask(port, npy(), np.zeros((1, 1, 4, 4), np.uint8))


def test_graphs_are_found_in_each_form(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="score"):
        graph_file(tmp_path, "score")
    for form in (".", "portable", "cpu"):  # the later, the better on a CPU
        (tmp_path / form).mkdir(exist_ok=True)
        path = tmp_path / form / "score.onnx"
        path.touch()
        assert graph_file(tmp_path, "score") == path.resolve()


@needs_h2load
def test_a_turn_checks_answers_measures_and_ends_the_server(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = set(descendants(os.getpid()))
    monkeypatch.setattr("benchmarks.peers.CLOSED", {CROWDED: (1, 4)})
    document, saved = {"entries": [], "failures": {}}, []
    run = Run(tiny_bundle, tmp_path, 0.05, document, lambda: saved.append(len(document["entries"])))
    ours = service(tiny_bundle)
    run.closed(ours, 1)
    assert [e["protocol"] for e in document["entries"]] == [p.name for p in ours.protocols]
    for entry in document["entries"]:
        assert entry["figures"]["ok"] == entry["figures"]["requests"] > 0
        assert entry["figures"]["memory_mib"] > 20
    assert saved == [len(ours.protocols)]
    npy = ours.protocols[0]
    lying = replace(npy, name="lie", scores=lambda answer: npy.scores(answer) + 1)
    run.closed(replace(ours, name="liar", protocols=(*ours.protocols, lying)), 1)
    assert len(document["entries"]) == len(ours.protocols)
    assert "WrongAnswerError" in document["failures"]["liar"]
    broken = replace(ours, command=lambda *_: [sys.executable, "-c", "raise SystemExit('no')"])
    with pytest.raises(ServerError, match="no"):
        run.closed(broken, 1)  # without the service there is nothing to compare
    assert set(descendants(os.getpid())) <= before


FAMILY = """
import http.server, os, subprocess, sys, time
burn = "import time\\nwhile time.process_time() < 0.2: pass\\n"
child = subprocess.Popen([sys.executable, "-c", burn + "import signal\\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\ntime.sleep(60)"])
subprocess.run([sys.executable, "-c", burn])
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def test_processor_time_and_the_end_are_of_the_whole_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A child that lives and ignores SIGTERM, and one that has ended: 0.2 s each."""
    monkeypatch.setattr("benchmarks.server.STOP_SECONDS", 1.0)
    before = set(descendants(os.getpid()))
    (port,) = free_ports(1)
    command = [sys.executable, "-c", FAMILY, str(port)]
    with serving(command, port, "/", os.environ, tmp_path, tmp_path / "log") as server:
        end = time.monotonic() + 20
        while server.cpu_seconds() < 0.4 and time.monotonic() < end:
            time.sleep(0.02)
        assert server.cpu_seconds() >= 0.4
        assert server.memory_mib() > server.resident_mib() / 4 > 1
        family = set(descendants(os.getpid())) - before
        assert len(family) == 2
    assert psutil.wait_procs(family, 20)[1] == []


def test_a_server_that_ends_says_why(tmp_path: Path):
    command = [sys.executable, "-c", "raise SystemExit('no such graph')"]
    (port,) = free_ports(1)
    with (
        pytest.raises(ServerError, match="no such graph"),
        serving(command, port, "/", os.environ, tmp_path, tmp_path / "log"),
    ):
        pass


def test_every_peer_is_pinned_and_reports_to_nobody(tmp_path: Path):
    for peer in PEERS:
        assert peer.environment is not None
        lines = peer.environment.requirements.read_text().splitlines()
        assert all("==" in line for line in lines if not line.startswith("#"))
        assert "==" in peer.environment.version()
        assert any("onnxruntime==" in line for line in lines)
    assert {p.stem for p in FOLDER.glob("*.txt")} == {p.environment.name for p in PEERS}
    variables = quiet_variables(tmp_path)
    assert variables["BENTOML_DO_NOT_TRACK"] == "True"
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
    assert variables["HOME"] == str(tmp_path)


def test_a_peer_that_cannot_be_installed_says_why(tmp_path: Path):
    with pytest.raises(CannotInstall, match="there is no /nowhere/python"):
        Environment("litserve", "/nowhere/python").make(tmp_path)


def started(pid: int) -> list[psutil.Process]:
    found = descendants(pid)
    with contextlib.suppress(psutil.Error):
        if any("serve" in process.cmdline() for process in found):
            return found
    return []


def test_an_interrupted_run_leaves_no_server_behind(tiny_bundle: Path, tmp_path: Path):
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-m", "benchmarks.serving", "--bundle", str(tiny_bundle)]
    command += ["--parts", "start", "--json", str(tmp_path / "found.json")]
    program = subprocess.Popen(
        command,
        cwd=root,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Whoever runs the tests in the background may have its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # While it forks, Python may lose a signal in a hook of the fork: the server is to run.
    end = time.monotonic() + 60
    while not (servers := started(program.pid)) and time.monotonic() < end:
        time.sleep(0.02)
    assert servers
    program.send_signal(signal.SIGINT)
    program.communicate(timeout=50)
    assert program.returncode != 0
    assert psutil.wait_procs(servers, 20)[1] == []
