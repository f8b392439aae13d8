"""Ladders as bundles: the graphs against the unfolded torch model, rows against their company."""

import numpy as np
import onnx
import pytest
import torch

from model import build_model
from model.config import ConvIafPosterior, ResnetVaeConfig, preset
from service.engine.onnxruntime_engine import Engine
from training.export.graphs import build_graphs, graph_modules

OTHER = ResnetVaeConfig(
    image_shape=(3, 7, 9),
    channels=6,
    z_channels=3,
    levels=(1, 1),
    inference="bottom_up",
    likelihood="logistic_mixture",
    mixtures=3,
    posterior=ConvIafPosterior(steps=2, update="gated", hidden_layers=1),
)
OPERATIONS = ("sample", "decode", "encode", "score")


class Exported:
    def __init__(self, ladder):
        self.model, self.bundle = ladder.model, ladder.bundle
        self.engine = Engine(self.bundle, provider="cpu", max_rows=64)
        self.engine.warm()

    def proto(self, operation):
        return onnx.load(self.bundle.path / "cpu" / f"{operation}.onnx", load_external_data=False)


@pytest.fixture(scope="module")
def other(ladders, tmp_path_factory):
    """Odd sizes, sums of odd lengths, and everything else that the other ladder is not."""
    return ladders.export_ladder(OTHER, tmp_path_factory.mktemp("other") / "b", calibrated=False)


# A minute of exports; `make test-all` has it.
@pytest.fixture(scope="module", params=["ladder", pytest.param("other", marks=pytest.mark.slow)])
def exported(request):
    return Exported(request.getfixturevalue(request.param))


def pixels(config, n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *config.image_shape), np.uint8)


