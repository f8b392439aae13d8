"""What serving costs on a CPU beyond the model itself, and how the service behaves under stress.

    python -m benchmarks.serving [--rounds 3] [--seconds 2.5] [--json FILE]

A real `iafvae serve` of this checkout on a free loopback port scores at K = 1. Everything is a
ratio of one run: each round begins with the bare graph (the bundle's `score.onnx` in this process,
inputs ready, as many one-thread callers as cores in batches of 32, and one caller of one image),
and its loads are compared with that. Printed are medians over the rounds. CPU is the server's
alone, of its whole process tree; h2load makes the loads (`apt-get install nghttp2-client`).

--parts chooses: `loads` (closed loops in npy and v2), `json` (the same with PNGs in JSON),
`overload` (arrivals at three times the capacity, with a queue that an operator has bounded),
`beside` (small requests beside a huge one), `start` (seconds to ready, memory with one bundle and
with all that ship); and, not by default, `steady` (80% of the capacity for a minute) and `memory`
(resident memory over 100,000 requests). Exits with 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import parser_of, table, write_json
from benchmarks.load import Figures, LoadError, arriving, beside, closed, counted
from benchmarks.score_graph import Images, ScoreGraph, bare, drawn_images, graph_file
from benchmarks.server import Server, ServerError, stop_servers_when_ended
from benchmarks.systems import SHIPPED, Protocol, WrongAnswerError, npy, service
from service.engine.hardware import available_cores

MANY, CROWD, FEW, BEST_ROWS = 64, 32, 4, 32
CLOSED = {"one image, 32 clients": (1, CROWD), "one image, one client": (1, 1)}
CLOSED["64 images, 4 clients"] = (MANY, FEW)
HUGE_IMAGES, HUGE_SAMPLES = 256, 64  # rows: the most that the service takes in one request
SMALL_SHARE = 0.2  # of the capacity, for requests beside a huge one
# An operator bounds the queue by how long callers may wait: 256 rows take about a tenth of a
# second on two cores.
BOUNDED = dict.fromkeys(("max_queue_rows", "max_rows", "max_importance_samples"), 256)
IN_FLIGHT = 384  # of which one caller may have half
STEADY_SECONDS, MEMORY_REQUESTS, MEMORY_PARTS = 60.0, 100_000, 10
PARTS = ("loads", "json", "overload", "beside", "start", "steady", "memory")
DEFAULT_PARTS = ("loads", "overload", "beside", "start")


@dataclass(frozen=True)
class Bound:
    value: float
    at_least: bool = False

    def met(self, found: float) -> bool:
        return found >= self.value if self.at_least else found <= self.value

    def __str__(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.value:g}"


BOUNDS = {
    "one image, 32 clients: npy, throughput / bare": Bound(0.45, at_least=True),
    "one image, 32 clients: npy, CPU / bare": Bound(1.65),
    "one image, one client: npy, p50 / bare": Bound(1.9),
    "64 images, 4 clients: npy, throughput / bare": Bound(0.93, at_least=True),
    "64 images, 4 clients: npy, CPU / bare": Bound(1.05),
    "one image, 32 clients: v2 binary, throughput / bare": Bound(0.42, at_least=True),
    "one image, 32 clients: v2 binary, CPU / bare": Bound(1.8),
    "one image, 300% load: goodput / capacity": Bound(0.9, at_least=True),
    "one image, 300% load: p99 of refusals, ms": Bound(50),
    "64 images, 300% load: goodput / capacity": Bound(0.9, at_least=True),
    "64 images, 300% load: p99 of refusals, ms": Bound(50),
    "small beside huge: p99 / alone": Bound(2),
    "seconds to ready": Bound(2),
    "seconds to ready, all bundles": Bound(2),
    "80% load for a minute: requests that failed": Bound(0),
    "memory after 100,000 requests / after the first tenth": Bound(1.05),
}


@dataclass(frozen=True)
class Bare:
    """The bare graph at this minute: many callers with good batches, and one with one image."""

    best: Figures
    one: Figures

    @classmethod
    def measured(cls, graph: ScoreGraph, images: Images, seconds: float) -> Bare:
        """Each for half of `seconds`."""
        best = bare(graph, images[:BEST_ROWS], available_cores(), seconds / 2)
        return cls(best, bare(graph, images[:1], 1, seconds / 2))

    def under(self, found: Figures, clients: int) -> Figures:
        """A closed loop's figures over the bare graph's; nan where no request was answered."""
        alone, nan = self.one if clients == 1 else self.best, float("nan")
        ratios = {
            "throughput_to_bare": found["images_per_second"] / alone["images_per_second"],
            "cpu_to_bare": found.get("cpu_us", nan) / alone["cpu_us"],
        }
        if clients == 1:
            ratios["p50_to_bare"] = found.get("p50_ms", nan) / alone["p50_ms"]
        return ratios


class Bench:
    """All measurements, and what they found: a list a figure, of the rounds."""

    def __init__(self, bundle: Path, seconds: float) -> None:
        self.bundle, self.seconds = bundle, seconds
        self.images: Images = drawn_images(bundle, HUGE_IMAGES)
        self.graph = ScoreGraph(graph_file(bundle, "score"))
        self.found: defaultdict[str, list[float]] = defaultdict(list)
        self.bare = Bare({}, {})

    def measure_bare(self) -> None:
        self.bare = Bare.measured(self.graph, self.images, self.seconds)
        self._add("bare graph: images/s", self.bare.best["images_per_second"])
        self._add("bare graph: CPU, us an image", self.bare.best["cpu_us"])
        self._add("bare graph, one image: p50, ms", self.bare.one["p50_ms"])

    def loads(self, protocols: Sequence[int] = (0, 1)) -> None:
        """Closed loops over the bare graph."""
        ours = service(self.bundle)
        with ours.running(self.bundle) as server:
            ours.check(server, self.graph, self.images[:MANY])
            for number in protocols:
                for load, (size, clients) in CLOSED.items():
                    self._closed(server, ours.protocols[number], load, size, clients)

    def json(self) -> None:
        self.loads(protocols=(2,))

    def _closed(
        self, server: Server, protocol: Protocol, load: str, size: int, clients: int
    ) -> None:
        found = closed(server, protocol.request(self.images[:size]), clients, self.seconds)
        name, ratios = f"{load}: {protocol.name}", self.bare.under(found, clients)
        if clients == 1:
            self._add(f"{name}, p50 / bare", ratios["p50_to_bare"])
        else:
            self._add(f"{name}, throughput / bare", ratios["throughput_to_bare"])
        self._add(f"{name}, CPU / bare", ratios["cpu_to_bare"])
        self._add(f"{name}, p99, ms", found["p99_ms"])
        self._add(f"{name}, failed", found["failed"] + found["refused"])

    def overload(self) -> None:
        ours = service(self.bundle, **BOUNDED, max_in_flight=IN_FLIGHT)
        with ours.running(self.bundle) as server:
            for size, clients, name in ((1, CROWD, "one image"), (MANY, FEW, "64 images")):
                request = npy().request(self.images[:size])
                top = closed(server, request, clients, self.seconds)
                capacity = top["images_per_second"]
                found = arriving(server, request, 3.0 * capacity / size, self.seconds)
                load = f"{name}, 300% load"
                self._add(f"{load}: goodput / capacity", found["goodput"] / capacity)
                self._add(f"{load}: sent / offered", found["sent_per_second"] / found["offered"])
                self._add(f"{load}: refused", found["refused"] / found["requests"])
                if found["refused"]:
                    self._add(f"{load}: p50 of refusals, ms", found["refused_p50_ms"])
                    self._add(f"{load}: p99 of refusals, ms", found["refused_p99_ms"])
                    later = found.get("later_refused_p99_ms", math.nan)
                    self._add(f"{load}: p99 of refusals once connected, ms", later)
                self._add(f"{load}: failed", found["failed"] + found["unanswered"])

    def beside(self) -> None:
        """Small requests alone, and beside one caller who sends huge ones without a pause."""
        huge = npy(f"/v1/score?importance_samples={HUGE_SAMPLES}").request(self.images)
        small = npy().request(self.images[:1])
        with service(self.bundle).running(self.bundle) as server:
            rate = SMALL_SHARE * closed(server, small, CROWD, 1.0)["images_per_second"]
            alone = arriving(server, small, rate, self.seconds)
            with beside(server, huge):
                found = arriving(server, small, rate, self.seconds)
        self._add("small beside huge: p99 / alone", found["p99_ms"] / alone["p99_ms"])
        self._add("small beside huge: p50, ms", found["p50_ms"])
        self._add("small beside huge: p99, ms", found["p99_ms"])

    def start(self) -> None:
        """Seconds to ready, and memory after one large request."""
        every = {"one bundle": self.bundle, f"all in {self.bundle.parent.name}": self.bundle.parent}
        for number, (name, models) in enumerate(every.items()):
            with service(self.bundle).running(models) as server:
                counted(server, npy().request(self.images[:MANY]), FEW, 20)
                if number == 0:
                    self._add("seconds to ready", server.ready_seconds)
                else:
                    self._add("seconds to ready, all bundles", server.ready_seconds)
                self._add(f"memory, {name}, MiB", server.memory_mib())

    def steady(self) -> None:
        request = npy().request(self.images[:1])
        with service(self.bundle).running(self.bundle) as server:
            rate = 0.8 * closed(server, request, CROWD, self.seconds)["requests_per_second"]
            found = arriving(server, request, rate, STEADY_SECONDS)
        self._add("80% load for a minute: p99, ms", found["p99_ms"])
        failed = found["failed"] + found["refused"] + found["unanswered"]
        self._add("80% load for a minute: requests that failed", failed)

    def memory(self) -> None:
        """Resident memory while many requests are answered."""
        request = npy().request(self.images[:1])
        with service(self.bundle).running(self.bundle) as server:
            sizes = []
            for _ in range(MEMORY_PARTS):
                counted(server, request, CROWD, MEMORY_REQUESTS // MEMORY_PARTS)
                sizes.append(server.resident_mib())
        self._add("memory after 100,000 requests, MiB", sizes[-1])
        self._add("memory after 100,000 requests / after the first tenth", sizes[-1] / sizes[0])

    def _add(self, name: str, value: float) -> None:
        self.found[name].append(value)
        print(f"{name}: {value:.4g}", file=sys.stderr, flush=True)


def lines(found: dict[str, list[float]]) -> list[tuple[str, float, bool | None]]:
    """Name, median and whether it is within its bound, None where it has none."""
    medians = {name: statistics.median(values) for name, values in found.items()}
    return [(n, v, BOUNDS[n].met(v) if n in BOUNDS else None) for n, v in medians.items()]


def show(found: dict[str, list[float]]) -> bool:
    """Print the table; whether all bounds are met."""
    rows = []
    for name, value, met in lines(found):
        figures = (value, min(found[name]), max(found[name]))
        verdict = "" if met is None else f"{BOUNDS[name]}{'' if met else ': **missed**'}"
        rows.append([name, *(f"{figure:,.3g}" for figure in figures), verdict])
    print(table(["", "median", "from", "to", "wanted"], rows))
    return all(met is not False for *_, met in lines(found))


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--bundle", type=Path, default=SHIPPED / "mnist", help="default: the shipped mnist")
    add("--parts", nargs="+", choices=PARTS, default=DEFAULT_PARTS, help="what is measured")
    add("--seconds", type=float, default=2.5, help="of a measurement (default 2.5)")
    add("--rounds", type=int, default=3, help="of everything (default 3)")
    add("--json", type=Path, help="write all figures here, after every round")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    stop_servers_when_ended()
    bench = Bench(options.bundle, options.seconds)
    try:
        for _ in range(options.rounds):
            bench.measure_bare()
            for part in options.parts:
                measure: Callable[[], None] = getattr(bench, part)
                measure()
            if options.json:
                write_json(options.json, {"bundle": str(options.bundle), "figures": bench.found})
    except (ServerError, LoadError, WrongAnswerError) as error:
        raise SystemExit(f"serving: {error}") from None
    sys.exit(0 if show(bench.found) else 1)


if __name__ == "__main__":
    main()
