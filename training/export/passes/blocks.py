"""Convolutions to one map as convolutions to sixteen: what a processor computes at once.

ONNX Runtime computes maps in sixteens, so that a convolution to one map, which the last of a model
for grey images is, costs as much as one to sixteen. One output map's pixels in blocks of 4x4 are
sixteen maps as well, of a quarter of the size, each a convolution of stride 4 with the same kernel
moved inside a larger one:

    y[4i + a, 4j + b] = sum_kl w[k, l] x[4i + a + k - p, 4j + b + l - p],
    w_ab[a + k, b + l] = w[k, l],  of (K + 3) x (K + 3)

of which DepthToSpace makes y again. That is (K + 3)^2 products for a pixel in place of 16 K^2.
"""

import numpy as np
import onnx
from numpy.typing import NDArray

from training.export.passes.nodes import attributes, replace_nodes, typed_values

__all__ = ["in_blocks"]

BLOCK = 4
STRIDED = "_in_blocks"


def in_blocks(proto: onnx.ModelProto) -> None:
    """Rewrite, in place, each convolution to one map whose height and width are in fours."""
    sizes = _sizes(proto)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if node.op_type == "Conv" and _fits(node, weights, sizes):
            nodes += _strided(
                proto, node, [onnx.numpy_helper.to_array(weights[n]) for n in node.input[1:]]
            )
        else:
            nodes.append(node)
    replace_nodes(proto, nodes)


def _sizes(proto: onnx.ModelProto) -> dict[str, list[int]]:
    """Height and width of every tensor of four axes, 0 where they cannot be told."""
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[2:]]
        for value in typed_values(proto)
        if len(value.type.tensor_type.shape.dim) == 4
    }


def _fits(
    node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], sizes: dict[str, list[int]]
) -> bool:
    """Whether it is a plain convolution to one map, of stride 1, that keeps the size."""
    if any(name not in weights for name in node.input[1:]):
        return False
    kernel = list(weights[node.input[1]].dims)
    edge = kernel[2] // 2
    plain = {
        "auto_pad": b"NOTSET",
        "dilations": [1, 1],
        "group": 1,
        "kernel_shape": kernel[2:],
        "pads": [edge] * 4,
        "strides": [1, 1],
    }
    height, width = sizes.get(node.input[0], [0, 0])
    return (
        kernel[0] == 1
        and kernel[2] == kernel[3] > 1
        and kernel[2] % 2 == 1
        and {**plain, "pads": [0] * 4, **attributes(node)} == plain
        and min(height, width) > 0
        and height % BLOCK == width % BLOCK == 0
    )


def _strided(
    proto: onnx.ModelProto, node: onnx.NodeProto, values: list[NDArray[np.float32]]
) -> list[onnx.NodeProto]:
    """The convolution of stride 4, and its maps put into the blocks' places."""
    weight, *bias = values
    _, channels, kernel, _ = weight.shape
    wide = np.zeros((BLOCK, BLOCK, channels, *2 * (kernel + BLOCK - 1,)), np.float32)
    for a in range(BLOCK):
        for b in range(BLOCK):
            wide[a, b, :, a : a + kernel, b : b + kernel] = weight[0]
    made = [wide.reshape(-1, *wide.shape[2:]), *(np.repeat(b, BLOCK * BLOCK) for b in bias)]
    names = [name + STRIDED for name in node.input[1:]]
    held = {tensor.name for tensor in proto.graph.initializer}
    for name, array in zip(names, made, strict=True):
        if name not in held:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    blocks = node.output[0] + STRIDED
    return [
        onnx.helper.make_node(
            "Conv",
            [node.input[0], *names],
            [blocks],
            node.name,
            kernel_shape=[kernel + BLOCK - 1] * 2,
            pads=[kernel // 2] * 4,
            strides=[BLOCK, BLOCK],
        ),
        onnx.helper.make_node(
            "DepthToSpace", [blocks], list(node.output), blocksize=BLOCK, mode="CRD"
        ),
    ]
