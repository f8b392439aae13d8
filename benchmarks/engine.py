"""What a bundle's graphs cost in the engine, and what share of the machine's peak they reach.

    python -m benchmarks.engine [--bundles DIR ...] [--operations sample score]
                                   [--batches 1 8 32 64] [--forms cpu portable]
                                   [--seconds 0.5] [--rounds 5] [--profile] [--json FILE]

For each graph, batch and form: microseconds an image, FLOP/s (products alone), their
share of the float32 matrix peak, and what the batch's noise costs beside it. ``--profile`` says
which operators take a graph's time. What an engine costs beyond a graph is in `serving.py`.

A floating point operation is an addition or a multiplication of a product; zeros of masks and
padding count, as they are multiplied, element-wise functions do not, whatever they cost.

Everything is measured on one thread in turns, `rounds` times over, in processor seconds, which a
busy neighbour disturbs less than the clock; the figures are the medians of the rounds. The peak is
the best that any product of large matrices reached in between, in torch or NumPy, whose libraries
differ by a sixth here.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as the service does
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's
import numpy as np
import onnx
import onnxruntime as ort
import torch

from benchmarks.harness import parser_of, table, write_json
from benchmarks.score_graph import session
from benchmarks.timing import best_rate, machine, machine_line, measured_peak, repeated
from service.bundle import OPERATIONS, Bundle, BundleError, load_bundle
from service.engine.choice import make_engine
from service.engine.options import EngineOptions, Form
from service.engine.self_check import random_inputs
from service.noise import normal
from service.settings import SHIPPED_BUNDLE

CPU = torch.device("cpu")
CASES_A_PEAK = 8  # so often is the peak measured
Arrays = dict[str, np.ndarray]


class Case(NamedTuple):
    """One graph at one batch size in one form."""

    bundle: str
    operation: str
    batch: int
    form: Form


class Found(NamedTuple):
    """Medians. `seconds` of one thread's processor an image, `flops` a second, `peak` the share of
    the matrix peak, `noise` its part of the compute."""

    seconds: float
    flops: float
    peak: float
    noise: float


def matrix_peak(seconds: float) -> float:
    """FLOP a processor second of one thread in float32 products, the better of two libraries."""
    n = 1024
    a = np.random.default_rng(0).standard_normal((n, n), dtype=np.float32)
    out = np.empty_like(a)
    numpys = best_rate(lambda: np.matmul(a, a, out=out), 2 * n**3, seconds / 2, CPU)
    return max(numpys, measured_peak(CPU, torch.float32, seconds / 2))


def measure(args: argparse.Namespace) -> dict[Case, Found]:
    """Every case, in turns."""
    cases: dict[Case, tuple[Callable[[], object], Callable[[], object], float]] = {}
    peak, seconds, noises = 0.0, defaultdict(list), defaultdict(list)
    with ExitStack() as opened:
        for path in args.bundles:
            bundle = load_bundle(path)
            for form in args.forms:
                how = EngineOptions(provider="cpu", max_rows=max(args.batches), form=form)
                engine = opened.enter_context(closing(make_engine(bundle, how)))
                for operation in args.operations:
                    flop = graph_flops(path / getattr(bundle.manifest.graphs[operation], form))
                    for batch in args.batches:
                        given = inputs(bundle, operation, batch)
                        run = partial(engine.run, operation, given)
                        case = Case(path.name, operation, batch, form)
                        cases[case] = run, noise_of(given), flop
        for _ in range(args.rounds):
            for place, (case, (run, noise, _)) in enumerate(cases.items()):
                if place % CASES_A_PEAK == 0:
                    peak = max(peak, matrix_peak(args.seconds))
                took = repeated(run, args.seconds, CPU).cpu
                seconds[case].append(took / case.batch)
                noises[case].append(repeated(noise, args.seconds / 5, CPU).cpu / took)
    print(f"float32 matrix peak of one thread: {peak / 1e9:.0f} GFLOP/s\n")
    found = {}
    for case, (*_, flop) in cases.items():
        each = statistics.median(seconds[case])
        reached = flop / each
        found[case] = Found(each, reached, reached / peak, statistics.median(noises[case]))
    return found


def inputs(bundle: Bundle, operation: str, rows: int) -> Arrays:
    """Random inputs of a bundle's graph; in `score`, one row an image."""
    return random_inputs(bundle.manifest.graphs[operation], {"N": rows, "R": rows})


def noise_of(given: Arrays) -> Callable[[], object]:
    """What makes a batch's noise; `decode` has none."""
    if "eps" not in given:
        return lambda: None
    rows, dim = given["eps"].shape
    return partial(normal, 0, np.arange(rows, dtype=np.uint64), 0, dim)


def operator_shares(
    bundle: Bundle, operation: str, batch: int, form: Form
) -> list[tuple[str, int, float]]:
    """Operators by time: kind, how many, share. A node's time is the lower quartile of its runs."""
    given = inputs(bundle, operation, batch)
    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "profile")
        graph = getattr(bundle.manifest.graphs[operation], form)
        weights = bundle.path / bundle.manifest.weights_file
        opened = session(bundle.path / graph, profile=prefix, weights=weights)
        for _ in range(20):
            opened.run(None, given)
        events = json.loads(Path(opened.end_profiling()).read_text())
    runs: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs[event["args"]["op_name"], event["name"]].append(event["dur"])
    nodes = {key: sorted(times)[len(times) // 4] for key, times in runs.items()}
    whole = sum(nodes.values())
    shares: dict[str, tuple[int, float]] = {}
    for (kind, _), time in nodes.items():
        count, share = shares.get(kind, (0, 0.0))
        shares[kind] = count + 1, share + time / whole
    return sorted(((kind, *found) for kind, found in shares.items()), key=lambda row: -row[2])


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
    args = arguments()
    torch.set_num_threads(1)
    facts = machine(CPU)
    print(machine_line(facts), f"onnxruntime {ort.__version__}", sep=", ")
    try:
        found = measure(args)
    except BundleError as error:
        raise SystemExit(str(error)) from None
    head = ["graph", "batch", "form", "us an image", "GFLOP/s", "of the peak", "noise"]
    rows = [
        [
            f"{case.bundle} {case.operation}",
            str(case.batch),
            case.form,
            f"{1e6 * one.seconds:.0f}",
            f"{one.flops / 1e9:.1f}",
            f"{one.peak:.0%}",
            f"{one.noise:.1%}",
        ]
        for case, one in found.items()
    ]
    print(table(head, rows), end="\n\n")
    for bundle in map(load_bundle, args.bundles * args.profile):
        for operation in args.operations:
            for form in args.forms:
                print(f"{bundle.path.name} {operation} {form}")
                for kind, nodes, share in operator_shares(bundle, operation, 32, form):
                    print(f"    {kind:16} {nodes:4}  {share:.1%}")
    if args.json is not None:
        document = [{**case._asdict(), **one._asdict()} for case, one in found.items()]
        write_json(args.json, {"machine": facts, "cases": document})


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--bundles", nargs="+", type=Path, default=[SHIPPED_BUNDLE])
    add("--operations", nargs="+", choices=OPERATIONS, default=["sample", "encode", "score"])
    add("--batches", nargs="+", type=int, default=[1, 8, 32, 64])
    add("--forms", nargs="+", choices=get_args(Form), default=["cpu"])
    add("--seconds", type=float, default=0.5, help="of each measurement")
    add("--rounds", type=int, default=5)
    add("--profile", action="store_true", help="operators by time, at batch 32")
    add("--json", type=Path, help="write what was found here as well")
    return parser.parse_args()


if __name__ == "__main__":
    main()
