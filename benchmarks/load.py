"""Load on a server of the loopback by h2load, and what became of it.

h2load (nghttp2; `apt-get install nghttp2-client`) makes closed loops and arrivals at a rate, and
writes a line a request, from which everything here is computed. Our own are only the arithmetic
and the server's processor time, which no generator sees.
"""

import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.server import Server

OPENING_SECONDS = 0.5  # in which the connections of `arriving` are made
GOOD_SECONDS = 1.0  # an answer that takes longer is not counted as goodput
MOST_CONNECTIONS = 1000  # of arrivals; each sends at its part of the rate,
INTERVAL_SECONDS = 0.5  # so often where they suffice
PATIENCE_SECONDS = 5.0  # for answers after the last arrival
WARM_SECONDS = 0.7
REFUSALS = (429, 503)  # the server says that it will not

Figures = dict[str, float]


class LoadError(Exception):
    """The generator is missing, or did not do what it should."""


@dataclass(frozen=True)
class Request:
    """A POST of so many images."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    images: int


def closed(server: Server, request: Request, clients: int, seconds: float) -> Figures:
    """`clients` that send their next request when they have the answer, for about `seconds`.

    All requests are answered in the end: their number comes from a short run before.
    """
    warm = ["-c", str(clients), "-D", f"{1e3 * WARM_SECONDS:.0f}ms"]
    rate = len(_run(server, request, warm)) / WARM_SECONDS
    return counted(server, request, clients, max(2, round(rate * seconds / clients)) * clients)


def counted(server: Server, request: Request, clients: int, requests: int) -> Figures:
    """A closed loop of so many requests."""
    return _measured(server, request, ["-c", str(clients), "-n", str(requests)])


def arriving(server: Server, request: Request, rate: float, seconds: float) -> Figures:
    """`rate` requests a second, evenly, whatever becomes of them.

    Each of many connections sends at its part of the rate, and they begin one after the other; who
    waits for an answer longer than a connection's interval sends late.
    """
    total = max(1, round(rate * seconds))
    connections = max(1, min(MOST_CONNECTIONS, round(rate * INTERVAL_SECONDS)))
    begun, milliseconds = _pace(rate)
    how = ["-c", str(connections), "-n", str(total), "--rps", f"{rate / connections:.6f}"]
    how += ["-r", str(begun), "--rate-period", f"{milliseconds}ms"]
    how += ["-T", f"{seconds + PATIENCE_SECONDS:.0f}s"]
    found = _measured(server, request, how)
    return found | {"offered": rate, "unanswered": total - found["requests"]}


def _pace(rate: float) -> tuple[int, int]:
    """Connections to begin in so many milliseconds, at `rate` a second within 1%."""
    for milliseconds in range(1, 1000):
        begun = max(1, round(rate * milliseconds / 1e3))
        if abs(1e3 * begun / milliseconds - rate) <= 0.01 * rate:
            return begun, milliseconds
    return max(1, round(rate)), 1000


@contextmanager
def beside(server: Server, request: Request) -> Iterator[None]:
    """One client that sends `request` without a pause meanwhile."""
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        command = _command(server, request, ["-c", "1", "-n", "1000000"], Path(folder))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.kill()
            process.wait()


def _measured(server: Server, request: Request, how: list[str]) -> Figures:
    """The figures with what they cost: an image that failed is not paid for."""
    before, own = server.cpu_seconds(), _children_seconds()
    lines = _run(server, request, how)
    if not len(lines):
        raise LoadError("h2load: no request was answered")
    cpu, client = server.cpu_seconds() - before, _children_seconds() - own
    found = _figures(lines)
    found |= {name: found[name] * request.images for name in ("images_per_second", "goodput")}
    if found["ok"]:
        found["cpu_us"] = 1e6 * cpu / (found["ok"] * request.images)
    return found | {"client_us": 1e6 * client / found["requests"]}


def _run(server: Server, request: Request, how: list[str]) -> NDArray[np.float64]:
    """What h2load has logged, ``[requests, 3]``: start in seconds, status (-1: none), seconds."""
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        folder = Path(name)
        done = subprocess.run(
            _command(server, request, how, folder), capture_output=True, text=True, check=False
        )
        log = folder / "log"
        if done.returncode != 0 or not log.exists():
            raise LoadError(f"h2load: {(done.stderr or done.stdout).strip()[-300:]}")
        rows = [line.split()[:3] for line in log.read_text().splitlines()]
        return np.array(rows, np.float64).reshape(-1, 3) * (1e-6, 1.0, 1e-6)


def _command(server: Server, request: Request, how: list[str], folder: Path) -> list[str]:
    program = shutil.which("h2load")
    if program is None:
        raise LoadError("there is no h2load: apt-get install nghttp2-client")
    body, log = folder / "body", folder / "log"
    body.write_bytes(request.body)
    headers = [part for pair in request.headers.items() for part in ("-H", ": ".join(pair))]
    url = f"http://127.0.0.1:{server.port}{request.path}"
    return [program, "--h1", "-d", str(body), f"--log-file={log}", *headers, *how, url]


def _figures(lines: NDArray[np.float64]) -> Figures:
    """What is reported, in units that its name tells; rates are until the last answer."""
    starts, status, took = lines.T
    seconds = float((starts + took).max() - starts.min())
    ok, refused = status == 200, np.isin(status, REFUSALS)
    return {
        "requests": float(len(lines)),
        "ok": float(ok.sum()),
        "refused": float(refused.sum()),
        "failed": float((~ok & ~refused).sum()),
        "requests_per_second": len(lines) / seconds,
        "sent_per_second": len(lines) / max(1e-6, float(np.ptp(starts))),
        "images_per_second": float(ok.sum()) / seconds,
        "goodput": float((ok & (took <= GOOD_SECONDS)).sum()) / seconds,
        **_times("", took[ok]),
        **_times("refused_", took[refused]),
        **_times("later_refused_", took[refused & (starts >= starts.min() + OPENING_SECONDS)]),
    }


def _times(name: str, seconds: NDArray[np.float64]) -> Figures:
    if not len(seconds):
        return {}
    p50, p99 = 1e3 * np.percentile(seconds, [50, 99], method="higher")
    return {f"{name}p50_ms": float(p50), f"{name}p99_ms": float(p99)}


def _children_seconds() -> float:
    """Processor time of the children that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
