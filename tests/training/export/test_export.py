"""Graphs compute what the unfolded torch model computes, and hold no more than that needs."""

import json

import numpy as np
import onnx
import pytest
import torch

from model.config import BINARY_LIKELIHOODS, LIKELIHOODS, DiagonalPosterior
from service.bundle import load_bundle
from service.bundle.graphs import LikelihoodSpec
from service.engine.onnxruntime_engine import Engine
from training.data import drawn_pixels
from training.evaluate.evaluate import evaluate_images
from training.export.calibrate import measure
from training.export.export import export_bundle

OPERATIONS = ("sample", "decode", "encode", "score", "evidence")


@pytest.fixture(scope="module")
def engine(conv):
    engine = Engine(load_bundle(conv.bundle.path), provider="cpu", max_rows=64)
    engine.warm()
    return engine


def near(a, b, rtol=1e-4, atol=1e-4):
    return np.allclose(a, b.numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("n", [1, 7, 64])
@torch.no_grad()
def test_images_come_out_as_torch_makes_them(engine, conv, n):
    generator = torch.Generator().manual_seed(n)
    eps, u = torch.randn(n, 16, generator=generator), torch.rand(n, 64, generator=generator)
    temperature = torch.linspace(0, 2, n)[:, None]
    for operation, z, inputs in (
        ("sample", temperature * eps, {"eps": eps, "temperature": temperature, "u": u}),
        ("decode", eps, {"z": eps, "u": u}),
    ):
        got = engine.run(operation, {name: t.numpy() for name, t in inputs.items()})
        p = torch.sigmoid(conv.model.decoder(z))
        assert near(got["mean"], p)
        wrong = got["draw"] != 255 * (u.view_as(p) < p).numpy()
        assert not wrong[(u.view_as(p) - p).abs() > 1e-5].any()


@pytest.mark.parametrize("n", [1, 7, 64])
@torch.no_grad()
def test_latents_and_scores_come_out_as_torch_makes_them(engine, convs, conv, n):
    generator = torch.Generator().manual_seed(n)
    image = convs.pixels(n, seed=n)
    u = torch.rand(n, 64, generator=generator)
    grey = {"image": image, "u_image": u.numpy()}
    x = torch.from_numpy(image / np.float32(255) > u.numpy().reshape(image.shape)).float()
    eps = torch.randn(n, 16, generator=generator)
    got = engine.run("encode", {**grey, "eps": eps.numpy()})
    assert near(got["z"], conv.model.infer(conv.model.bottom_up(x), eps).z)
    assert np.array_equal(got["z"], got["prior_eps"])

    owner = torch.randint(n, (29,), generator=generator)  # neither sorted nor even
    eps = torch.randn(29, 16, generator=generator)
    got = engine.run("score", {**grey, "owner": owner.numpy(), "eps": eps.numpy()})
    log_px_z, kl = conv.model(x[owner], eps)
    assert near(got["log_px_z"], log_px_z, rtol=1e-5, atol=1e-3)
    assert near(got["kl"], kl, rtol=1e-4, atol=1e-3)
    assert near(got["log_weight"], log_px_z - kl.sum(1), rtol=1e-5, atol=1e-3)

    zero = torch.zeros(n, 16)
    z = conv.model.infer(conv.model.bottom_up(x), zero).z
    residual = x - torch.sigmoid(conv.model.decode(z))
    log_px_z, kl = conv.model(x, zero)
    got = engine.run("evidence", {**grey, "owner": owner.numpy(), "eps": eps.numpy()})
    rows_px_z, rows_kl = conv.model(x[owner], eps)
    assert near(got["log_weight"], rows_px_z - rows_kl.sum(1), rtol=1e-5, atol=1e-3)
    assert near(got["kl"], rows_kl, rtol=1e-4, atol=1e-3)
    names = conv.bundle.manifest.statistics
    found = dict(zip(names, got["statistics"].T, strict=True))
    assert near(got["residual"], residual[:, 0])
    assert near(found["log_px_z"], log_px_z, rtol=1e-5, atol=1e-3)
    assert near(found["kl/z"], kl[:, 0], rtol=1e-4, atol=1e-3)
    assert near(found["z/z"], z.square().sum(1))
    assert near(found["prior_eps/z"], z.square().sum(1))
    assert near(found["residual/all"], residual.square().mean((1, 2, 3)))
    assert near(found["level"], x.mean((1, 2, 3)))
    assert near(found["contrast"], x.flatten(1).std(1, correction=0))
    steps = [np.abs(np.diff(x.numpy(), axis=axis)).mean((1, 2, 3)) for axis in (2, 3)]
    assert np.allclose(found["variation"], sum(steps), atol=1e-5)
    bends = [np.abs(np.diff(x.numpy(), 2, axis=axis)).mean((1, 2, 3)) for axis in (2, 3)]
    sharpness = (sum(bends) + 1 / 2550) / (sum(steps) + 1 / 2550)
    assert np.allclose(found["sharpness"], sharpness, rtol=1e-5)


def test_the_service_and_the_evaluation_measure_the_same(engine, convs, conv):
    """Other noise, another runtime, other code for the bound: equal within their own errors."""
    images = convs.pixels(60, seed=5)
    images = drawn_pixels(images, 0)  # as the evaluation sees them
    scores = measure(engine, conv.bundle.manifest, images).log_likelihood[64]
    figures = evaluate_images(conv.model, images, importance_samples=64)
    error = np.sqrt(2 * figures.importance_weighted_variance.mean() / 60)
    assert abs(scores.mean() - figures.importance_weighted.mean()) < 4 * error


FORMS = pytest.mark.parametrize("form", ["portable", "cpu"])


def protos(bundle, form):
    return {
        op: onnx.load(bundle.path / form / f"{op}.onnx", load_external_data=False)
        for op in OPERATIONS
    }


@FORMS
def test_graphs_have_the_names_and_shapes_of_the_contract(conv, form):
    for operation, proto in protos(conv.bundle, form).items():
        spec = conv.bundle.manifest.graphs[operation]
        for tensors, values in (
            (spec.inputs, proto.graph.input),
            (spec.outputs, proto.graph.output),
        ):
            assert [value.name for value in values] == [tensor.name for tensor in tensors]
            for value, tensor in zip(values, tensors, strict=True):
                shape = value.type.tensor_type.shape.dim
                assert tuple(d.dim_param or d.dim_value for d in shape) == tensor.shape
        assert proto.opset_import[0].version == conv.bundle.manifest.opset == 20
        if form == "cpu":  # where the weights lie
            onnx.checker.check_model(str(conv.bundle.path / form / f"{operation}.onnx"))


def external(proto):
    """Initialiser -> (offset, length) in the weights file."""
    found = {}
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in tensor.external_data}
            assert where["location"] == "weights.bin"
            assert not tensor.raw_data
            found[tensor.name] = (int(where["offset"]), int(where["length"]))
    return found


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_bundle_and_model_agree_on_what_is_binary(kind):
    assert LikelihoodSpec(kind=kind, uniforms=1).binary == (kind in BINARY_LIKELIHOODS)


