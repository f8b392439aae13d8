"""What the passes share: a graph's nodes in other words, its shapes, a node's attributes."""

from collections.abc import Iterator, Sequence
from typing import Any

import onnx

__all__ = ["attributes", "replace_nodes", "typed_values"]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """What a node states, by name."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def typed_values(proto: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """All that flows through a graph, with inferred types and shapes; weights are not among it."""
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    yield from (*graph.value_info, *graph.input, *graph.output)


def replace_nodes(proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Let a graph consist of these, and let go of weights that none of them reads, in place."""
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
