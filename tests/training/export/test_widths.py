"""Widened layers compute the same, and the stated block really keeps rows independent."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from training.export.passes.widths import row_block, steady_sums, widen


def graph(nodes, weights, outputs, width=5):
    value = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [value("x", TensorProto.FLOAT, ["N", width])],
            [value(name, TensorProto.FLOAT, ["N", *dims]) for name, dims in outputs.items()],
            [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gemm(x, layer, y):
    return helper.make_node("Gemm", [x, f"{layer}.w", f"{layer}.b"], [y], transB=1)


def two_heads(between="Elu", shared=False):
    """x [N, 5] -> 21 hidden units -> two heads of 16; `between` is what the hidden units meet."""
    nodes = [
        gemm("x", "hidden", "h"),
        helper.make_node(between, ["h"], ["a"]),
        gemm("a", "one", "y"),
        gemm("a", "two", "z"),
    ]
    weights = {"hidden.w": normal(21, 5), "hidden.b": normal(21)}
    weights |= {"one.w": normal(16, 21, seed=1), "one.b": normal(16)}
    weights |= {"two.w": normal(16, 21, seed=2), "two.b": normal(16)}
    outputs = {"y": [16], "z": [16]}
    if shared:  # somebody else reads the hidden units
        outputs["a"] = [21]
    return graph(nodes, weights, outputs)


def weights_of(model):
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def test_a_hidden_layer_is_widened_by_units_that_are_zero():
    model, wide = two_heads(), two_heads()
    widen(wide)
    shapes = {name: array.shape for name, array in weights_of(wide).items()}
    assert shapes["hidden.w"] == (32, 5)
    assert shapes["hidden.b"] == (32,)
    assert shapes["one.w"] == shapes["two.w"] == (16, 32)
    onnx.checker.check_model(wide, full_check=True)
    x = normal(7, 5, seed=9)
    for got, wanted in zip(
        ReferenceEvaluator(wide).run(None, {"x": x}),
        ReferenceEvaluator(model).run(None, {"x": x}),
        strict=True,
    ):
        assert np.allclose(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(two_heads(between="Sigmoid"), id="sigmoid(0) is not 0"),
        pytest.param(two_heads(shared=True), id="the units are an output"),
    ],
)
def test_what_would_change_a_result_is_left_alone(model):
    before = model.SerializeToString()
    widen(model)
    assert model.SerializeToString() == before


def test_weights_of_two_layers_are_left_alone():
    nodes = [gemm("x", "a", "h"), helper.make_node("Elu", ["h"], ["e"]), gemm("e", "a", "y")]
    model = graph(nodes, {"a.w": normal(5, 5), "a.b": normal(5)}, {"y": [5]})
    before = model.SerializeToString()
    widen(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("width", "block"), [(16, 1), (48, 1), (8, 2), (24, 2), (4, 4), (450, 8), (7, 16)]
)
def test_a_block_of_rows_is_whole_vectors(width, block):
    nodes = [helper.make_node("Elu", ["x"], ["y"])]
    assert row_block(graph(nodes, {}, {"y": [width]}, width)) == block
    axes = {"axes": np.array([1])}
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)]
    assert row_block(graph(nodes, axes, {"y": []}, width)) == block


def test_what_rounds_the_same_everywhere_needs_no_block():
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    assert row_block(graph(nodes, {}, {"y": [7]}, 7)) == 1
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)]
    assert row_block(graph(nodes, {"axes": np.array([1])}, {"y": []}, 1)) == 1
    assert row_block(summed(5, 2, keepdims=0)) == 1
    assert row_block(summed(5, 3, keepdims=0)) == 16


def summed(*shape, keepdims, axis=-1):
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=keepdims)]
    rest = [*shape[:-1], *([1] if keepdims else [])]
    model = graph(nodes, {"axes": np.array([axis])}, {"y": rest}, shape[0])
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for size in shape[1:]:
        dims.add(dim_value=size)
    return model


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("shape", [(5,), (13,), (3, 35), (2, 7)])
def test_odd_sums_become_products_whose_rows_are_independent(shape, keepdims):
    """By ONNX Runtime: rows summed alone, and at every place of a batch, have the same bytes."""
    model = summed(*shape, keepdims=keepdims)
    steady_sums(model)
    assert "ReduceSum" not in {node.op_type for node in model.graph.node}
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.exp(normal(40, *shape))
    whole = session.run(None, {"x": x})[0]
    wanted = x.astype(np.float64).sum(axis=-1, keepdims=bool(keepdims))
    assert whole.shape == wanted.shape
    assert np.allclose(whole, wanted, rtol=1e-6)
    for start in range(20):
        for rows in (1, 2, 3, 7, 16, 20):
            part = session.run(None, {"x": x[start : start + rows].copy()})[0]
            assert part.tobytes() == whole[start : start + rows].tobytes()


@pytest.mark.parametrize("shape", [(16,), (4, 64), (8, 2), (2,), (2, 5, 8)])
def test_sums_over_whole_vectors_stay_sums(shape):
    model = summed(*shape, keepdims=1)
    before = model.SerializeToString()
    steady_sums(model)
    assert model.SerializeToString() == before


def test_sums_over_another_axis_stay_sums():
    model = summed(3, 5, keepdims=1, axis=1)
    before = model.SerializeToString()
    steady_sums(model)
    assert model.SerializeToString() == before
