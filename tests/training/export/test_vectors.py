"""Elu and Softplus in other operators: the same functions, the same graphs around them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy import special

from service.bundle import load_bundle
from service.engine.onnxruntime_engine import Engine
from service.settings import SHIPPED_MODELS
from training.export.passes import vectors

SHIPPED = SHIPPED_MODELS / "mnist"
OPERATIONS = ("sample", "decode", "encode", "score")
# In float64: log(1 + exp(x)) for large |x| and exp(x) - 1 near 0 without loss.
EXACT = {
    "Elu": lambda x: np.where(x > 0, x, special.expm1(np.minimum(x, 0))),
    "Softplus": lambda x: np.logaddexp(0, x),
}


def in_vectors(data):
    """The pass on a serialised model."""
    proto = onnx.load_from_string(data)
    vectors.in_vectors(proto)
    return proto.SerializeToString()


FUNCTIONS = pytest.mark.parametrize("kind", EXACT)


def model(*nodes, constants=(), outputs=("y",)):
    """x float32 [N, M] through `nodes`."""
    tensors = [numpy_helper.from_array(array, name) for name, array in constants]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "M"])
    ys = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "M"]) for name in outputs]
    graph = helper.make_graph(nodes, "g", [x], ys, tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def session(data):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def computed(data, x):
    return session(data).run(None, {"x": x})[0]


def one(kind, **attributes):
    return model(helper.make_node(kind, ["x"], ["y"], **attributes))


def kinds(data):
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


@FUNCTIONS
def test_the_same_function(kind):
    x = np.concatenate([np.linspace(-110, 110, 20_001), np.linspace(-1, 1, 20_000)])
    x = x.astype(np.float32)[None]
    rewritten = in_vectors(one(kind))
    assert kind not in kinds(rewritten)
    got, before = computed(rewritten, x), computed(one(kind), x)
    np.testing.assert_allclose(got, EXACT[kind](x.astype(np.float64)), rtol=2.5e-7, atol=1.3e-7)
    np.testing.assert_allclose(got, before, rtol=2.5e-7, atol=1.3e-7)


def test_elu_is_exact_where_it_is_the_identity_or_minus_one():
    x = np.array([[0.0, 1e-45, 1e-30, 1e-7, 0.1, 1.0, 88.7, 1e4, 3e38, np.inf]], np.float32)
    assert np.array_equal(computed(in_vectors(one("Elu")), x), x)
    x = np.array([[-20.0, -88.0, -104.0, -1e4, -3e38, -np.inf]], np.float32)
    assert np.array_equal(computed(in_vectors(one("Elu")), x), np.full_like(x, -1.0))


def test_softplus_where_it_is_the_identity_or_zero():
    x = np.array([[20.0, 88.7, 1e4, 3e38, np.inf]], np.float32)
    assert np.array_equal(computed(in_vectors(one("Softplus")), x), x)
    assert not computed(in_vectors(one("Softplus")), -x).any()


@FUNCTIONS
@pytest.mark.parametrize("width", [1, 7, 16, 37])
def test_nan_stays_where_it_is(kind, width):
    """In whole vectors and in what is left over."""
    x = np.random.default_rng(0).standard_normal((5, width)).astype(np.float32)
    x[::2, ::3] = np.nan
    got = computed(in_vectors(one(kind)), x)
    assert np.array_equal(np.isnan(got), np.isnan(x))
    assert np.array_equal(np.isnan(got), np.isnan(computed(one(kind), x)))


@FUNCTIONS
@pytest.mark.parametrize("width", [16, 48, 464])
def test_rows_of_whole_vectors_have_the_same_bytes_in_every_batch(kind, width):
    x = (4 * np.random.default_rng(1).standard_normal((61, width))).astype(np.float32)
    run = session(in_vectors(one(kind)))
    whole = run.run(None, {"x": x})[0]
    for start, rows in [(0, 1), (60, 1), (3, 2), (8, 7), (5, 33), (1, 60)]:
        part = run.run(None, {"x": x[start : start + rows]})[0]
        assert part.tobytes() == whole[start : start + rows].tobytes()


def test_several_share_their_constants_and_the_graph_stays_valid():
    node = helper.make_node
    data = model(
        node("Elu", ["x"], ["a"], "first", alpha=1.0),
        node("Elu", ["a"], ["b"]),
        node("Softplus", ["b"], ["y"]),
    )
    rewritten = in_vectors(data)
    onnx.checker.check_model(onnx.load_from_string(rewritten), full_check=True)
    x = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    np.testing.assert_allclose(computed(rewritten, x), computed(data, x), rtol=1e-6)
    assert in_vectors(rewritten) == rewritten


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_rest_of_a_graph_is_left_as_it_is(operation):
    data = (SHIPPED / "portable" / f"{operation}.onnx").read_bytes()
    before, after = onnx.load_from_string(data), onnx.load_from_string(in_vectors(data))
    kept = [node for node in before.graph.node if node.op_type not in EXACT]
    left = {node.SerializeToString(deterministic=True) for node in after.graph.node}
    assert {node.SerializeToString(deterministic=True) for node in kept} <= left
    weights = after.graph.initializer[: len(before.graph.initializer)]
    assert [w.SerializeToString() for w in weights] == [
        w.SerializeToString() for w in before.graph.initializer
    ]
    assert after.graph.input == before.graph.input
    assert after.graph.output == before.graph.output
    assert after.opset_import == before.opset_import
    assert kinds(data).count("Elu") > kinds(in_vectors(data)).count("Elu")


def test_what_is_left_alone():
    node = helper.make_node
    weights = [("w", np.eye(16, dtype=np.float32)), ("c", np.ones(16, np.float32))]
    for data in (
        one("Elu", alpha=0.5),
        model(node("Gemm", ["x", "w", "c"], ["a"]), node("Elu", ["a"], ["y"]), constants=weights),
        model(node("BiasGelu", ["x", "c"], ["y"], domain="com.microsoft"), constants=weights[1:]),
        one("Exp"),
    ):
        assert in_vectors(data) == data
    foreign = onnx.load_from_string(one("Elu"))
    foreign.graph.node[0].domain = "com.example"
    assert in_vectors(foreign.SerializeToString()) == foreign.SerializeToString()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_engine_computes_the_form_of_its_provider(operation, model_bench):
    """To the bytes; and what the portable graph computes, to rounding."""
    bundle = load_bundle(SHIPPED)
    given = model_bench.inputs(bundle, operation, 9, seed=2)
    got = Engine(bundle, provider="cpu").run(operation, given)
    fast = ort.InferenceSession(
        str(SHIPPED / "cpu" / f"{operation}.onnx"), providers=["CPUExecutionProvider"]
    )
    for name, array in zip(got, fast.run(list(got), given), strict=True):
        assert got[name].tobytes() == array.tobytes()
    portable = Engine(bundle, provider="cpu", form="portable").run(operation, given)
    for name, array in got.items():
        if array.dtype == np.uint8:
            assert np.mean(array != portable[name]) < 1e-3
        else:
            np.testing.assert_allclose(array, portable[name], rtol=2e-5, atol=2e-5)
    different = [name for name in got if got[name].tobytes() != portable[name].tobytes()]
    assert different, "rounding differs, unless the forms are the same"
