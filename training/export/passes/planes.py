"""Sums over a mixture's components, which are planes, as sums of whole planes.

    ReduceSum(x)       = x_1 + x_2 + ...
    ReduceLogSumExp(x) = m + log(exp(x_1 - m) + ...),  m = max(x)
    LogSoftmax(x)      = (x - m) - log(exp(x_1 - m) + ...)

ONNX Runtime's CPU provider computes the last two a row at a time, and a row of ten components is
ten numbers that lie far apart. Its ReduceSum adds the planes of one image in another order than
those of several, so that the bytes of a row would depend on its batch. Planes are added in vectors
and in one order. m is held inside the range of floats, so that minus infinity everywhere has the
sum 0; NaN goes through.
"""

from collections.abc import Callable

import numpy as np
import onnx
from onnx.helper import make_node

from training.export.passes.nodes import attributes, replace_nodes, typed_values

__all__ = ["in_planes"]

AXIS, LEAST, MOST = (f"iafvae/planes/{name}" for name in ("axis", "least", "most"))
LARGEST = np.finfo(np.float32).max
CONSTANTS = {AXIS: np.array([1]), LEAST: np.array(-LARGEST), MOST: np.array(LARGEST)}
MOST_PLANES = 64  # each is an input of one node


def in_planes(proto: onnx.ModelProto) -> None:
    """Rewrite, in place, each sum of floats along the second of several axes, of known length."""
    planes = {
        value.name: value.type.tensor_type.shape.dim[1].dim_value
        for value in typed_values(proto)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        and len(value.type.tensor_type.shape.dim) > 2
    }
    axes = {
        tensor.name: onnx.numpy_helper.to_array(tensor).tolist()
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT64
    }
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        count = planes.get(node.input[0], 0) if _is_over_planes(node, axes) else 0
        if 1 < count <= MOST_PLANES:
            nodes += _written(node, count)
        else:
            nodes.append(node)
    if len(nodes) == len(proto.graph.node):  # nothing was rewritten
        return
    for name, value in CONSTANTS.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    replace_nodes(proto, nodes)


def _is_over_planes(node: onnx.NodeProto, axes: dict[str, list[int]]) -> bool:
    """Whether it is one of the three, along the second axis alone."""
    if node.op_type == "LogSoftmax":
        return bool(attributes(node).get("axis", -1) == 1)
    named = node.op_type in SUMS and len(node.input) > 1
    return named and axes.get(node.input[1]) == [1]


def _written(node: onnx.NodeProto, count: int) -> list[onnx.NodeProto]:
    x, y = node.input[0], node.output[0]
    if node.op_type == "LogSoftmax":
        return [
            *_below_the_largest(x, y, count),
            make_node("Sub", [f"{y}/below", f"{y}/log"], [y], y),
        ]
    keeps = attributes(node).get("keepdims", 1)
    whole = y if keeps else f"{y}/whole"
    nodes = SUMS[node.op_type](x, y, whole, count)
    return nodes if keeps else [*nodes, make_node("Squeeze", [whole, AXIS], [y], y)]


def _below_the_largest(x: str, y: str, count: int) -> list[onnx.NodeProto]:
    """`y/largest`, x less it as `y/below`, and the logarithm of the sum of its exponentials."""
    most, largest, below, exp, total, log = (
        f"{y}/{part}" for part in ("most", "largest", "below", "exp", "total", "log")
    )
    return [
        make_node("ReduceMax", [x, AXIS], [most], most, keepdims=1),
        make_node("Clip", [most, LEAST, MOST], [largest], largest),
        make_node("Sub", [x, largest], [below], below),
        make_node("Exp", [below], [exp], exp),
        *_sum(exp, y, total, count),
        make_node("Log", [total], [log], log),
    ]


def _sum(x: str, y: str, whole: str, count: int) -> list[onnx.NodeProto]:
    planes = [f"{y}/plane{place}" for place in range(count)]
    return [
        make_node("Split", [x], planes, f"{y}/planes", axis=1, num_outputs=count),
        make_node("Sum", planes, [whole], f"{y}/sum"),
    ]


def _log_sum(x: str, y: str, whole: str, count: int) -> list[onnx.NodeProto]:
    return [
        *_below_the_largest(x, y, count),
        make_node("Add", [f"{y}/largest", f"{y}/log"], [whole], f"{y}/add"),
    ]


# From names of the input, the output and of that with all its axes, and the number of planes.
SUMS: dict[str, Callable[[str, str, str, int], list[onnx.NodeProto]]] = {
    "ReduceSum": _sum,
    "ReduceLogSumExp": _log_sum,
}
