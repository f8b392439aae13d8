"""How many floating point operations an exported graph makes for an image: products alone.

An addition or a multiplication is one; element-wise functions are not counted, whatever they cost.
"""

from __future__ import annotations

import math
from pathlib import Path

import onnx

Shape = list[int]


def graph_flops(path: Path) -> float:
    """FLOP of a graph for one image and one row; zeros of masks and padding count, as they are
    multiplied. Raises ValueError where a product's shape is not known."""
    model = onnx.load(path, load_external_data=False)
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    shapes = _shapes(onnx.shape_inference.infer_shapes(model, data_prop=True))
    return float(sum(_flops(node, shapes) for node in model.graph.node))


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    found = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    return found | {t.name: list(t.dims) for t in model.graph.initializer}


def _flops(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
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
