"""The ladder: shapes, gradients, contract and initialisation of every variant."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model import build_model
from model.config import ConvIafPosterior, DiagonalPosterior, ResnetVaeConfig, preset
from model.layers import WeightNormLayer, data_dependent_init
from model.objective import free_bits_objective
from model.resnet_vae import ResnetVae

COLOUR = ResnetVaeConfig(image_shape=(3, 12, 8), channels=6, z_channels=2, levels=(2, 1))
GREY = replace(COLOUR, image_shape=(1, 14, 10), likelihood="bernoulli")
CONFIGS = {
    "iaf": COLOUR,
    "iaf, bottom-up": replace(COLOUR, inference="bottom_up"),
    "diagonal": replace(COLOUR, posterior=DiagonalPosterior()),
    "diagonal, bottom-up": replace(COLOUR, posterior=DiagonalPosterior(), inference="bottom_up"),
    "gated": replace(COLOUR, posterior=ConvIafPosterior(update="gated", hidden_layers=1)),
    "gated, bottom-up": replace(
        COLOUR, posterior=ConvIafPosterior(update="gated"), inference="bottom_up"
    ),
    "location": replace(COLOUR, posterior=ConvIafPosterior(update="location")),
    "location, linear, bottom-up": replace(
        COLOUR,
        posterior=ConvIafPosterior(update="location", hidden_layers=0),
        inference="bottom_up",
    ),
    "linear in z": replace(COLOUR, posterior=ConvIafPosterior(hidden_layers=0)),
    "two steps": replace(COLOUR, posterior=ConvIafPosterior(steps=2)),
    "two steps, bottom-up": replace(
        COLOUR, posterior=ConvIafPosterior(steps=2), inference="bottom_up"
    ),
    "two steps in one order": replace(COLOUR, posterior=ConvIafPosterior(steps=2, reverse=False)),
    "a scale for each colour": replace(COLOUR, scale="channel"),
    "a scale for each pixel": replace(COLOUR, scale="pixel"),
    "mixture": replace(COLOUR, likelihood="logistic_mixture", mixtures=3),
    "mixture, grey": replace(GREY, likelihood="logistic_mixture", mixtures=2),
    "binary": GREY,
    "binary, bottom-up": replace(GREY, inference="bottom_up"),
    "three levels, odd sizes": replace(GREY, image_shape=(1, 13, 11), levels=(1, 2, 1)),
    "pixels shuffled": replace(COLOUR, head="shuffle", scale="pixel"),
    "pixels shuffled, odd sizes": replace(GREY, image_shape=(1, 13, 11), head="shuffle"),
    "one layer": replace(COLOUR, levels=(1,)),
    "one layer, bottom-up": replace(COLOUR, levels=(1,), inference="bottom_up"),
    "gains as logarithms": replace(COLOUR, gain="exp"),
    "gains as in the authors' code": replace(COLOUR, gain="exp_third"),
}


def images(config: ResnetVaeConfig, rows: int) -> Tensor:
    """Smooth pictures of many brightnesses, uint8: what an encoder can say something about."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(rows, config.image_shape[0], 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, config.image_shape[1:], mode="bilinear")
    noise = torch.rand(rows, *config.image_shape, generator=generator)
    return (240 * smooth + 15 * noise).to(torch.uint8)


