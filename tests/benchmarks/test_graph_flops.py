"""What graphs cost: their products, against torch's own count; every case of the program once."""

from __future__ import annotations

import argparse

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.engine import graph_flops, measure, operator_shares
from service.bundle import load_bundle
from service.settings import SHIPPED_BUNDLE

SIZE = 6
LAYERS = {
    "Conv": (nn.Conv2d(4, 8, 3, stride=2, padding=1), {"strides": [2, 2], "pads": [1] * 4}),
    "grouped Conv": (nn.Conv2d(4, 8, 3, groups=2), {"group": 2}),
    "ConvTranspose": (
        nn.ConvTranspose2d(4, 8, 3, stride=2, padding=1),
        {"strides": [2, 2], "pads": [1] * 4},
    ),
}


def write(path, nodes, weights, rows):
    tensors = [helper.make_tensor(k, TensorProto.FLOAT, v.shape, v.ravel()) for k, v in weights]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *rows])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


@pytest.mark.parametrize("name", LAYERS)
def test_convolutions(name, tmp_path):
    layer, attributes = LAYERS[name]
    node = helper.make_node(name.split()[-1], ["x", "w"], ["y"], **attributes)
    weights = [("w", layer.weight.detach().numpy())]
    path = write(tmp_path / "g.onnx", [node], weights, [4, SIZE, SIZE])
    with FlopCounterMode(display=False) as counter:
        layer(torch.zeros(1, 4, SIZE, SIZE))
    assert graph_flops(path) == counter.get_total_flops()


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_products_and_what_is_none(kind, tmp_path):
    nodes = [helper.make_node(kind, ["x", "w"], ["a"]), helper.make_node("Elu", ["a"], ["y"])]
    path = write(tmp_path / "g.onnx", nodes, [("w", torch.zeros(5, 7).numpy())], [5])
    assert graph_flops(path) == 2 * 5 * 7


def test_what_cannot_be_counted_is_named(tmp_path):
    foreign = helper.make_node("Mystery", ["x"], ["a"], domain="com.example")
    product = helper.make_node("MatMul", ["a", "w"], ["y"], name="late")
    graph = write(tmp_path / "g.onnx", [product], [("w", torch.zeros(5, 7).numpy())], [5])
    model = onnx.load(graph)
    model.graph.node.insert(0, foreign)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, graph)
    with pytest.raises(ValueError, match="MatMul late: a shape is not known"):
        graph_flops(graph)


def test_every_form_is_measured(tiny_bundle):
    options = argparse.Namespace(
        bundles=[tiny_bundle],
        forms=["cpu", "portable"],
        operations=["decode", "score"],
        batches=[1, 3],
        rounds=1,
        seconds=0.0001,
    )
    found = measure(options)
    assert {(c.form, c.operation, c.batch) for c in found} == {
        (form, operation, batch)
        for form in options.forms
        for operation in options.operations
        for batch in options.batches
    }
    assert all(one.seconds > 0 and one.flops > 0 for one in found.values())
    bundle = load_bundle(SHIPPED_BUNDLE)
    kinds = []
    for form in ("cpu", "portable"):
        shares = operator_shares(bundle, "score", 2, form)
        assert sum(share for *_, share in shares) == pytest.approx(1)
        kinds.append({kind for kind, *_ in shares})
    assert ["Softplus" in found for found in kinds] == [False, True]
