"""Does this machine compute what the bundle says, and the same in every batch? Asked before
serving."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle.graphs import GraphSpec, TensorSpec
from service.engine.arrays import Arrays
from service.noise import normal, uniform

__all__ = ["Each", "canary_problem", "float32_problem", "invariant", "random_inputs"]

Run = Callable[[str, Arrays], Arrays]
Each = Callable[[Callable[[str], bool], Iterable[str]], Iterable[bool]]  # as `map`

# Pixels that may differ in a drawn image: a uniform number may fall on the other side of a mean.
DRAW_TOLERANCE = 0.01
# What float32 keeps, in parts of the largest value: the graphs of the bundles that ship differ by
# up to 3e-6 from torch on a CPU, z / scale of a deep ladder by 1.2e-5. Numbers of ten bits (TF32)
# differ by a hundred times that.
FLOAT32 = 1e-5
FLOAT32_OF = {"prior_eps": 1e-4}
# Nats are sums of many terms, with an error of their own size and one of what cancelled.
NATS = frozenset({"log_weight", "log_px_z", "kl"})
NATS_ATOL = 0.003
# Pieces of a batch: 1 to 8, a tile of 16 less one, and all the rest; of 32 rows each is in two.
SIZES = (1, 2, 3, 4, 7, 15, 5, 6, 8, 13)


def canary_problem(got: Arrays, wanted: Arrays, rtol: float, atol: float) -> str | None:
    """How outputs disagree with the expected ones, or None where they agree."""
    for name, expected in wanted.items():
        output = got[name]
        if output.shape != expected.shape or output.dtype != expected.dtype:
            return f"{name} is {output.dtype}{output.shape}, not {expected.dtype}{expected.shape}"
        if expected.dtype == np.uint8:
            if (share := float(np.mean(output != expected))) > DRAW_TOLERANCE:
                return f"{share:.1%} of {name} differs from the canary"
        elif not np.allclose(output, expected, rtol=rtol, atol=atol):
            worst = float(np.max(np.abs(output.astype(np.float64) - expected)))
            return f"{name} differs from the canary by up to {worst:.3g} (rtol {rtol}, atol {atol})"
    return None


def float32_problem(got: Arrays, wanted: Arrays) -> str | None:
    """How outputs differ from the expected ones by more than float32 does, or None.

    For devices that may compute with fewer bits than was asked for: much tighter than what a
    manifest states.
    """
    for name, expected in wanted.items():
        output = got[name]
        if output.shape != expected.shape or expected.dtype == np.uint8:
            continue  # `canary_problem` looks at it
        size = np.abs(expected.astype(np.float64))
        rtol = FLOAT32_OF.get(name, FLOAT32)
        bound = NATS_ATOL + FLOAT32 * size if name in NATS else rtol * np.maximum(size.max(), 1e-3)
        difference = np.abs(output.astype(np.float64) - expected)
        if not (difference <= bound).all():
            return (
                f"{name} differs from the canary by up to {difference.max():.3g}, more than"
                " float32 does"
            )
    return None


def invariant(graphs: Mapping[str, GraphSpec], run: Run, max_rows: int, each: Each = map) -> bool:
    """Whether rows come out with the same bytes in batches of many sizes and at many places.

    One batch of `max_rows` random rows is the reference; pieces of it are computed again alone. In
    ``score`` the images and the rows are cut differently. A check, not a proof: where a kernel
    rounds differently for some sizes, it does so in all such batches (a single row, as a rule).
    """
    return all(each(lambda name: _invariant(name, graphs[name], run, max_rows), graphs))


def _invariant(operation: str, graph: GraphSpec, run: Run, max_rows: int) -> bool:
    inputs = random_inputs(graph, {"N": max_rows, "R": max_rows})
    reference = run(operation, inputs)
    for start, stop, spare in _pieces(max_rows):
        piece = _cut(graph, inputs, start, stop, spare)
        for name, output in run(operation, piece).items():
            expected = reference[name][start:stop]
            if not np.array_equal(
                output[: stop - start], expected, equal_nan=output.dtype.kind == "f"
            ):
                return False
    return True


def _pieces(rows: int) -> list[tuple[int, int, int]]:
    """(start, stop, further images): the rows, cut into `SIZES` from the first to the last."""
    pieces, start = [], 0
    for i, size in enumerate(size for size in SIZES if size < rows):
        if start + size > rows:
            start = 0
        pieces.append((start, start + size, (3 * i) % (rows - start - size + 1)))
        start += size
    return pieces


def _cut(graph: GraphSpec, inputs: Arrays, start: int, stop: int, spare: int) -> Arrays:
    """Rows start to stop. Images may be more than rows: then `spare` further ones come along."""
    if "owner" not in inputs:
        return {name: array[start:stop] for name, array in inputs.items()}
    ends = {t.name: stop if t.shape[0] == "R" else stop + spare for t in graph.inputs}
    piece = {name: inputs[name][start:end] for name, end in ends.items()}
    return {**piece, "owner": np.arange(stop - start, dtype=np.int64)}


def random_inputs(graph: GraphSpec, sizes: Mapping[str, int], seed: int = 0) -> Arrays:
    """Inputs for a graph, of `sizes` N and R; each row is of an image, in turn."""
    return {t.name: _random(t, sizes, seed, draw) for draw, t in enumerate(graph.inputs)}


def _random(tensor: TensorSpec, sizes: Mapping[str, int], seed: int, draw: int) -> NDArray[Any]:
    rows, *rest = sizes[str(tensor.shape[0])], *map(int, tensor.shape[1:])
    if tensor.dtype == "int64":
        return np.arange(rows, dtype=np.int64) % sizes["N"]
    # `u` is uniform and `temperature` not negative; for the rest, normal noise is what they are.
    kind = normal if tensor.name in {"eps", "z"} else uniform
    numbers = kind(seed, np.arange(rows, dtype=np.uint64), draw, math.prod(rest))
    if tensor.dtype == "uint8":
        numbers = (256 * numbers).astype(np.uint8)
    return numbers.reshape(rows, *rest)
