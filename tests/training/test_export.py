"""Graphs compute what the unfolded torch model computes, and a bundle is published whole or not."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from model import build_model
from model.config import ConvVaeConfig, DiagonalPosterior, IafPosterior
from service.bundle import load_bundle
from service.engine import Engine
from training import export as module
from training.calibrate import importance_weighted_scores
from training.data import ImageData
from training.errors import ExportError
from training.evaluate import evaluate_images
from training.export import BundleDetails, export_bundle
from training.findings import Findings
from training.graphs import build_graphs, graph_modules

OPERATIONS = ("sample", "decode", "encode", "score")
SHAPE = (1, 8, 8)


def tiny_model(**changes):
    torch.manual_seed(0)
    config = ConvVaeConfig(
        image_shape=SHAPE,
        channels=(16,),
        hidden=18,
        latent_dim=16,
        posterior=IafPosterior(steps=2, hidden=(16, 16)),
    )
    model = build_model(replace(config, **changes)).eval()
    with torch.no_grad():  # away from zero biases, gains of one and a posterior like the prior
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def pixels(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), np.uint8)


DETAILS = BundleDetails(
    name="tiny",
    description="For tests.",
    training={"epochs": 3},
    findings=Findings(curve="An hour.", pictures={"curve.png": b"a picture"}),
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def graphs(model):
    """The model's graphs, exported once for all tests that need them again."""
    return build_graphs(graph_modules(model.fold()))


@pytest.fixture(scope="module")
def bundle(model, graphs, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "build_graphs", lambda _: graphs)
        return export_bundle(
            model,
            tmp_path_factory.mktemp("export") / "tiny",
            DETAILS,
            calibration=ImageData(pixels(40), "mnist", "calibration"),
            examples=ImageData(pixels(9, seed=1), "mnist", "test"),
        )


@pytest.fixture(scope="module")
def engine(bundle):
    engine = Engine(load_bundle(bundle.path), provider="cpu", max_rows=64)
    engine.warm()
    return engine


