"""Every node of every portable graph has a CUDA kernel for its types, so that none is left to the
CPU; the kernels are those that ONNX Runtime itself registers."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import service
from model.config import CouplingPrior
from model.posteriors import (
    CouplingPosterior,
    LinearIafPosterior,
    PlanarPosterior,
)
from service.bundle import load_bundle
from training.export.graphs import build_graphs, graph_modules

TABLE = json.loads(Path(__file__).with_name("cuda_kernels.json").read_text())
SHIPPED = sorted((Path(service.__file__).parent / "bundles").glob("*/portable/*.onnx"))
BUNDLES = sorted({path.parts[-3] for path in SHIPPED})
# Operator -> inputs that its CUDA kernel takes from the host's memory.
HOST = {
    "Clip": (1, 2),
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "Pad": (1, 2, 3),
    "ReduceLogSumExp": (1,),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Unsqueeze": (1,),
}
NAMES = {"float32": "float", "float64": "double"}  # what ONNX calls float and double


def types(proto):
    """Element type of every tensor, as ONNX names it."""
    whole = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    codes = {t.name: t.data_type for t in whole.initializer}
    for value in (*whole.value_info, *whole.input, *whole.output):
        codes[value.name] = value.type.tensor_type.elem_type
    named = {k: helper.tensor_dtype_to_np_dtype(code).name for k, code in codes.items()}
    return {k: NAMES.get(name, name) for k, name in named.items()}


def constraints(schema, node, found):
    """Type parameter of the operator -> the type that this node has there."""
    bound = {}
    sides = ((schema.inputs, node.input), (schema.outputs, node.output))
    for formal, names in sides:
        for place, name in enumerate(names):
            if name:
                bound[formal[min(place, len(formal) - 1)].type_str] = found[name]
    return bound


def lacking(proto):
    """Nodes without a kernel, as "name: operator and types"."""
    opset = next(o.version for o in proto.opset_import if o.domain == "")
    found, without = types(proto), []
    for node in proto.graph.node:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        bound = constraints(schema, node, found)
        if not any(
            takes(kernel, schema.since_version, bound)
            for kernel in TABLE["kernels"].get(node.op_type, ())
        ):
            without.append(f"{node.name}: {node.op_type} {bound}")
    return without


def takes(kernel, since, bound):
    """As ONNX Runtime's registry looks kernels up: an open end means the same definition only."""
    if kernel["since"] != since and not (
        kernel["until"] is not None and kernel["since"] < since <= kernel["until"]
    ):
        return False
    return all(bound[k] in allowed for k, allowed in kernel["types"].items() if k in bound)


def test_the_table_is_of_the_version_that_is_installed():
    assert version(TABLE["runtime"]) == TABLE["version"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_bundles_that_ship(path):
    assert lacking(onnx.load(path, load_external_data=False)) == []


@pytest.mark.parametrize("kind", [pytest.param("conv", marks=pytest.mark.slow), "ladder"])
def test_models_that_are_exported_now(kind, request):
    bundle = request.getfixturevalue(kind).bundle
    graphs = bundle.manifest.graphs
    for graph in graphs.values():
        proto = onnx.load_from_string(bundle.read(graph.portable))
        assert lacking(proto) == [], graph.portable


FLAT = {
    "planar": {"posterior": PlanarPosterior(steps=1)},
    "coupling": {"posterior": CouplingPosterior(steps=2)},
    "linear-iaf": {"posterior": LinearIafPosterior(), "prior": CouplingPrior(couplings=2)},
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", FLAT)
def test_other_posteriors_and_priors(kind, convs):
    modules = graph_modules(convs.conv_model(**FLAT[kind]).fold())
    chosen = {operation: modules[operation] for operation in ("score", "sample")}
    for operation, file in build_graphs(chosen).portable.items():
        assert lacking(onnx.load_from_string(file)) == [], operation


def test_every_bundle_has_all_its_portable_graphs():
    assert len(SHIPPED) >= 12


def settled(bundle, operation, rows, path):
    """The graph as ONNX Runtime has it where sizes are fixed, as they are on a GPU."""
    graph, weights = bundle.manifest.graphs[operation], bundle.manifest.weights_file
    options, blob = ort.SessionOptions(), bundle.read(weights)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    for name in {str(tensor.shape[0]) for tensor in graph.inputs}:
        options.add_free_dimension_override_by_name(name, rows)
    options.add_external_initializers_from_files_in_memory(
        [Path(weights).name], [blob], [len(blob)]
    )
    ort.InferenceSession(bundle.read(graph.portable), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def computed_on_the_host(proto):
    """Inputs that a CUDA kernel reads in the host's memory and that are not constant."""
    constant = {tensor.name for tensor in proto.graph.initializer} | {""}
    return [
        f"{node.name}: {node.op_type} {name}"
        for node in proto.graph.node
        for place, name in enumerate(node.input)
        if place in HOST.get(node.op_type, ()) and name not in constant
    ]


@pytest.mark.parametrize("name", BUNDLES)
def test_with_fixed_sizes_nothing_is_left_to_the_host(name, tmp_path):
    """What computes shapes ONNX Runtime would give to the CPU, with copies there and back."""
    bundle = load_bundle(SHIPPED[0].parents[2] / name)
    for operation in bundle.manifest.graphs:
        proto = settled(bundle, operation, 16, tmp_path / f"{operation}.onnx")
        assert not {node.op_type for node in proto.graph.node} & {"Shape", "Size"}, operation
        assert computed_on_the_host(proto) == [], operation
        assert lacking(proto) == [], operation


def model(kind, dtype, **attributes):
    value = helper.make_tensor_value_info
    node = helper.make_node(kind, ["x", "x"], ["y"], name="node", **attributes)
    out = TensorProto.BOOL if kind == "GreaterOrEqual" else dtype
    graph = helper.make_graph([node], "g", [value("x", dtype, ["N"])], [value("y", out, ["N"])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_what_has_no_kernel_is_seen():
    """uint8 is compared by no CUDA kernel, which cost a copy to the host and back."""
    assert lacking(model("GreaterOrEqual", TensorProto.UINT8)) == [
        "node: GreaterOrEqual {'T': 'uint8', 'T1': 'bool'}"
    ]
    assert lacking(model("GreaterOrEqual", TensorProto.FLOAT)) == []
    mod = model("Mod", TensorProto.UINT8)
    assert lacking(mod) == ["node: Mod {'T': 'uint8'}"]
