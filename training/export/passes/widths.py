"""Widths that keep a row's bytes independent of its batch, on processors with vector registers.

An element-wise function such as Elu rounds the last elements of an array, those that do not fill a
vector, by another routine than the others, and a sum over a row depends on where the row starts.
Where every row is a multiple of `VECTOR` floats, neither happens, and a batch of any size may be
computed as it is. So hidden layers are widened by units that are always zero, which changes no
result; sums over rows of another length become matrix products with ones, whose rows do not
depend on each other at any length; and a bundle's manifest says how many rows make up whole
vectors where that is not enough.
"""

import math
from collections import defaultdict

import numpy as np
import onnx
from numpy.typing import NDArray

from training.export.passes.nodes import attributes, replace_nodes, typed_values

__all__ = ["BLOCKS", "row_block", "steady_sums", "widen"]

VECTOR = 16  # floats: the widest registers in use
BLOCKS = (1, 2, 4, 8, 16)
ZERO_KEEPING = frozenset({"Elu", "Relu", "LeakyRelu", "Tanh", "Identity", "Gather"})
ROUNDED = frozenset({"Elu", "Exp", "Log", "Sigmoid", "Softplus", "Tanh", "Erf", "Pow", "Sqrt"})
SUMS = frozenset({"ReduceSum", "ReduceMean", "ReduceLogSumExp", "Softmax", "LogSoftmax"})


def widen(proto: onnx.ModelProto) -> None:
    """Give every hidden layer of matrix products a width of a multiple of `VECTOR`, in place.

    A layer is a Gemm whose result meets nothing but functions that keep zero, choices of rows and
    further Gemms: zero rows are appended to its weights and bias, zero columns to theirs.
    """
    graph = _Graph(proto)
    for node in proto.graph.node:
        if not graph.is_layer(node):
            continue
        readers = graph.readers(node.output[0])
        units = len(graph.weights[node.input[1]])
        missing = -units % VECTOR
        if missing and readers is not None:
            for name in node.input[1:]:  # weights [out, in] and bias [out]
                graph.pad(name, axis=0, count=missing)
            for reader in readers:
                graph.pad(reader.input[1], axis=1, count=missing)


class _Graph:
    """Who reads what, and the weights by name."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.weights = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer
        }
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._outputs = {value.name for value in proto.graph.output}
        self._consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in proto.graph.node:
            for name in node.input:
                self._consumers[name].append(node)

    def is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether the node is x W' + b with weights [out, in] and bias [out] of its own."""
        own = all(
            name in self.weights and len(self._consumers[name]) == 1 for name in node.input[1:]
        )
        plain = {"transB": 1, "transA": 0, "alpha": 1.0, "beta": 1.0}
        return (
            node.op_type == "Gemm"
            and own
            and {**plain, "transB": 0, **attributes(node)} == plain
            and all(self.weights[name].ndim == 1 for name in node.input[2:])
        )

    def readers(self, name: str) -> list[onnx.NodeProto] | None:
        """The layers that read a layer's result; None where anything else does."""
        if name in self._outputs:
            return None
        found: list[onnx.NodeProto] = []
        for node in self._consumers[name]:
            if self.is_layer(node):
                found.append(node)
            elif node.op_type in ZERO_KEEPING and node.input[0] == name and _keeps_rows(node):
                further = self.readers(node.output[0])
                if further is None:
                    return None
                found += further
            else:
                return None
        return found

    def pad(self, name: str, *, axis: int, count: int) -> None:
        """Append `count` zeros along `axis` of a weight."""
        old: NDArray[np.float32] = self.weights[name]
        widths = [(0, count if i == axis else 0) for i in range(old.ndim)]
        self.weights[name] = np.pad(old, widths)
        self._tensors[name].CopyFrom(onnx.numpy_helper.from_array(self.weights[name], name))


def _keeps_rows(node: onnx.NodeProto) -> bool:
    """A Gather chooses whole rows where its axis is the first; other functions keep all."""
    return node.op_type != "Gather" or attributes(node).get("axis", 0) == 0


def steady_sums(proto: onnx.ModelProto) -> None:
    """Turn sums over the last axis of rows that are no whole vectors into products, in place.

    A row is all that belongs to one element of the first axis.
    """
    shapes = _row_shapes(proto)
    weights = {t.name: t for t in proto.graph.initializer}
    nodes = list(proto.graph.node)
    for place in reversed(range(len(nodes))):
        shape = shapes.get(nodes[place].input[0]) if nodes[place].input else None
        if shape is None or not _sums_last_axis(nodes[place], shape, weights):
            continue
        if shape[-1] and shape[-1] > 2 and math.prod(shape) % VECTOR:
            nodes[place : place + 1] = _product_with_ones(proto, nodes[place], shape[-1])
    replace_nodes(proto, nodes)


def _sums_last_axis(
    node: onnx.NodeProto, shape: list[int], weights: dict[str, onnx.TensorProto]
) -> bool:
    if node.op_type != "ReduceSum" or len(node.input) < 2 or node.input[1] not in weights:
        return False
    axes = onnx.numpy_helper.to_array(weights[node.input[1]]).tolist()
    return axes in ([len(shape)], [-1])


def _product_with_ones(
    proto: onnx.ModelProto, node: onnx.NodeProto, length: int
) -> list[onnx.NodeProto]:
    """The product, and a Squeeze where the sum does not keep its axis."""
    keeps = attributes(node).get("keepdims", 1)
    ones, product = f"ones_{length}", node.output[0] if keeps else f"{node.output[0]}_product"
    constants = {ones: np.ones((length, 1), np.float32), "last_axis": np.array([-1])}
    held = {tensor.name for tensor in proto.graph.initializer}
    for name, value in constants.items():
        if name not in held and (name == ones or not keeps):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    made = [onnx.helper.make_node("MatMul", [node.input[0], ones], [product])]
    if not keeps:
        made.append(onnx.helper.make_node("Squeeze", [product, "last_axis"], [node.output[0]]))
    return made


def row_block(proto: onnx.ModelProto) -> int:
    """The smallest of `BLOCKS` that makes every sensitive operation's rows whole vectors.

    Looks at the floats in one row of what each function or sum reads; what cannot be told counts
    as odd.
    """
    widths = _sensitive_widths(proto)
    return next(
        block
        for block in BLOCKS
        if block == BLOCKS[-1] or all(width and width * block % VECTOR == 0 for width in widths)
    )


def _row_shapes(proto: onnx.ModelProto) -> dict[str, list[int]]:
    """Each tensor's axes but the first; 0 for a length that cannot be told."""
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
        for value in typed_values(proto)
    }


def _sensitive_widths(proto: onnx.ModelProto) -> set[int | None]:
    shapes = _row_shapes(proto)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    widths: set[int | None] = set()
    for node in proto.graph.node:
        if node.op_type not in ROUNDED | SUMS:
            continue
        shape = shapes.get(node.input[0])
        short = shape is not None and _sums_last_axis(node, shape, weights) and shape[-1] in (1, 2)
        if not short:  # a sum of one or two numbers has one rounding
            widths.add(math.prod(shape) or None if shape is not None else None)
    return widths