def near(a, b, rtol=1e-4, atol=1e-4):
    return np.allclose(a, b.numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("n", [1, 7, 64])
@torch.no_grad()
def test_images_come_out_as_torch_makes_them(exported, n):
    model, engine = exported.model, exported.engine
    generator = torch.Generator().manual_seed(n)
    eps = torch.randn(n, model.layout.dim, generator=generator)
    u = torch.rand(n, model.likelihood.uniforms, generator=generator)
    temperature = torch.rand(n, len(model.layout.groups), generator=generator) * 1.5
    for operation, params, inputs in (
        (
            "sample",
            model.generate(eps, temperature),
            {"eps": eps, "temperature": temperature, "u": u},
        ),
        ("decode", model.decode(eps), {"z": eps, "u": u}),
    ):
        got = engine.run(operation, {name: t.numpy() for name, t in inputs.items()})
        assert near(got["mean"], model.likelihood.mean(params))
        wanted = model.likelihood.draw(params, u).numpy()
        assert (got["draw"] != wanted).mean() < 2e-3


@pytest.mark.parametrize("n", [1, 7, 64])
@torch.no_grad()
def test_latents_and_scores_come_out_as_torch_makes_them(exported, n):
    model, engine = exported.model, exported.engine
    generator = torch.Generator().manual_seed(n)
    image = pixels(model.config, n, seed=n)
    x = model.likelihood.from_pixels(torch.from_numpy(image))
    eps = torch.randn(n, model.layout.dim, generator=generator)
    got = engine.run("encode", {"image": image, "eps": eps.numpy()})
    inference = model.infer(model.bottom_up(x), eps)
    assert near(got["z"], inference.z)
    assert near(got["prior_eps"], inference.prior_eps, atol=1e-3)

    owner = torch.randint(n, (29,), generator=generator)  # neither sorted nor even
    eps = torch.randn(29, model.layout.dim, generator=generator)
    got = engine.run("score", {"image": image, "owner": owner.numpy(), "eps": eps.numpy()})
    log_px_z, kl = model(x[owner], eps)
    assert near(got["log_px_z"], log_px_z, rtol=1e-5, atol=1e-2)
    assert near(got["kl"], model.group_kl(kl), rtol=1e-4, atol=1e-2)
    assert near(got["log_weight"], log_px_z - kl.sum(1), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_rows_have_the_same_bytes_in_every_batch(exported, operation):
    engine = exported.engine
    assert engine.invariant
    rng = np.random.default_rng(3)
    rows, dim = 32, exported.model.layout.dim
    whole = {
        "eps": rng.standard_normal((rows, dim), np.float32),
        "z": rng.standard_normal((rows, dim), np.float32),
        "temperature": rng.random((rows, len(exported.model.layout.groups)), np.float32),
        "u": rng.random((rows, exported.model.likelihood.uniforms), np.float32),
        "image": pixels(exported.model.config, rows),
    }
    names = [t.name for t in exported.bundle.manifest.graphs[operation].inputs]

    def part(start, count):
        arrays = {name: whole[name][start : start + count] for name in names if name != "owner"}
        return arrays | ({"owner": np.arange(count)} if "owner" in names else {})

    expected = engine.run(operation, part(0, rows))
    for start, count in [(0, 1), (31, 1), (3, 2), (8, 3), (5, 7), (1, 15), (2, 29)]:
        for name, output in engine.run(operation, part(start, count)).items():
            assert output.tobytes() == expected[name][start : start + count].tobytes(), name


def test_maps_of_sixteen_by_sixteen_need_no_padding(exported):
    assert (exported.bundle.manifest.row_block == 1) == (exported.model.config != OTHER)


def test_the_manifest_says_what_it_is(exported):
    manifest, model = exported.bundle.manifest, exported.model
    groups = [(g.name, g.channels, g.height, g.width) for g in manifest.latent.groups]
    assert groups == [(g.name, g.channels, g.height, g.width) for g in model.layout.groups]
    assert groups[0][0] == f"z{model.config.depth}"
    assert manifest.kl_groups == model.layout.names
    assert manifest.likelihood.kind == model.config.likelihood
    gains = sum(p.numel() for name, p in model.named_parameters() if name.endswith(".g"))
    assert manifest.parameters == sum(p.numel() for p in model.parameters()) - gains
    card = (exported.bundle.path / "MODEL_CARD.md").read_text()
    assert f"`z{model.config.depth}`" in card


def test_graphs_hold_only_what_they_need(exported):
    names = {op: {t.name for t in exported.proto(op).graph.initializer} for op in OPERATIONS}
    for operation in ("sample", "decode"):
        used = " ".join(names[operation])
        assert not [word for word in ("stem", "up.", "posterior") if word in used]
    assert "prior" not in " ".join(names["decode"])
    assert "head" not in " ".join(names["encode"])
    for operation in OPERATIONS:
        kinds = [node.op_type for node in exported.proto(operation).graph.node]
        assert not {"Transpose", "Pad", "RandomNormal", "RandomUniform"} & set(kinds)
        assert kinds.count("Cast") <= (4 if "mixture" in exported.model.config.likelihood else 2)


def conv_weights(proto):
    """Numbers in the kernels of all convolutions, transposed ones too."""
    kernels = {n.input[1] for n in proto.graph.node if n.op_type.startswith("Conv")}
    return sum(int(np.prod(t.dims)) for t in proto.graph.initializer if t.name in kernels)


def sampling_weights(config):
    """9 h (2 z + h) of the prior and 9 (z + h) h of the residual in every layer; the head.

    Of the top layer only what reads its z: all else there is a constant.
    """
    h, z = config.channels, config.z_channels
    layers = (config.depth - 1) * 9 * (h * (2 * z + h) + (z + h) * h) + 9 * z * h
    return layers + 25 * config.image_shape[0] * h


def test_sampling_takes_the_priors_weights_alone(ladder):
    proto = onnx.load(ladder.bundle.path / "cpu" / "sample.onnx", load_external_data=False)
    assert conv_weights(proto) == sampling_weights(ladder.model.config)


@pytest.mark.slow
def test_the_papers_model_samples_with_about_twelve_million_weights():
    config = preset("cifar10-paper")
    modules = graph_modules(build_model(config).fold())
    built = build_graphs({"sample": modules["sample"]})
    weights = conv_weights(onnx.ModelProto.FromString(built.cpu["sample"]))
    assert weights == sampling_weights(config)
    assert 11_000_000 < weights < 12_500_000
    assert len(built.weights) < 4 * 12_500_000
    assert built.row_block == 1
