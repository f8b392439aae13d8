"""What a bundle's graphs cost in the engine, and what share of the machine's peak they reach.

    python benchmarks/engine.py [--bundles DIR ...] [--operations sample score]
                                [--batches 1 8 32 64] [--forms cpu portable]
                                [--seconds 0.5] [--rounds 5] [--profile] [--json FILE]

For each graph, batch and form: microseconds an image, FLOP/s (products alone), their
share of the float32 matrix peak, and what the batch's noise costs beside it; then one image through
the engine against its bare graph. ``--profile`` says which operators take a graph's time.

A floating point operation is an addition or a multiplication of a product; zeros of masks and
padding count, as they are multiplied, element-wise functions do not, whatever they cost.

Everything is measured on one thread in turns, `rounds` times over, in processor seconds, which a
busy neighbour disturbs less than the clock; the figures are the medians of the rounds. The peak is
the best that any product of large matrices reached in between, in torch or NumPy, whose libraries
differ by a sixth here.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as the service does
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's
import numpy as np
import onnx
import onnxruntime as ort
import torch

# Run as a file, this folder comes first on the path, where other programs' names could hide ours.
sys.path[0] = str(Path(__file__).resolve().parent.parent)


from benchmarks.harness import table, write_json  # noqa: E402
from benchmarks.score_graph import graph_file, session  # noqa: E402
from benchmarks.timing import machine, machine_line, measured_peak  # noqa: E402
from service.bundle import Bundle, load_bundle  # noqa: E402
from service.engine import make_engine  # noqa: E402
from service.engine.base import EngineBase  # noqa: E402
from service.engine.options import EngineOptions, Form  # noqa: E402
from service.noise import normal  # noqa: E402
from service.settings import SHIPPED_BUNDLE  # noqa: E402

CPU = torch.device("cpu")
ONE_IMAGE_RUNS = 200
CASES_A_PEAK = 8  # so often is the peak measured
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One graph at one batch size in one form."""

    bundle: str
    operation: str
    batch: int
    form: Form

    def words(self) -> list[str]:
        """As the first cells of a row."""
        return [f"{self.bundle} {self.operation}", str(self.batch), self.form]


class Found(NamedTuple):
    """Medians. `seconds` of one thread's processor an image, `flops` a second, `peak` the share of
    the matrix peak, `noise` its part of the compute."""

    seconds: float
    flops: float
    peak: float
    noise: float


def seconds_of(run: Callable[[], object], least: float) -> float:
    """Processor seconds of one call, over calls that take `least` seconds together."""
    calls, started = 0, time.process_time()
    while calls == 0 or time.process_time() - started < least:
        run()
        calls += 1
    return (time.process_time() - started) / calls


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
        for form in args.forms:
            engine = _engine(bundle, form, max(args.batches))
            for operation in args.operations:
                for batch in args.batches:
                    case = Case(path.name, operation, batch, form)
                    cases[case] = _runs(engine, path, operation, batch)
                    flops[case] = graph_flops(graph_file(path, operation))
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
    for case in cases:
        each = statistics.median(seconds[case])
        reached = flops[case] / each
        found[case] = Found(each, reached, reached / peak, statistics.median(noises[case]))
    return found


def _engine(bundle: Bundle, form: Form, rows: int) -> EngineBase:
    return make_engine(bundle, EngineOptions(provider="cpu", max_rows=rows, form=form))


