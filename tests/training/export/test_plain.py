"""Pixels are compared and multiplied as floats: the same answers for all 256 values."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from training.export.passes.plain import COMPARISONS, pixels_as_floats


def graph(kind, array):
    """x [N] compared with a constant or, without one, with an input y."""
    constants = [] if array is None else [numpy_helper.from_array(array, "y")]
    dtype = TensorProto.UINT8 if array is None or array.dtype == np.uint8 else TensorProto.FLOAT
    names = ["x"] if constants else ["x", "y"]
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(kind, ["x", "y"], ["z"])],
            "test",
            [helper.make_tensor_value_info(name, dtype, ["N"]) for name in names],
            [helper.make_tensor_value_info("z", TensorProto.BOOL, ["N"])],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


@pytest.mark.parametrize("kind", sorted(COMPARISONS))
@pytest.mark.parametrize("threshold", [None, np.array(128, np.uint8)])
def test_the_same_answers(kind, threshold):
    given = {"x": np.arange(256, dtype=np.uint8)}
    if threshold is None:
        given["y"] = np.roll(given["x"], 7)
    proto = graph(kind, threshold)
    wanted = ReferenceEvaluator(proto).run(None, given)[0]
    pixels_as_floats(proto)
    onnx.checker.check_model(proto, full_check=True)
    casts = [node.op_type for node in proto.graph.node].count("Cast")
    assert casts == (2 if threshold is None else 1)
    assert np.array_equal(ReferenceEvaluator(proto).run(None, given)[0], wanted)


def test_products_that_pixels_can_hold():
    """Black and white of 0 and 1, as a drawn image is made."""
    proto = graph("Mul", np.array(255, np.uint8))
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    given = {"x": np.array([0, 1, 1, 0], np.uint8)}
    wanted = ReferenceEvaluator(proto).run(None, given)[0]
    pixels_as_floats(proto)
    onnx.checker.check_model(proto, full_check=True)
    assert [node.op_type for node in proto.graph.node] == ["Cast", "Mul", "Cast"]
    got = ReferenceEvaluator(proto).run(None, given)[0]
    assert (got.dtype, got.tolist()) == (np.uint8, wanted.tolist())


def test_floats_are_left_alone():
    proto = graph("Less", np.array(0.5, np.float32))
    before = proto.SerializeToString()
    pixels_as_floats(proto)
    assert proto.SerializeToString() == before
