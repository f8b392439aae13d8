"""Elu and Softplus in operators that ONNX Runtime's CPU provider computes with vectors.

Its kernels for both take one element at a time: Elu alone was a sixth to a third of a graph's time
(measured again with 1.31.1 and 1.32.0: whole graphs take 1.04 to 1.18 times as long with them, in
batches of 32). Those for Exp, Min and Max use the processor's vectors, and with them are written

    Elu(x)      = x > 0 ? x : exp(x) - 1  = max(x, exp(min(x, 0)) - 1)
    Softplus(x) = log(1 + exp(x))         = max(x, 0) + log(1 + exp(-|x|))

Of Elu, the second is 0 for x > 0, and exp(x) - 1 >= x everywhere; beside 0, where exp(x) - 1 loses
digits, the maximum is closer. ONNX Runtime's own Softplus is the formula on the right, computed
for both signs. NaN goes through all of them, and infinities give what they should.

An Elu behind a Gemm is left alone: the two are computed as one, which is quicker for few rows.
"""

from collections.abc import Callable

import numpy as np
import onnx
from onnx.helper import make_node

from training.export.passes.nodes import attributes, replace_nodes

__all__ = ["in_vectors"]

ZERO, ONE = "iafvae/zero", "iafvae/one"


def in_vectors(proto: onnx.ModelProto) -> None:
    """Rewrite, in place, each Elu of alpha 1 and each Softplus; graphs inside of nodes stay."""
    nodes: list[onnx.NodeProto] = []
    products: set[str] = set()
    for node in proto.graph.node:
        if node.op_type == "Gemm":
            products.update(node.output)
        write = REWRITTEN.get(node.op_type)
        fused = node.op_type == "Elu" and products.issuperset(node.input)
        if write is None or fused or not _is_plain(node):
            nodes.append(node)
        else:
            nodes += write(node.input[0], node.output[0])
    if len(nodes) == len(proto.graph.node):  # nothing was rewritten
        return
    for name, value in ((ZERO, 0.0), (ONE, 1.0)):
        constant = onnx.numpy_helper.from_array(np.array(value, np.float32), name)
        proto.graph.initializer.append(constant)
    replace_nodes(proto, nodes)


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether it is ONNX's own operator with the attributes that it has by default."""
    return node.domain in ("", "ai.onnx") and {"alpha": 1.0, **attributes(node)} == {"alpha": 1.0}


def _elu(x: str, y: str) -> list[onnx.NodeProto]:
    below, exp, bent = (f"{y}/elu/{part}" for part in ("below", "exp", "bent"))
    return [
        make_node("Min", [x, ZERO], [below], below),
        make_node("Exp", [below], [exp], exp),
        make_node("Sub", [exp, ONE], [bent], bent),
        make_node("Max", [x, bent], [y], y),
    ]


def _softplus(x: str, y: str) -> list[onnx.NodeProto]:
    names = ("size", "minus", "exp", "sum", "log", "above")
    size, minus, exp, total, log, above = (f"{y}/softplus/{part}" for part in names)
    return [
        make_node("Abs", [x], [size], size),
        make_node("Neg", [size], [minus], minus),
        make_node("Exp", [minus], [exp], exp),
        make_node("Add", [exp, ONE], [total], total),
        make_node("Log", [total], [log], log),
        make_node("Max", [x, ZERO], [above], above),
        make_node("Add", [above, log], [y], y),
    ]


# From an input's and the output's name to nodes; names between them are made of the output's,
# which is the only one of its kind in a graph.
REWRITTEN: dict[str, Callable[[str, str], list[onnx.NodeProto]]] = {
    "Elu": _elu,
    "Softplus": _softplus,
}
