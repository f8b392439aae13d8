"""The arrays of one batch against the graph that takes them: checked, padded, trimmed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, PayloadTooLarge, WrongDtype, WrongShape

if TYPE_CHECKING:
    from service.bundle.graphs import GraphSpec, TensorSpec

__all__ = ["Arrays", "check", "in_halves", "pad", "sizes_of", "trim", "zeros"]

Arrays = dict[str, NDArray[Any]]


def check(graph: GraphSpec, arrays: Mapping[str, NDArray[Any]], max_rows: int) -> dict[str, int]:
    """Sizes of N and R in `arrays`, which must be what `graph` takes.

    Raises WrongShape, WrongDtype, InvalidInput or PayloadTooLarge naming the input.
    """
    if arrays.keys() != graph.input_names:
        raise InvalidInput(f"inputs must be {', '.join(t.name for t in graph.inputs)}")
    sizes: dict[str, int] = {}
    for tensor in graph.inputs:
        array = arrays[tensor.name]
        if array.dtype != tensor.dtype:
            raise WrongDtype(f"{tensor.name} must be {tensor.dtype}, not {array.dtype}")
        rows = sizes.setdefault(str(tensor.shape[0]), array.shape[0] if array.ndim else 0)
        if array.shape != (rows, *tensor.shape[1:]) or rows < 1:
            wanted = list(tensor.shape)
            raise WrongShape(f"{tensor.name} must have the shape {wanted}, not {list(array.shape)}")
        if rows > max_rows:
            raise PayloadTooLarge(f"a batch has at most {max_rows} rows, {tensor.name} has {rows}")
    owner = arrays.get("owner")
    if owner is not None and not (int(owner.min()) >= 0 and int(owner.max()) < sizes["N"]):
        raise InvalidInput(f"owner must point at images from 0 to {sizes['N'] - 1}")
    return sizes


def zeros(graph: GraphSpec, sizes: Mapping[str, int]) -> Arrays:
    """Inputs of `graph` that are all zero, with ``sizes["N"]`` and ``sizes["R"]`` rows."""
    return {
        t.name: np.zeros((sizes[_rows_of(t)], *map(int, t.shape[1:])), dtype=t.dtype)
        for t in graph.inputs
    }


def pad(graph: GraphSpec, arrays: Mapping[str, NDArray[Any]], sizes: Mapping[str, int]) -> Arrays:
    """`arrays` with zero rows appended so that dimension ``N`` or ``R`` has ``sizes[...]`` rows.

    Zeros are harmless everywhere: noise of zero, black images, rows that belong to image 0.
    """
    return {t.name: _pad(arrays[t.name], sizes[_rows_of(t)]) for t in graph.inputs}


def trim(graph: GraphSpec, outputs: list[NDArray[Any]], sizes: Mapping[str, int]) -> Arrays:
    """Outputs by name without the rows that `pad` appended."""
    named = zip(graph.outputs, outputs, strict=True)
    return {t.name: array[: sizes[_rows_of(t)]] for t, array in named}


def in_halves(
    graph: GraphSpec,
    arrays: Mapping[str, NDArray[Any]],
    compute: Callable[[Arrays], Arrays],
) -> Arrays:
    """Outputs of a batch, of which `compute` is given one half of the rows and then the other.

    Each half has the images that its rows are of, and half of those that have no rows.
    """
    sizes, owners = sizes_of(graph, arrays), arrays.get("owner")
    idle: Any = [] if owners is None else np.setdiff1d(np.arange(sizes["N"]), owners)
    whole: Arrays = {}
    for half, alone in zip(
        np.array_split(np.arange(sizes["N" if owners is None else "R"]), 2),
        np.array_split(idle, 2),
        strict=True,
    ):
        places, given = {"R": half, "N": half}, {}
        if owners is not None:
            images, owner = np.unique(owners[half], return_inverse=True)
            places["N"] = np.concatenate([images, alone])
            given["owner"] = owner.astype(np.int64)
        cut = {t.name: arrays[t.name][places[_rows_of(t)]] for t in graph.inputs}
        outputs = compute(cut | given)
        for t in graph.outputs:
            part, rows = outputs[t.name], _rows_of(t)
            if t.name not in whole:
                whole[t.name] = np.empty((sizes[rows], *part.shape[1:]), dtype=part.dtype)
            whole[t.name][places[rows]] = part
    return whole


def sizes_of(graph: GraphSpec, arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """How many images N and rows R there are in the inputs `arrays` of `graph`."""
    return {_rows_of(t): len(arrays[t.name]) for t in graph.inputs}


def _rows_of(tensor: TensorSpec) -> str:
    return str(tensor.shape[0])


def _pad(array: NDArray[Any], rows: int) -> NDArray[Any]:
    if len(array) == rows:
        return array
    padded = np.zeros((rows, *array.shape[1:]), dtype=array.dtype)
    padded[: len(array)] = array
    return padded