def _runs(
    engine: EngineBase, path: Path, operation: str, batch: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """The batch's compute, and its noise; `decode` has none."""
    given, streams = inputs(path, operation, batch), np.arange(batch, dtype=np.uint64)

    def noise() -> object:
        return normal(0, streams, 0, given["eps"].shape[1]) if "eps" in given else None

    return lambda: engine.run(operation, given), noise


def inputs(path: Path, operation: str, rows: int) -> Arrays:
    """Random inputs of a bundle's graph; in `score`, one row an image."""
    rng = np.random.default_rng(0)
    made: Arrays = {}
    for value in session(graph_file(path, operation)).get_inputs():
        shape = (rows, *map(int, value.shape[1:]))
        if value.type == "tensor(uint8)":
            made[value.name] = rng.integers(0, 256, shape, dtype=np.uint8)
        elif value.type == "tensor(int64)":
            made[value.name] = np.arange(rows)
        elif value.name in {"eps", "z"}:
            made[value.name] = rng.standard_normal(shape, dtype=np.float32)
        else:
            made[value.name] = rng.random(shape, dtype=np.float32)
    return made


def one_image(path: Path, operation: str, rounds: int) -> float:
    """The engine's time of one image over its bare graph's; by the clock, medians of calls in
    turns."""
    engine, bare = (
        _engine(load_bundle(path), "onnxruntime", 32),
        session(graph_file(path, operation)),
    )
    given = inputs(path, operation, 1)
    names = [value.name for value in bare.get_outputs()]
    runs = partial(engine.run, operation, given), partial(bare.run, names, given)
    times: tuple[list[float], ...] = [], []
    for _ in range(rounds * ONE_IMAGE_RUNS):
        for run, own in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            own.append(time.perf_counter() - started)
    return statistics.median(times[0]) / statistics.median(times[1])


def operator_shares(path: Path, operation: str, batch: int) -> list[tuple[str, int, float]]:
    """Operators by time: kind, how many, share. A node's time is the lower quartile of its runs."""
    given = inputs(path, operation, batch)
    with tempfile.TemporaryDirectory() as folder:
        opened = session(graph_file(path, operation), profile=str(Path(folder) / "profile"))
        for _ in range(20):
            opened.run(None, given)
        events = json.loads(Path(opened.end_profiling()).read_text())
    runs: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs[event["args"]["op_name"], event["name"]].append(event["dur"])
    nodes = {key: sorted(times)[len(times) // 4] for key, times in runs.items()}
    whole = sum(nodes.values())
    kinds = {kind for kind, _ in nodes}
    shares = [
        (kind, sum(k == kind for k, _ in nodes), sum(t for (k, _), t in nodes.items() if k == kind))
        for kind in kinds
    ]
    return sorted(((k, n, t / whole) for k, n, t in shares), key=lambda row: -row[2])


def graph_flops(path: Path) -> float:
    """FLOP of a graph for one image and one row. Raises ValueError where a product's shape is not
    known."""
    model = onnx.load(path, load_external_data=False)
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return float(sum(_flops(node, shapes) for node in model.graph.node))


def _flops(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    given, weight, out = (shapes.get(name, [0]) for name in (*node.input[:2], node.output[0]))
    if 0 in (*given, *weight, *out):
        raise ValueError(f"{node.op_type} {node.name}: a shape is not known")
    if node.op_type == "Conv":  # weights [out, in / groups, k, k]
        return 2 * math.prod(out) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":  # weights [in, out / groups, k, k]
        return 2 * math.prod(given) * math.prod(weight[1:])
    attributes = {a.name: a.i for a in node.attribute}
    inner = given[0] if attributes.get("transA") else given[-1]
    return 2 * math.prod(out) * inner


def main() -> None:
    """Measure and print."""
    args = _arguments()
    torch.set_num_threads(1)
    facts = machine(CPU)
    print(machine_line(facts), f"onnxruntime {ort.__version__}", sep=", ")
    found = measure(args)
    head = ["graph", "batch", "form", "us an image", "GFLOP/s", "of the peak", "noise"]
    rows = [
        [
            *case.words(),
            f"{1e6 * one.seconds:.0f}",
            f"{one.flops / 1e9:.1f}",
            f"{one.peak:.0%}",
            f"{one.noise:.1%}",
        ]
        for case, one in found.items()
    ]
    print(table(head, rows), end="\n\n")
    for path in args.bundles:
        for operation in args.operations:
            ratio = one_image(path, operation, args.rounds)
            print(f"{path.name} {operation}, one image: {ratio:.2f} times its bare graph")
            for kind, nodes, share in operator_shares(path, operation, 32) * args.profile:
                print(f"    {kind:16} {nodes:4}  {share:.1%}")
    if args.json is not None:
        document = [{**vars(case), **one._asdict()} for case, one in found.items()]
        write_json(args.json, {"machine": facts, "cases": document})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundles", nargs="+", type=Path, default=[SHIPPED_BUNDLE])
    parser.add_argument("--operations", nargs="+", default=["sample", "encode", "score"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 64])
    parser.add_argument("--forms", nargs="+", default=["cpu"])
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="operators by time, at batch 32")
    parser.add_argument("--json", type=Path, help="write what was found here as well")
    return parser.parse_args()


if __name__ == "__main__":
    main()
