"""What a bundle's graphs cost in the engine, and what share of the machine's peak they reach.

    python benchmarks/engine.py [--bundles DIR ...] [--operations sample score]
                                [--batches 1 8 32 64] [--backends onnxruntime openvino]
                                [--seconds 0.5] [--rounds 5] [--callers] [--profile] [--json FILE]

For each bundle, graph, batch and backend: microseconds an image, FLOP/s (products alone), their
share of the float32 matrix peak, and what the batch's noise costs beside it; then one image through
the engine against its bare graph. ``--callers`` adds as many callers at once as there are cores.
``--profile`` says which operators take a graph's time in ONNX Runtime, as the engine rewrites it.

Everything is measured on one thread in turns, `rounds` times over, in processor seconds, which a
busy neighbour disturbs less than the clock; the figures are the medians of the rounds. The peak is
the best that any product of large matrices reached in between, in torch or NumPy, whose libraries
differ by a sixth here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as the service does
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's
import numpy as np
import onnxruntime as ort
import torch

# Run as a file, this folder comes first on the path, where other programs' names could hide ours.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.matrix_peak import measured_peak  # noqa: E402

from benchmarks.bare_graph import inputs, operator_shares, session  # noqa: E402
from benchmarks.graph_flops import graph_flops  # noqa: E402
from benchmarks.harness import machine, machine_line, table, write_json  # noqa: E402
from service.bundle import Bundle, load_bundle  # noqa: E402
from service.engine.backends import EngineOptions, make_engine  # noqa: E402
from service.engine.base import EngineBase  # noqa: E402
from service.engine.graph_rewrite import in_vectors  # noqa: E402
from service.noise import normal  # noqa: E402
from service.settings import SHIPPED_BUNDLE  # noqa: E402

CPU = torch.device("cpu")
ONE_IMAGE_RUNS = 200
CASES_A_PEAK = 8  # so often is the peak measured


@dataclass(frozen=True)
class Case:
    """One graph at one batch size on one backend."""

    bundle: str
    operation: str
    batch: int
    backend: str

    def words(self) -> list[str]:
        """As the first cells of a row."""
        return [f"{self.bundle} {self.operation}", str(self.batch), self.backend]


@dataclass(frozen=True)
class Found:
    """Medians. `seconds` of one thread's processor an image, `noise` its part of the compute,
    `peak` the share of the matrix peak; `crowd`: images a second by the clock with a caller for
    each core, over what one caller had."""

    seconds: float
    flops: float
    peak: float
    noise: float
    crowd: float | None


def seconds_of(run: Callable[[], object], least: float) -> float:
    """Processor seconds of one call, over calls that take `least` seconds together."""
    calls, started = 0, time.process_time()
    while calls == 0 or time.process_time() - started < least:
        run()
        calls += 1
    return (time.process_time() - started) / calls


def crowd_gain(run: Callable[[], object], callers: int, least: float) -> float:
    """Calls a second of `callers` threads over those of one, by the clock."""

    def rate(threads: int) -> float:
        end = time.perf_counter() + least

        def calls() -> int:
            count = 0
            while count == 0 or time.perf_counter() < end:
                run()
                count += 1
            return count

        started = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            total = sum(pool.map(lambda _: calls(), range(threads)))
        return total / (time.perf_counter() - started)

    alone = rate(1)
    return rate(callers) / alone


def matrix_peak(least: float) -> float:
    """FLOP a processor second of one thread in float32 products, the better of two libraries."""
    n = 1024
    a = np.random.default_rng(0).standard_normal((n, n), dtype=np.float32)
    out = np.empty_like(a)
    best, end = 0.0, time.process_time() + least / 2
    while time.process_time() < end:
        best = max(best, 2 * n**3 / seconds_of(lambda: np.matmul(a, a, out=out), 0.0))
    return max(best, measured_peak(CPU, torch.float32, least / 2))


def measure(args: argparse.Namespace) -> dict[Case, Found]:
    """Every case, in turns."""
    cases: dict[Case, tuple[Callable[[], object], Callable[[], object]]] = {}
    flops: dict[Case, float] = {}
    for path in args.bundles:
        bundle = load_bundle(path)
        for backend in args.backends:
            engine = _engine(bundle, backend, max(args.batches))
            for operation in args.operations:
                graph = path / bundle.manifest.graphs[operation].file
                for batch in args.batches:
                    case = Case(path.name, operation, batch, backend)
                    cases[case] = _runs(engine, operation, batch)
                    flops[case] = graph_flops(graph)
    peaks: list[float] = []
    seconds, noises = defaultdict(list), defaultdict(list)
    for _ in range(args.rounds):
        for place, (case, (run, noise)) in enumerate(cases.items()):
            if place % CASES_A_PEAK == 0:
                peaks.append(matrix_peak(args.seconds))
            took = seconds_of(run, args.seconds)
            seconds[case].append(took / case.batch)
            noises[case].append(seconds_of(noise, args.seconds / 5) / took)
    peak = max(peaks)
    print(f"float32 matrix peak of one thread: {peak / 1e9:.0f} GFLOP/s\n")
    found = {}
    for case, (run, _) in cases.items():
        each = statistics.median(seconds[case])
        reached = flops[case] / each
        cores = len(os.sched_getaffinity(0))
        crowd = crowd_gain(run, cores, args.seconds) if args.callers else None
        found[case] = Found(each, reached, reached / peak, statistics.median(noises[case]), crowd)
    return found


def _engine(bundle: Bundle, backend: Any, rows: int) -> EngineBase:
    cores = len(os.sched_getaffinity(0))
    options = EngineOptions(backend=backend, provider="cpu", max_rows=rows, streams=cores)
    engine = make_engine(bundle, options)
    engine.warm()
    return engine


def _runs(
    engine: EngineBase, operation: str, batch: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """The batch's compute, and its noise; `decode` has none."""
    given = inputs(engine.bundle, operation, batch)
    streams = np.arange(batch, dtype=np.uint64)
    manifest = engine.bundle.manifest

    def noise() -> object:
        if operation == "decode":
            return None
        return normal(0, streams, 0, manifest.latent.dim, version=manifest.noise_version)

    return lambda: engine.run(operation, given), noise


