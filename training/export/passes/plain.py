"""Pixels compared and multiplied as floats: ONNX Runtime's CUDA provider takes no uint8 there."""

import numpy as np
import onnx
from onnx import TensorProto

from training.export.passes.nodes import replace_nodes, typed_values

__all__ = ["pixels_as_floats"]

UINT8 = TensorProto.UINT8
COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
ARITHMETIC = frozenset({"Add", "Mul", "Sub"})
AS_FLOAT = "_as_float"


def pixels_as_floats(proto: onnx.ModelProto) -> None:
    """Compare and compute uint8 as float32, in place: all 256 are exact, and so are results that
    uint8 can hold."""
    types = {v.name: v.type.tensor_type.elem_type for v in typed_values(proto)}
    types |= {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()
    for node in proto.graph.node:
        if node.op_type not in COMPARISONS | ARITHMETIC or types.get(node.input[0]) != UINT8:
            nodes.append(node)
            continue
        for place, name in enumerate(node.input):
            node.input[place] = floats = name + AS_FLOAT
            if floats in made:
                continue
            made.add(floats)
            if name in constants:
                array = onnx.numpy_helper.to_array(constants[name]).astype(np.float32)
                proto.graph.initializer.append(onnx.numpy_helper.from_array(array, floats))
            else:
                nodes.append(_cast(name, floats, TensorProto.FLOAT))
        nodes.append(node)
        if node.op_type in ARITHMETIC:
            result = node.output[0]
            node.output[0] = result + AS_FLOAT
            nodes.append(_cast(result + AS_FLOAT, result, UINT8))
    if made:
        replace_nodes(proto, nodes)


def _cast(name: str, result: str, to: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [name], [result], result, to=to)
