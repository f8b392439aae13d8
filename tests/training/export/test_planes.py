"""Sums over planes as sums of planes: the same functions, and an image's bytes alone and among
others."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy import special

from service.settings import SHIPPED_MODELS
from training.export.passes.planes import in_planes

COUNT = 10
ALONE = {"load_external_data": False}
EXACT = {
    "ReduceSum": np.sum,
    "ReduceLogSumExp": special.logsumexp,
    "LogSoftmax": special.log_softmax,
}
KINDS = pytest.mark.parametrize("kind", EXACT)


def model(kind, *, axis=1, keepdims=1, dtype=TensorProto.FLOAT, count=COUNT):
    """x [N, count, 4, 4] through a sum along `axis`."""
    shape = ["N", count, 4, 4]
    if kind == "LogSoftmax":
        node, summed = helper.make_node(kind, ["x"], ["y"], axis=axis), shape
    else:
        node = helper.make_node(kind, ["x", "axes"], ["y"], keepdims=keepdims)
        summed = [1 if k == axis else side for k, side in enumerate(shape)]
        summed = summed if keepdims else summed[:axis] + summed[axis + 1 :]
    inputs = [helper.make_tensor_value_info("x", dtype, shape)]
    outputs = [helper.make_tensor_value_info("y", dtype, summed)]
    axes = numpy_helper.from_array(np.array([axis]), "axes")
    graph = helper.make_graph([node], "g", inputs, outputs, [axes])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def rewritten(kind, **options):
    proto = model(kind, **options)
    in_planes(proto)
    onnx.checker.check_model(proto, full_check=True)
    assert kind not in kinds(proto)
    return proto


def kinds(proto):
    return [node.op_type for node in proto.graph.node]


def computed(proto, x):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options)
    return session.run(None, {"x": x})[0]


@KINDS
@pytest.mark.parametrize("keepdims", [0, 1])
def test_the_same_function(kind, keepdims):
    x = np.random.default_rng(0).normal(0, 30, (7, COUNT, 4, 4)).astype(np.float32)
    if kind != "ReduceSum":
        x[0] = 1e30 * np.sign(x[0])
        x[1, 1:] = -np.inf
    got = computed(rewritten(kind, keepdims=keepdims), x)
    keeps = {} if kind == "LogSoftmax" else {"keepdims": bool(keepdims)}
    exact = EXACT[kind](x.astype(np.float64), axis=1, **keeps)
    np.testing.assert_allclose(got, exact, rtol=1e-6, atol=2e-5)


@KINDS
@pytest.mark.parametrize("count", [2, 3, 10, 64])
def test_an_images_bytes_are_those_that_it_has_alone(kind, count):
    """ONNX Runtime adds the planes of one image in another order than those of two."""
    x = np.random.default_rng(1).normal(0, 3, (9, count, 4, 4)).astype(np.float32)
    proto = rewritten(kind, count=count)
    whole = computed(proto, x)
    for rows in (slice(0, 1), slice(8, 9), slice(2, 4), slice(1, 9)):
        assert np.array_equal(computed(proto, x[rows]), whole[rows])


def test_a_sum_of_nothing_is_minus_infinity_and_no_number_stays_none():
    x = np.full((3, COUNT, 4, 4), -np.inf, np.float32)
    x[1, 3], x[2, 3] = np.nan, np.inf
    found = computed(rewritten("ReduceLogSumExp"), x)
    assert (found[0] == -np.inf).all()
    assert np.isnan(found[1]).all()
    assert (found[2] == np.inf).all()


@KINDS
def test_what_is_left_alone(kind):
    left = [model(kind, axis=2), model(kind, axis=3), model(kind, count=65), model(kind, count="K")]
    if kind == "ReduceSum":
        left.append(model(kind, dtype=TensorProto.INT64))
    for proto in left:
        before = proto.SerializeToString()
        in_planes(proto)
        assert proto.SerializeToString() == before


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_the_bundles_that_ship_have_sums_of_planes(name):
    for operation in ("decode", "evidence", "sample", "score"):
        forms = {
            form: set(kinds(onnx.load(SHIPPED_MODELS / name / form / f"{operation}.onnx", **ALONE)))
            for form in ("cpu", "portable")
        }
        assert "LogSoftmax" in forms["portable"]
        assert not {"LogSoftmax", "ReduceLogSumExp"} & forms["cpu"]