def prepared(config: ResnetVaeConfig, rows: int = 8) -> tuple[ResnetVae, Tensor, Tensor]:
    torch.manual_seed(0)
    model = build_model(config)
    x = model.likelihood.from_pixels(images(config, rows))
    eps = torch.randn(rows, model.layout.dim)
    with torch.no_grad(), data_dependent_init(model):
        model(x, eps)
    return model, x, eps


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_a_gradient(name: str) -> None:
    model, x, eps = prepared(CONFIGS[name])
    terms = model.elbo_terms(x, model.bottom_up(x), eps)
    (-free_bits_objective(terms, 0.0)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert [n for n, p in model.named_parameters() if not torch.isfinite(p.grad).all()] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_are_the_contracts(name: str) -> None:
    config = CONFIGS[name]
    model, x, eps = prepared(config, rows=3)
    inference = model.infer(model.bottom_up(x), eps)
    groups = len(model.layout.groups)
    assert groups == config.depth
    assert model.layout.names == tuple(f"z{layer}" for layer in range(groups, 0, -1))
    assert inference.z.shape == inference.prior_eps.shape == (3, model.layout.dim)
    split = config.posterior == DiagonalPosterior() or name not in (
        "two steps",
        "two steps, bottom-up",
    )
    assert inference.kl.shape == (3, groups * (config.z_channels if split else 1))
    reduced = model.group_kl(inference.kl)
    assert reduced.shape == (3, len(model.kl_groups))
    torch.testing.assert_close(reduced.sum(1), inference.kl.sum(1))
    assert all(len(feature) == 3 for feature in model.bottom_up(x))
    mean = model.likelihood.mean(inference.params)
    assert mean.shape == (3, *config.image_shape)
    assert mean.min() >= 0
    assert mean.max() <= 1
    draw = model.likelihood.draw(inference.params, torch.rand(3, model.likelihood.uniforms))
    assert draw.shape == (3, *config.image_shape)
    assert draw.dtype == torch.uint8


@pytest.mark.parametrize("name", CONFIGS)
def test_generate_at_prior_eps_equals_decode_at_z(name: str) -> None:
    model, x, eps = prepared(CONFIGS[name])
    inference = model.infer(model.bottom_up(x), eps)
    ones = torch.ones(len(x), len(model.layout.groups))
    decoded = model.decode(inference.z)
    torch.testing.assert_close(model.generate(inference.prior_eps, ones), decoded)
    torch.testing.assert_close(inference.params, decoded)


@pytest.mark.parametrize(
    "name",
    ["iaf", "two steps", "diagonal", "mixture", "iaf, bottom-up", "a scale for each pixel"],
)
def test_scores_of_the_strangest_images_are_numbers(name: str) -> None:
    """Where a network answers with numbers that are far beyond those of training."""
    model, x, eps = prepared(CONFIGS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 6
        log_px_z, kl = model(x, eps)
    assert kl.max() > 1e6
    assert torch.isfinite(log_px_z - kl.sum(dim=1)).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_folding_changes_no_number(name: str) -> None:
    model, x, eps = prepared(CONFIGS[name])
    folded = model.fold()
    assert not any(isinstance(m, WeightNormLayer) for m in folded.modules())
    assert any(isinstance(m, WeightNormLayer) for m in model.modules())
    for copy_of in (folded, folded.fold(), model.fold()):  # once, again, and the model is unhurt
        for before, after in zip(model(x, eps), copy_of(x, eps), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-4)
    warmth = torch.rand(len(x), len(model.layout.groups))
    torch.testing.assert_close(folded.generate(eps, warmth), model.generate(eps, warmth))
    torch.testing.assert_close(folded.decode(eps), model.decode(eps))


@pytest.mark.parametrize("group", range(3))
def test_a_cold_group_takes_its_prior_mean(group: int) -> None:
    """T scales one group's noise and leaves the others', also where a colder one lies above."""
    model, _, eps = prepared(COLOUR)
    warmth = torch.tensor([[1.0, 0.5, 2.0]]).repeat(len(eps), 1)
    warmth[:, group] = 0
    sizes = [g.size for g in model.layout.groups]
    by_hand = torch.cat(
        [t * e for t, e in zip([1.0, 0.5, 2.0], eps.split(sizes, 1), strict=True)], 1
    )
    start = sum(sizes[:group])
    by_hand[:, start : start + sizes[group]] = 0
    ones = torch.ones_like(warmth)
    torch.testing.assert_close(model.generate(eps, warmth), model.generate(by_hand, ones))


@pytest.mark.parametrize("inference", ["bidirectional", "bottom_up"])
def test_rows_of_one_image_share_its_features(inference: str) -> None:
    """What importance sampling relies on: features repeated are images repeated."""
    model, x, _ = prepared(replace(COLOUR, inference=inference))
    owner = torch.tensor([2, 0, 2, 5, 2])
    eps = torch.randn(5, model.layout.dim)
    rows = tuple(feature[owner] for feature in model.bottom_up(x))
    terms = model.elbo_terms(x[owner], rows, eps)
    log_px_z, kl = model(x[owner], eps)
    torch.testing.assert_close(terms.log_px_z, log_px_z)
    torch.testing.assert_close(terms.kl, kl)


def test_a_shuffled_head_gives_each_map_four_pixels() -> None:
    """Pixel (2i + a, 2j + b) is number 2a + b of the products of the maps at (i, j)."""
    model, _, _ = prepared(CONFIGS["pixels shuffled, odd sizes"])
    h = torch.randn(2, 6, 7, 6)
    got = model.head(h)
    conv = model.head.conv.conv
    products = torch.einsum("oc,nchw->nohw", conv.weight()[:, :, 0, 0], torch.nn.functional.elu(h))
    for row in range(13):
        for column in range(11):
            k = 2 * (row % 2) + column % 2
            wanted = products[:, k, row // 2, column // 2] + conv.bias[k]
            torch.testing.assert_close(got[:, 0, row, column], wanted)


def test_sizes_of_the_levels() -> None:
    model = build_model(CONFIGS["three levels, odd sizes"])
    assert [(g.height, g.width) for g in model.layout.groups] == [(2, 2), (4, 3), (4, 3), (7, 6)]


@pytest.mark.parametrize("name", ["iaf", "iaf, bottom-up", "mixture", "binary"])
def test_a_fresh_model_starts_where_it_can_learn(name: str) -> None:
    """Near the prior, with sensible gains, and where a few steps lead below 8 bits/dim."""
    model, x, eps = prepared(CONFIGS[name], rows=64)
    log_px_z, kl = model(x, eps)
    assert kl.sum(1).mean() < 0.2 * model.layout.dim
    bits = -log_px_z.mean() / (model.dims * math.log(2))
    assert bits < {"binary": 1.6, "mixture": 9}.get(name, 15)
    for layer in model.modules():
        if isinstance(layer, WeightNormLayer):
            assert torch.isfinite(layer.g).all()
            assert layer.g.abs().max() < 30


def test_initialisation_survives_the_compiler() -> None:
    """It runs in eager mode, and the compiled model computes the same from the same numbers."""
    model, x, eps = prepared(replace(COLOUR, levels=(1, 1)))
    before = {name: p.clone() for name, p in model.named_parameters()}
    compiled = torch.compile(model, backend="eager", dynamic=False)
    log_px_z, kl = compiled(x, eps)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    wanted_log_px_z, wanted_kl = model(x, eps)
    torch.testing.assert_close(log_px_z, wanted_log_px_z)
    torch.testing.assert_close(kl, wanted_kl, rtol=1e-4, atol=1e-4)
    (kl.sum() - log_px_z.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("inference", ["bidirectional", "bottom_up"])
def test_bfloat16_keeps_latents_and_densities_float32(inference: str) -> None:
    model, x, eps = prepared(replace(COLOUR, inference=inference), rows=32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.bottom_up(x)
        result = model.infer(features, eps)
        log_px_z, kl = model(x, eps)
        stem = model._stem_maps(x)
    assert stem.dtype == torch.float32
    # Not numbers of eight bits in a wider type: half a level of a pixel needs more.
    assert (result.params != result.params.bfloat16().float()).float().mean() > 0.5
    assert {t.dtype for t in (result.z, result.kl, result.params, log_px_z, kl)} == {torch.float32}
    exact, exact_kl = model(x, eps)
    assert (log_px_z / exact - 1).abs().max() < 0.02
    assert (kl.sum(1) - exact_kl.sum(1)).abs().max() < 0.05 * model.layout.dim**0.5


def test_channels_last_changes_nothing() -> None:
    model, x, eps = prepared(COLOUR)
    wanted = model(x, eps)
    model = model.to(memory_format=torch.channels_last)
    got = model(x.contiguous(memory_format=torch.channels_last), eps)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_the_papers_preset_has_the_references_weights() -> None:
    """9 (7 h^2 + 10 z h) a layer and two 5x5 ends, less what the top layer would not use."""
    model = build_model(preset("cifar10-paper"))
    weights = sum(p.numel() for name, p in model.named_parameters() if name.endswith(".v"))
    h, z = 160, 32
    reference = 20 * 9 * (7 * h * h + 10 * z * h) + 2 * 25 * 3 * h
    assert reference == 41_496_000
    assert weights == reference - 2 * 9 * h * h  # up_conv3 and its input
    assert model.layout.dim == 20 * 32 * 16 * 16


def test_presets_are_of_the_sizes_they_promise() -> None:
    medium = build_model(preset("cifar10-medium"))
    assert 5_000_000 < sum(p.numel() for p in medium.parameters()) <= 10_000_000
    for name in ("cifar10-small", "mnist-ladder"):
        assert sum(p.numel() for p in build_model(preset(name)).parameters()) < 1_000_000
