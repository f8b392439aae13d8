"""What serving costs on a CPU beyond the model itself: ratios, measured in one run.

    python benchmarks/serving.py [--bundle DIR] [--seconds 2] [--rounds 5] [--json FILE]

A real `iafvae serve` process on a free loopback port scores at K = 1, images and answers as npy.
The bare graph is the bundle's `score.onnx` on one thread of this process with its inputs ready.
Rounds alternate between all measurements and the medians are compared, so that a machine's drift
hits all of them. The server's CPU seconds are its process's own (user and system, all threads).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as the service does
import onnxruntime as ort

# Run as a file, this folder comes first on the path, where other programs' names could hide ours.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from service.bundle import Bundle, load_bundle  # noqa: E402
from service.codecs import encode_npy  # noqa: E402
from service.settings import SHIPPED_BUNDLE  # noqa: E402

BATCH, CLIENTS = 64, 16
TICKS = os.sysconf("SC_CLK_TCK")
SERVE = [sys.executable, "-c", "from service.cli import main; main()", "serve"]


@dataclass(frozen=True)
class Load:
    """What one measurement found. `cpu_us` is CPU microseconds an image."""

    cpu_us: float
    images_per_second: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Target:
    """A ratio or figure, what it should be at most, and what it is."""

    name: str
    value: float
    most: float

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.value <= self.most

    @property
    def verdict(self) -> str:
        """The target, and what became of it."""
        return f"at most {self.most:g}: {'met' if self.met else 'MISSED'}"


def bare_graph(bundle: Bundle, batch: int, seconds: float) -> Load:
    """The score graph at K = 1 with nothing around it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # as the service's engine, for ragged batches
    graph = bundle.manifest.graphs["score"].file
    session = ort.InferenceSession(str(bundle.path / graph), options, ["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feed = {
        "image": rng.integers(0, 256, (batch, *bundle.manifest.image.shape), np.uint8),
        "owner": np.arange(batch),
        "eps": rng.standard_normal((batch, bundle.manifest.latent.dim), np.float32),
    }
    for _ in range(3):
        session.run(None, feed)
    times, cpu, end = [], _own_cpu(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - started)
    return _load(times, _own_cpu() - cpu, batch, sum(times))


def _own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _load(times: list[float], cpu: float, batch: int, wall: float) -> Load:
    images = batch * len(times)
    ordered = sorted(times)
    return Load(
        cpu_us=1e6 * cpu / images,
        images_per_second=images / wall,
        p50_ms=1e3 * ordered[len(ordered) // 2],
        p99_ms=1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
    )


class Server:
    """A running `iafvae serve` process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, ready_seconds: float) -> None:
        self.process, self.port, self.ready_seconds = process, port, ready_seconds

    def cpu_seconds(self) -> float:
        """User and system time of all of its threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory_mb(self) -> float:
        """The most resident memory it had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def load(self, request: bytes, batch: int, clients: int, seconds: float) -> Load:
        """`clients` connections in a closed loop, each sending `request` of `batch` images."""
        cpu, started = self.cpu_seconds(), time.perf_counter()
        times = asyncio.run(_clients(self.port, request, clients, seconds))
        wall = time.perf_counter() - started
        return _load(times, self.cpu_seconds() - cpu, batch, wall)


@contextmanager
def serving(bundle: Path) -> Iterator[Server]:
    """Start a server and end it with SIGTERM."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    variables = {"IAFVAE_MODELS": str(bundle), "IAFVAE_PORT": str(port), "IAFVAE_PROVIDER": "cpu"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("IAFVAE_")}
    started = time.perf_counter()
    process = subprocess.Popen(SERVE, env={**kept, **variables, "IAFVAE_LOG_LEVEL": "warning"})
    try:
        _wait_until_ready(process, port)
        yield Server(process, port, time.perf_counter() - started)
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(3000):
        if process.poll() is not None:
            raise SystemExit("the server did not start")
        try:
            with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            time.sleep(0.01)
    raise SystemExit("the server did not become ready within 30 s")


def score_request(shape: tuple[int, ...], batch: int) -> bytes:
    """A complete HTTP request: `batch` random images as npy, scored at K = 1, npy back."""
    pixels = np.random.default_rng(1).integers(0, 256, (batch, *shape), np.uint8)
    body = encode_npy(pixels)
    head = (
        "POST /v1/score?importance_samples=1 HTTP/1.1\r\nhost: localhost\r\n"
        "content-type: application/x-npy\r\naccept: application/x-npy\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _clients(port: int, request: bytes, clients: int, seconds: float) -> list[float]:
    end = time.perf_counter() + seconds
    parts = await asyncio.gather(*(_client(port, request, end) for _ in range(clients)))
    return [t for part in parts for t in part]


async def _client(port: int, request: bytes, end: float) -> list[float]:
    """Seconds of each request; plain streams, so that the load costs little beside the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times = []
    while time.perf_counter() < end:
        started = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise SystemExit(f"the server refused: {head.decode()}")
        await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        times.append(time.perf_counter() - started)
    writer.close()
    return times


def measure(bundle: Bundle, server: Server, rounds: int, seconds: float) -> dict[str, Load]:
    """Medians over `rounds` of every measurement, taken in turn."""
    shape = bundle.manifest.image.shape
    many, one = score_request(shape, BATCH), score_request(shape, 1)
    runs: dict[str, Callable[[], Load]] = {
        f"bare graph, batch {BATCH}": lambda: bare_graph(bundle, BATCH, seconds),
        f"server, {BATCH} images a request, 1 client": lambda: server.load(many, BATCH, 1, seconds),
        "bare graph, batch 1": lambda: bare_graph(bundle, 1, seconds),
        "server, 1 image a request, 1 client": lambda: server.load(one, 1, 1, seconds),
        f"server, 1 image a request, {CLIENTS} clients": lambda: server.load(
            one, 1, CLIENTS, seconds
        ),
    }
    server.load(many, BATCH, 1, 0.3)  # what is imported or allocated at first use is not measured
    found: dict[str, list[Load]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
    return {name: _median(loads) for name, loads in found.items()}


def _median(loads: list[Load]) -> Load:
    columns = {name: [asdict(load)[name] for load in loads] for name in asdict(loads[0])}
    return Load(**{name: statistics.median(values) for name, values in columns.items()})


def targets(loads: dict[str, Load], ready_seconds: float, memory_mb: float) -> list[Target]:
    """The figures that are promised."""
    bare, many, _, single, crowd = (load.cpu_us for load in loads.values())
    return [
        Target(f"CPU an image at {BATCH} a request / bare graph", many / bare, 1.25),
        Target(f"CPU an image, {CLIENTS} clients / 1 client, 1 image each", crowd / single, 0.7),
        Target("seconds from start to ready", ready_seconds, 2.5),
        Target("resident memory, MB", memory_mb, 400.0),
    ]


def report(loads: dict[str, Load], goals: list[Target]) -> str:
    """Two tables."""
    lines = [f"{'':48}{'CPU us/image':>14}{'images/s':>11}{'p50 ms':>9}{'p99 ms':>9}"]
    lines += [
        f"{name:48}{x.cpu_us:14.1f}{x.images_per_second:11.0f}{x.p50_ms:9.2f}{x.p99_ms:9.2f}"
        for name, x in loads.items()
    ]
    lines.append("")
    lines += [f"{goal.name:48}{goal.value:14.2f}   {goal.verdict}" for goal in goals]
    return "\n".join(lines)


def main() -> None:
    """Measure and print; exits with 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE, help="default: the shipped")
    parser.add_argument("--seconds", type=float, default=2.0, help="a measurement (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="alternations (default 5)")
    parser.add_argument("--starts", type=int, default=3, help="starts of the server (default 3)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    starts = []
    for _ in range(options.starts - 1):
        with serving(options.bundle) as server:
            starts.append(server.ready_seconds)
    with serving(options.bundle) as server:
        starts.append(server.ready_seconds)
        loads = measure(bundle, server, options.rounds, options.seconds)
        goals = targets(loads, statistics.median(starts), server.memory_mb())
    print(report(loads, goals))
    if options.json:
        document: dict[str, Any] = {
            "bundle": {"name": bundle.manifest.name, "hash": bundle.hash},
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "onnxruntime": ort.__version__,
            "loads": {name: asdict(load) for name, load in loads.items()},
            "targets": [{**asdict(goal), "met": goal.met} for goal in goals],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(0 if all(goal.met for goal in goals) else 1)


if __name__ == "__main__":
    main()