def test_weights_are_written_once_and_aligned(conv):
    forms = {
        form: {op: external(proto) for op, proto in protos(conv.bundle, form).items()}
        for form in ("portable", "cpu")
    }
    spans = {
        span for places in forms.values() for place in places.values() for span in place.values()
    }
    ends = 0
    for offset, length in sorted(spans):
        assert offset % 4096 == 0
        assert offset >= ends  # no two weights overlap
        ends = offset + length
    assert ends == (conv.bundle.path / "cpu" / "weights.bin").stat().st_size
    for places in forms.values():
        assert set(places["sample"].values()) == set(places["decode"].values())
        assert set(places["sample"].values()) < set(places["score"].values())


@FORMS
def test_weights_are_listed_as_the_graphs_read_them(conv, form):
    """By the onnx package, which reads them from the file."""
    listed = {weight.name: weight for weight in conv.bundle.manifest.weights}
    blob = conv.bundle.read(conv.bundle.manifest.weights_file)
    for proto in protos(conv.bundle, form).values():
        onnx.load_external_data_for_model(proto, str(conv.bundle.path / "cpu"))
        large = [t for t in proto.graph.initializer if t.name in listed]
        assert large
        for tensor in large:
            weight, array = listed[tensor.name], onnx.numpy_helper.to_array(tensor)
            assert (str(array.dtype), array.shape) == (weight.dtype, weight.shape)
            assert array.tobytes() == blob[weight.offset : weight.offset + weight.length]


