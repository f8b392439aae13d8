"""The comparison with peers: what is promised, what is printed, and a real server's turn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.peers_bare import bare, cores, drawn_images, graph_of
from benchmarks.peers_env import FOLDER, CannotInstall, Environment, quiet_variables
from benchmarks.peers_measure import DIFFERENT, MANY, Bench
from benchmarks.peers_process import ServerError, descendants, free_ports, serving
from benchmarks.peers_report import OURS, Entry, Results, best_peer, targets
from benchmarks.peers_run import Run
from benchmarks.peers_systems import PEERS, service
from benchmarks.peers_tables import markdown, tables

from service.bundle import load_bundle

KINDS = dict.fromkeys(("ok", "refused", "error", "wrong", "broken", "unanswered"), 0.0)


def figures(rate: float, cpu: float, p50: float = 1.0, p99: float = 2.0, **more: float):
    found = {"images_per_second": rate, "goodput": rate, "cpu_us": cpu, "p50_ms": p50}
    return {**KINDS, **found, "p99_ms": p99, **more}


BARE = {"64x4": figures(1000, 500), "best": figures(1200, 450), "1x1": figures(900, 600, p50=0.5)}


def results() -> Results:
    """Two rounds: of the service as good as was promised, of peer "b" the better peer."""
    found = Results()
    for round_, drift in ((1, 1.0), (2, 0.5)):  # a machine that halves its speed
        graph = {
            load: {**f, "images_per_second": f["images_per_second"] * drift}
            for load, f in BARE.items()
        }
        for system, many, crowd, p99 in (
            (OURS, 1100, 700, 6),
            ("a", 500, 300, 5),
            ("b", 900, 500, 10),
        ):
            protocol = "npy" if system == OURS else "its own"
            add = lambda load, f, s=system, p=protocol, r=round_, g=graph: found.entries.append(  # noqa: E731
                Entry(s, p, load, r, f, g)
            )
            add("64x4", figures(many * drift, 480))
            add("1x32", figures(crowd * drift, 660))
            add("1x1", figures(800, 900, p50=0.8))
            add("poisson 80%", figures(400, 700, p99=p99, offered=400.0))
    return found


def verdicts(found: Results) -> dict[str, bool | None]:
    return {goal.name: goal.met for goal in targets(found)}


def test_ratios_are_of_the_same_round_and_of_the_graphs_best():
    values = {goal.name: goal.value for goal in targets(results())}
    assert values["64-image requests: throughput / bare graph"] == pytest.approx(1100 / 1200)
    assert values["64-image requests: CPU an image / bare graph"] == pytest.approx(480 / 450)
    assert values["one client, one image: p50 / bare graph"] == pytest.approx(1.6)
    peer = "one-image requests, 32 clients: throughput / best peer (b)"
    assert values[peer] == pytest.approx(1.4)
    assert values["p99 at 80% of the best peer's capacity / its p99 (b)"] == pytest.approx(0.6)


def test_targets_are_met_missed_or_not_measured():
    found = results()
    assert best_peer(found) == "b"
    met = verdicts(found)
    assert {name for name, v in met.items() if v is False} == set()
    assert met["80% load for a minute: requests that failed"] is None
    found.entries += [
        Entry(OURS, "npy", "steady", 1, {"failed": 1.0}),
        Entry(OURS, "npy", "beside", 1, {"alone_p99_ms": 4.0, "beside_p99_ms": 8.0}),
        Entry(OURS, "npy", "overload 64", 1, figures(89, 1, capacity=100.0, refused_p99_ms=49.0)),
        Entry(OURS, "npy", "overload 1", 1, figures(90, 1, capacity=100.0, refused_p99_ms=51.0)),
        Entry(OURS, "npy", "memory", 1, {"first_mib": 100.0, "last_mib": 106.0}),
    ]
    assert {name for name, v in verdicts(found).items() if v is False} == {
        "80% load for a minute: requests that failed",
        "300% load, 64-image requests: goodput / capacity",
        "300% load, 1-image requests: p99 of refusals, ms",
        "memory after 100,000 requests / after the first tenth",
    }
    assert all("MISSED" in t.line() for t in targets(found) if t.met is False)


def test_results_survive_json_and_are_printed():
    found = results()
    found.failures["c"] = "CannotInstall: no"
    assert Results.of(found.document()) == found
    text = tables(found)
    assert "| b, its own " in text
    assert "- c: CannotInstall: no" in text
    row = next(line for line in text.splitlines() if line.startswith("| this service, npy"))
    assert [cell.strip() for cell in row.split("|")[2:6]] == ["825", "0.92", "480", "1.07"]


def test_tables_are_markdown():
    assert markdown(["", "n"], [["a", "10"], ["long", "2"]]).splitlines() == [
        "|      |  n |",
        "|------|---:|",
        "| a    | 10 |",
        "| long |  2 |",
    ]


def test_the_bare_graph_uses_every_caller(tiny_bundle: Path):
    bundle = load_bundle(tiny_bundle)
    images = drawn_images(bundle, 8)
    assert images.dtype == np.uint8
    assert len(np.unique(images, axis=0)) > 1
    outcome = bare(graph_of(bundle), images, cores(), 0.05)
    found = outcome.figures()
    assert found["images_per_second"] > 0
    assert found["cpu_us"] > 0
    assert all(record.images == 8 for record in outcome.records)


def test_a_turn_checks_answers_measures_and_ends_the_server(tiny_bundle: Path, tmp_path: Path):
    before = descendants(os.getpid()).keys()
    bundle = load_bundle(tiny_bundle)
    bench = Bench(graph_of(bundle), drawn_images(bundle, MANY * DIFFERENT), 0.05)
    found, saved = Results(), []
    plan = Run(bundle, bench, tmp_path, found, saved.append)
    ours = service(bundle)
    plan.closed(ours, 1, loads=("64x4",))
    assert [entry.protocol for entry in found.entries] == ["npy", "JSON, base64", "v2 binary"]
    for entry in found.entries:
        assert entry.figures["ok"] == entry.figures["requests"] > 0
        assert entry.figures["memory_mib"] > 20
    assert saved == [found]
    lying = replace(ours, name="liar", expected=lambda graph, images: graph(images) + 1)
    plan.closed(lying, 1)
    assert len(found.entries) == 3
    assert "WrongAnswerError" in found.failures["liar"]
    broken = replace(ours, command=lambda *_: [sys.executable, "-c", "raise SystemExit('no')"])
    with pytest.raises(ServerError, match="no"):
        plan.closed(broken, 1)  # without the service there is nothing to compare
    assert descendants(os.getpid()).keys() <= before


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
    monkeypatch.setattr("benchmarks.peers_process.STOP_SECONDS", 1.0)
    before = descendants(os.getpid())
    (port,) = free_ports(1)
    command = [sys.executable, "-c", FAMILY, str(port)]
    with serving(command, port, "/", os.environ, tmp_path, tmp_path / "log") as server:
        end = time.monotonic() + 20
        while server.cpu_seconds() < 0.4 and time.monotonic() < end:
            time.sleep(0.02)
        assert server.cpu_seconds() >= 0.4
        assert server.memory_mib() > server.resident_mib() / 4 > 1
        family = descendants(os.getpid(), before)
        assert len(family) == 2
    assert not family.keys() & descendants(os.getpid()).keys()


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
        assert "==" in peer.version()
        assert any("onnxruntime==" in line for line in lines)
    assert {p.stem for p in FOLDER.glob("*.txt")} == {p.environment.name for p in PEERS}
    variables = quiet_variables(tmp_path)
    assert variables["BENTOML_DO_NOT_TRACK"] == "True"
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
    assert variables["HOME"] == str(tmp_path)


def test_a_peer_that_cannot_be_installed_says_why(tmp_path: Path):
    with pytest.raises(CannotInstall, match="there is no /nowhere/python"):
        Environment("litserve", "/nowhere/python").make(tmp_path)


def test_an_interrupted_run_leaves_no_server_behind(tiny_bundle: Path, tmp_path: Path):
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "benchmarks/serving.py", "--bundle", str(tiny_bundle)]
    command += ["--loads", "steady", "--json", str(tmp_path / "found.json")]
    program = subprocess.Popen(
        command,
        cwd=root,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Whoever runs the tests in the background may have its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while not (servers := descendants(program.pid)) and time.monotonic() < end:
        time.sleep(0.02)
    assert servers
    program.send_signal(signal.SIGINT)
    program.communicate(timeout=50)
    assert program.returncode != 0
    assert not [pid for pid in servers if Path(f"/proc/{pid}").exists()]
