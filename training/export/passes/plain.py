"""Comparisons of pixels as of floats: ONNX Runtime's CUDA provider has none of uint8."""

import numpy as np
import onnx
from onnx import TensorProto

__all__ = ["compare_floats"]

COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
AS_FLOAT = "_as_float"


def compare_floats(proto: onnx.ModelProto) -> None:
    """Compare uint8 as float32, which holds all 256 exactly, in place: constants and casts of the
    rest."""
    types = _types(proto)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()
    for node in proto.graph.node:
        if node.op_type in COMPARISONS and types.get(node.input[0]) == TensorProto.UINT8:
            for place, name in enumerate(node.input):
                node.input[place] = floats = name + AS_FLOAT
                if floats in made:
                    continue
                made.add(floats)
                if name in constants:
                    array = onnx.numpy_helper.to_array(constants[name]).astype(np.float32)
                    proto.graph.initializer.append(onnx.numpy_helper.from_array(array, floats))
                else:
                    cast = onnx.helper.make_node(
                        "Cast", [name], [floats], floats, to=TensorProto.FLOAT
                    )
                    nodes.append(cast)
        nodes.append(node)
    if made:
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in proto.graph.initializer if tensor.name in read]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor that has one."""
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        found[value.name] = value.type.tensor_type.elem_type
    return found