def test_portable_graphs_hold_nothing_that_is_for_a_cpu(conv):
    """Plain operators, and uint8 only where ONNX Runtime's CUDA provider takes it."""
    kinds = {
        form: {n.op_type for proto in protos(conv.bundle, form).values() for n in proto.graph.node}
        for form in ("portable", "cpu")
    }
    assert {"Elu", "Softplus"} <= kinds["portable"]
    assert not {"Min", "DepthToSpace"} & kinds["portable"]
    assert {"Min", "DepthToSpace"} <= kinds["cpu"]
    for proto in protos(conv.bundle, "portable").values():
        typed = onnx.shape_inference.infer_shapes(proto).graph
        uint8 = {
            v.name
            for v in (*typed.value_info, *typed.input)
            if v.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        }
        readers = {node.op_type for node in typed.node if uint8 & set(node.input)}
        assert readers <= {"Cast", "Gather", "Reshape"}


@FORMS
def test_graphs_hold_only_what_they_need(conv, form):
    found = protos(conv.bundle, form)
    names = {op: {t.name for t in proto.graph.initializer} for op, proto in found.items()}
    for operation in ("sample", "decode"):
        assert not [name for name in names[operation] if "encoder" in name or "flow" in name]
    assert not [name for name in names["encode"] if "decoder" in name]
    kinds = {op: [node.op_type for node in proto.graph.node] for op, proto in found.items()}
    for operation, used in kinds.items():
        assert "Transpose" not in used, operation
        # One from or to uint8, one from what is white or black; floats instead: one more.
        assert used.count("Cast") <= (2 if form == "cpu" else 3), operation
        assert not [kind for kind in used if kind.startswith("Random")]


def test_rows_need_no_padding(engine, conv):
    """Every width is, or was made, a multiple of 16: one image costs one image."""
    assert conv.bundle.manifest.row_block == 1
    assert engine.invariant
    assert engine.padded_rows(1) == 0


@torch.no_grad()
def test_the_tails_of_a_discretised_logistic_survive_the_export(convs, tmp_path):
    """At a narrow scale log sigmoid is hundreds below zero: a Log of a Sigmoid would be -inf.

    In colour, and with the diagonal posterior, so that these pass through an export too.
    """
    shape = (3, 8, 8)
    model = convs.conv_model(
        image_shape=shape, likelihood="discretized_logistic", posterior=DiagonalPosterior()
    )
    last = model.decoder.blocks[-1]
    last.second.bias[3:] = -9.0  # log-scales: clamped at their minimum
    bundle = export_bundle(model, tmp_path / "logistic", convs.DETAILS, calibration=None)
    engine = Engine(bundle, provider="cpu")
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    image = np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), noise])
    eps = torch.zeros(3, 16)
    inputs = {"image": image, "owner": np.arange(3), "eps": eps.numpy()}
    got = engine.run("score", inputs)["log_px_z"]
    wanted, _ = model(torch.from_numpy(image).float(), eps)
    assert (got < -1000).all()
    assert near(got, wanted, rtol=1e-4, atol=0)
    manifest = json.loads((bundle.path / "manifest.json").read_bytes())
    assert manifest["preprocessing"] == {"kind": "none"}