def near(a, b, rtol=1e-4, atol=1e-4):
    return np.allclose(a, b.numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("n", [1, 7, 64])
@torch.no_grad()
def test_images_come_out_as_torch_makes_them(engine, model, n):
    generator = torch.Generator().manual_seed(n)
    eps, u = torch.randn(n, 16, generator=generator), torch.rand(n, 64, generator=generator)
    temperature = torch.linspace(0, 2, n)[:, None]
    for operation, z, inputs in (
        ("sample", temperature * eps, {"eps": eps, "temperature": temperature, "u": u}),
        ("decode", eps, {"z": eps, "u": u}),
    ):
        got = engine.run(operation, {name: t.numpy() for name, t in inputs.items()})
        p = torch.sigmoid(model.decoder(z))
        assert near(got["mean"], p)
        wrong = got["draw"] != 255 * (u.view_as(p) < p).numpy()
        assert not wrong[(u.view_as(p) - p).abs() > 1e-5].any()


@pytest.mark.parametrize("n", [1, 7, 64])
@torch.no_grad()
def test_latents_and_scores_come_out_as_torch_makes_them(engine, model, n):
    generator = torch.Generator().manual_seed(n)
    image = pixels(n, seed=n)
    x = torch.from_numpy(image >= 128).float()
    eps = torch.randn(n, 16, generator=generator)
    got = engine.run("encode", {"image": image, "eps": eps.numpy()})
    assert near(got["z"], model.infer(model.bottom_up(x), eps).z)
    assert np.array_equal(got["z"], got["prior_eps"])

    owner = torch.randint(n, (29,), generator=generator)  # neither sorted nor even
    eps = torch.randn(29, 16, generator=generator)
    got = engine.run("score", {"image": image, "owner": owner.numpy(), "eps": eps.numpy()})
    log_px_z, kl = model(x[owner], eps)
    assert near(got["log_px_z"], log_px_z, rtol=1e-5, atol=1e-3)
    assert near(got["kl"], kl, rtol=1e-4, atol=1e-3)
    assert near(got["log_weight"], log_px_z - kl.sum(1), rtol=1e-5, atol=1e-3)


def test_the_service_and_the_evaluation_measure_the_same(engine, bundle, model):
    """Other noise, another runtime, other code for the bound: equal within their own errors."""
    images = pixels(60, seed=5)
    scores = importance_weighted_scores(engine, bundle.manifest, images)[64].astype(np.float64)
    figures = evaluate_images(model, images, importance_samples=64)
    error = np.sqrt(2 * figures.importance_weighted_variance.mean() / 60)
    assert abs(scores.mean() - figures.importance_weighted.mean()) < 4 * error


def protos(bundle):
    return {
        op: onnx.load(bundle.path / f"{op}.onnx", load_external_data=False) for op in OPERATIONS
    }


def test_graphs_have_the_names_and_shapes_of_the_contract(bundle):
    for operation, proto in protos(bundle).items():
        spec = bundle.manifest.graphs[operation]
        for tensors, values in (
            (spec.inputs, proto.graph.input),
            (spec.outputs, proto.graph.output),
        ):
            assert [value.name for value in values] == [tensor.name for tensor in tensors]
            for value, tensor in zip(values, tensors, strict=True):
                shape = value.type.tensor_type.shape.dim
                assert tuple(d.dim_param or d.dim_value for d in shape) == tensor.shape
        assert proto.opset_import[0].version == bundle.manifest.opset == 20
        onnx.checker.check_model(str(bundle.path / f"{operation}.onnx"))


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


def test_weights_are_written_once_and_aligned(bundle, model):
    places = {operation: external(proto) for operation, proto in protos(bundle).items()}
    spans = {span for place in places.values() for span in place.values()}
    ends = 0
    for offset, length in sorted(spans):
        assert offset % 4096 == 0
        assert offset >= ends  # no two weights overlap
        ends = offset + length
    assert ends == (bundle.path / "weights.bin").stat().st_size
    assert set(places["sample"].values()) == set(places["decode"].values())
    assert set(places["sample"].values()) < set(places["score"].values())


def test_graphs_hold_only_what_they_need(bundle):
    names = {op: {t.name for t in proto.graph.initializer} for op, proto in protos(bundle).items()}
    for operation in ("sample", "decode"):
        assert not [name for name in names[operation] if "encoder" in name or "flow" in name]
    assert not [name for name in names["encode"] if "decoder" in name]
    kinds = {
        op: [node.op_type for node in proto.graph.node] for op, proto in protos(bundle).items()
    }
    for operation, used in kinds.items():
        assert "Transpose" not in used, operation
        assert used.count("Cast") <= 1, operation  # one from or to uint8
        assert not [kind for kind in used if kind.startswith("Random")]


def test_rows_need_no_padding(bundle, engine):
    """Every width is, or was made, a multiple of 16: one image costs one image."""
    assert bundle.manifest.row_block == 1
    assert engine.invariant
    assert engine.padded_rows(1) == 0


def test_nothing_of_the_machine_is_in_the_files(bundle):
    here = [str(path).encode() for path in (bundle.path.parent, module.__file__)]
    for file in bundle.path.iterdir():
        content = file.read_bytes()
        for trace in (*here, b"site-packages", b"stack_trace", b'.py"'):
            assert trace not in content, file.name


def test_the_manifest_and_the_card_say_what_it_is(bundle, model):
    manifest = bundle.manifest
    assert (manifest.name, manifest.version, manifest.license) == ("tiny", "1.0.0", "MIT")
    assert manifest.image.shape == SHAPE
    assert manifest.preprocessing.threshold == 128
    assert manifest.latent.dim == 16
    assert manifest.training == {"epochs": 3}
    assert manifest.calibration.images == 40
    assert manifest.scoring.calibrated_importance_samples == (1, 16, 64)
    assert sorted(bundle.calibration) == [1, 16, 64]
    card = (bundle.path / "MODEL_CARD.md").read_text()
    for words in ("# tiny 1.0.0", "For tests.", "samples.png", "reconstructions.png", "epochs"):
        assert words in card
    assert (bundle.path / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert "![curve](curve.png)\n\nAn hour." in card
    assert (bundle.path / "curve.png").read_bytes() == b"a picture"
    assert "curve.png" in bundle.manifest.files


def test_without_images_there_is_a_bundle_without_p_values(model, graphs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "build_graphs", lambda _: graphs)
    figure = {
        "estimator": "importance_weighted",
        "importance_samples": 8,
        "split": "test",
        "images": 10,
        "seed": 0,
        "value_nats": -80.25,
        "standard_error_nats": 0.5,
        "bits_per_dim": 0.15,
        "kl_nats": {"z": 20.0},
        "protocol": "Ten images.",
        "command": "iafvae-train evaluate RUN",
    }
    details = replace(DETAILS, evaluation=(figure,))
    bundle = export_bundle(model, tmp_path / "plain", details, calibration=None)
    assert bundle.manifest.calibration is None
    assert not (bundle.path / "reconstructions.png").exists()
    card = (bundle.path / "MODEL_CARD.md").read_text()
    for words in ("no p-values", "IW-8", "-80.250 ± 0.500", "Ten images.", "iafvae-train evaluate"):
        assert words in card


def flipped(graphs):
    """One weight with another sign: what a bug in the offsets might do."""
    weights = np.frombuffer(graphs.weights, np.float32).copy()
    weights[np.flatnonzero(np.abs(weights) > 0.3)[0]] *= -1
    return replace(graphs, weights=weights.tobytes())


def test_a_disagreement_publishes_nothing(model, graphs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "build_graphs", lambda _: flipped(graphs))
    with pytest.raises(ExportError, match="No bundle was written"):
        export_bundle(model, tmp_path / "new", DETAILS, calibration=None)
    assert list(tmp_path.iterdir()) == []


def test_parity_sees_what_the_canaries_do_not(model, graphs, bundle, tmp_path, monkeypatch):
    """With canaries that nobody compares; a bundle that stood there before stays as it was."""
    shutil.copytree(bundle.path, tmp_path / "old")
    monkeypatch.setattr(module, "build_graphs", lambda _: flipped(graphs))
    monkeypatch.setattr(Engine, "warm", lambda self: None)
    with pytest.raises(ExportError, match=r"disagree in .* at N = 1: .* Nothing was published"):
        export_bundle(model, tmp_path / "old", DETAILS, calibration=None)
    assert load_bundle(tmp_path / "old").hash == bundle.hash
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_what_no_manifest_takes_is_said_before_the_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "build_graphs", lambda _: pytest.fail("worked for nothing"))
    with pytest.raises(ExportError, match="name 'A B/c' must be"):
        export_bundle(model, tmp_path / "new", replace(DETAILS, name="A B/c"), calibration=None)


def test_a_directory_that_is_no_bundle_is_left_alone(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="no bundle"):
        export_bundle(model, tmp_path, DETAILS, calibration=None)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@torch.no_grad()
def test_the_tails_of_a_discretised_logistic_survive_the_export(tmp_path):
    """At a narrow scale log sigmoid is hundreds below zero: a Log of a Sigmoid would be -inf.

    In colour, and with the diagonal posterior, so that these pass through an export too.
    """
    shape = (3, 8, 8)
    model = tiny_model(
        image_shape=shape, likelihood="discretized_logistic", posterior=DiagonalPosterior()
    )
    last = model.decoder.blocks[-1]
    last.second.bias[3:] = -9.0  # log-scales: clamped at their minimum
    bundle = export_bundle(model, tmp_path / "logistic", DETAILS, calibration=None)
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
