"""Convolutions to one map, computed in blocks of 4x4: the same numbers."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from training.export.passes.blocks import in_blocks
from training.export.passes.widths import row_block

CHANNELS, SIZE = 5, (8, 12)


def graph(maps=1, kernel=3, size=SIZE, bias=True, **attributes):
    """x [N, 5, H, W] through one convolution."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((maps, CHANNELS, kernel, kernel)).astype(np.float32)}
    if bias:
        weights["b"] = rng.standard_normal(maps).astype(np.float32)
    attributes = {"pads": [kernel // 2] * 4, **attributes}
    node = helper.make_node("Conv", ["x", *weights], ["y"], "last", **attributes)
    return helper.make_model(
        helper.make_graph(
            [node],
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, *size])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "C", "H", "W"])],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def run(proto, x):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def kinds(proto):
    return [node.op_type for node in proto.graph.node]


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_same_numbers(kernel, bias, rows):
    x = np.random.default_rng(1).standard_normal((rows, CHANNELS, *SIZE)).astype(np.float32)
    proto = graph(kernel=kernel, bias=bias)
    before = run(proto, x)
    in_blocks(proto)
    assert kinds(proto) == ["Conv", "DepthToSpace"]
    onnx.checker.check_model(proto, full_check=True)
    assert {tensor.name for tensor in proto.graph.initializer} & {"w", "b"} == set()
    np.testing.assert_allclose(run(proto, x), before, rtol=1e-5, atol=1e-5)
    assert row_block(proto) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"maps": 2},
        {"kernel": 1},
        {"size": (8, 10)},
        {"size": ("H", 8)},
        {"pads": [0, 0, 0, 0]},
        {"strides": [2, 2]},
        {"dilations": [2, 2]},
    ],
)
def test_what_does_not_fit_is_left_alone(other):
    proto = graph(**other)
    before = proto.SerializeToString(deterministic=True)
    in_blocks(proto)
    assert proto.SerializeToString(deterministic=True) == before


def test_weights_that_others_read_stay():
    proto = graph()
    proto.graph.node.append(helper.make_node("Identity", ["w"], ["kept"]))
    in_blocks(proto)
    assert "w" in {tensor.name for tensor in proto.graph.initializer}
    assert kinds(proto) == ["Conv", "DepthToSpace", "Identity"]