def one_image(path: Path, operation: str, rounds: int) -> tuple[float, float]:
    """The engine's time of one image over its bare graph's: as the engine rewrites the graph, and
    as it lies on disk; by the clock, medians of calls in turns."""
    bundle = load_bundle(path)
    engine = _engine(bundle, "onnxruntime", 32)
    given = inputs(bundle, operation, 1)
    model = bundle.read(bundle.manifest.graphs[operation].file)
    names = [tensor.name for tensor in bundle.manifest.graphs[operation].outputs]
    sessions = [session(bundle, data) for data in (in_vectors(model), model)]
    runs: list[Callable[[], object]] = [partial(engine.run, operation, given)]
    runs += [partial(bare.run, names, given) for bare in sessions]
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds * ONE_IMAGE_RUNS):
        for place, run in enumerate(runs):
            started = time.perf_counter()
            run()
            times[place].append(time.perf_counter() - started)
    ours, rewritten, plain = (statistics.median(each) for each in times)
    return ours / rewritten, ours / plain


def main() -> None:
    """Measure and print."""
    args = _arguments()
    torch.set_num_threads(1)
    facts = machine(CPU)
    print(machine_line(facts), f"onnxruntime {ort.__version__}", sep=", ")
    found = measure(args)
    head = [
        "graph",
        "batch",
        "backend",
        "us an image",
        "GFLOP/s",
        "of the peak",
        "noise",
        "callers",
    ]
    rows = [
        [
            *case.words(),
            f"{1e6 * one.seconds:.0f}",
            f"{one.flops / 1e9:.1f}",
            f"{one.peak:.0%}",
            f"{one.noise:.1%}",
            "" if one.crowd is None else f"x{one.crowd:.2f}",
        ]
        for case, one in found.items()
    ]
    print(table(head, rows), end="\n\n")
    for path in args.bundles:
        for operation in args.operations:
            rewritten, plain = one_image(path, operation, args.rounds)
            print(
                f"{path.name} {operation}, one image: the engine takes {rewritten:.2f} of its bare"
                f" graph, {plain:.2f} of the graph as it lies on disk"
            )
            for kind, nodes, share in operator_shares(path, operation, 32) * args.profile:
                print(f"    {kind:16} {nodes:4}  {share:.1%}")
    if args.json is not None:
        document = [{**vars(case), **vars(one)} for case, one in found.items()]
        write_json(args.json, {"machine": facts, "cases": document})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundles", nargs="+", type=Path, default=[SHIPPED_BUNDLE])
    parser.add_argument("--operations", nargs="+", default=["sample", "encode", "score"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 64])
    parser.add_argument("--backends", nargs="+", default=["onnxruntime"])
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--callers", action="store_true", help="a caller for each core, too")
    parser.add_argument("--profile", action="store_true", help="operators by time, at batch 32")
    parser.add_argument("--json", type=Path, help="write what was found here as well")
    return parser.parse_args()


if __name__ == "__main__":
    main()
