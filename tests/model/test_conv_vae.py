"""The paper's MNIST model: its shapes, its contract, its gradients, its densities."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from model import build_model
from model.config import ConvVaeConfig, DiagonalPosterior, IafPosterior, preset
from model.conv_vae import ConvVae
from model.densities import gaussian_log_prob, standard_normal_log_prob
from model.layers import WeightNormLayer, data_dependent_init
from model.objective import free_bits_objective

SMALL = ConvVaeConfig(
    image_shape=(1, 11, 8),
    channels=(4, 6),
    hidden=20,
    latent_dim=5,
    posterior=IafPosterior(steps=2, hidden=(12, 12)),
)
CONFIGS = {
    "bernoulli": SMALL,
    "diagonal": replace(SMALL, posterior=DiagonalPosterior()),
    "logistic-rgb": replace(SMALL, image_shape=(3, 9, 16), likelihood="discretized_logistic"),
    "one-block": replace(SMALL, channels=(4,)),
}


def prepared(config: ConvVaeConfig, rows: int = 16) -> tuple[ConvVae, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = build_model(config)
    pixels = torch.randint(0, 256, (rows, *config.image_shape), dtype=torch.uint8)
    x = model.likelihood.from_pixels(pixels)
    eps = torch.randn(rows, config.latent_dim)
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
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_every_posterior_trains(flat_case) -> None:
    """A finite bound, a gradient for every parameter by name, and a few steps that improve."""
    model, x, eps = prepared(replace(SMALL, posterior=flat_case.config))
    optimizer = torch.optim.Adamax(model.parameters(), lr=0.005)
    elbos = []
    for _ in range(10):
        elbo = model.elbo_terms(x, model.bottom_up(x), eps).elbo
        assert torch.isfinite(elbo).all()
        optimizer.zero_grad()
        (-elbo.mean()).backward()
        without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert without == []
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        elbos.append(float(elbo.detach().mean()))
    assert elbos[-1] > elbos[0] + 2.0, elbos


def test_what_depends_on_the_image_alone_is_computed_before_the_draw(flat_case) -> None:
    """Features computed once serve every draw, and no layer of the flow runs in both places."""
    model, x, _ = prepared(replace(SMALL, posterior=flat_case.config), rows=3)
    ran: list[str] = []
    for name, layer in model.flow.named_modules():
        if isinstance(layer, WeightNormLayer):
            layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    features = model.bottom_up(x)
    once_an_image = set(ran)
    assert all(len(feature) == len(x) for feature in features)
    ran.clear()
    owner = torch.tensor([2, 2, 0, 1, 2])
    eps = torch.randn(len(owner), model.layout.dim)
    once = model.infer(tuple(feature[owner] for feature in features), eps)
    assert once_an_image.isdisjoint(ran)
    layers = {n for n, m in model.flow.named_modules() if isinstance(m, WeightNormLayer)}
    assert once_an_image | set(ran) == layers
    assert {name for name in layers if name.endswith("context")} <= once_an_image

    again = model.infer(model.bottom_up(x[owner]), eps)
    torch.testing.assert_close(once.z, again.z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(once.kl, again.kl, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_are_the_contracts(name: str) -> None:
    config = CONFIGS[name]
    model, x, eps = prepared(config, rows=3)
    inference = model.infer(model.bottom_up(x), eps)
    assert inference.z.shape == inference.prior_eps.shape == (3, model.layout.dim)
    assert model.group_kl(inference.kl).shape == (3, len(model.kl_groups))
    mean = model.likelihood.mean(inference.params)
    assert mean.shape == (3, *config.image_shape)
    assert mean.min() >= 0
    assert mean.max() <= 1
    draw = model.likelihood.draw(inference.params, torch.rand(3, model.likelihood.uniforms))
    assert draw.shape == (3, *config.image_shape)


@pytest.mark.parametrize("name", CONFIGS)
def test_generate_at_prior_eps_equals_decode_at_z(name: str) -> None:
    model, x, eps = prepared(CONFIGS[name])
    inference = model.infer(model.bottom_up(x), eps)
    ones = torch.ones(len(x), 1)
    torch.testing.assert_close(model.generate(inference.prior_eps, ones), model.decode(inference.z))


def test_temperature_scales_the_prior() -> None:
    model, _, eps = prepared(SMALL)
    cold = model.generate(eps, torch.zeros(len(eps), 1))
    torch.testing.assert_close(cold, model.decode(torch.zeros_like(eps)))
    torch.testing.assert_close(
        model.generate(eps, torch.full((len(eps), 1), 0.5)), model.decode(eps / 2)
    )


def test_kl_is_log_q_minus_log_p_found_by_inverting_the_flow(flat_case) -> None:
    """log q(z|x) is evaluated at the drawn z by the inverse and the Jacobian."""
    model, x, eps = prepared(replace(SMALL, posterior=flat_case.config), rows=4)
    model, x, eps = model.double(), x.double(), eps.double()
    features = model.bottom_up(x)
    inference = model.infer(features, eps)
    mean, log_scale, *conditions = features
    z_0 = model.flow.inverse(inference.z, tuple(conditions))
    jacobian = torch.autograd.functional.jacobian(lambda z: model.flow(z, conditions)[0], z_0)
    log_dets = torch.stack(
        [torch.linalg.slogdet(jacobian[i, :, i]).logabsdet for i in range(len(x))]
    )
    log_q = gaussian_log_prob(z_0, mean, log_scale).sum(1) - log_dets
    log_p = standard_normal_log_prob(inference.z).sum(1)
    torch.testing.assert_close(inference.kl[:, 0], log_q - log_p, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CONFIGS)
def test_folding_changes_no_number(name: str) -> None:
    model, x, eps = prepared(CONFIGS[name])
    folded = model.fold()
    assert not any(isinstance(m, WeightNormLayer) for m in folded.modules())
    assert any(isinstance(m, WeightNormLayer) for m in model.modules())
    for before, after in zip(model(x, eps), folded(x, eps), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_of_the_strangest_images_are_numbers(name: str) -> None:
    """Where a network answers with numbers that are far beyond those of training."""
    model, x, eps = prepared(CONFIGS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 6
        log_px_z, kl = model(x, eps)
    assert kl.max() > 1e4
    assert torch.isfinite(log_px_z - kl.sum(dim=1)).all()


def test_bfloat16_keeps_densities_float32() -> None:
    model, x, eps = prepared(SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_px_z, kl = model(x, eps)
        mean, log_scale, *_ = model.bottom_up(x)
    found = {t.dtype for t in (log_px_z, kl, mean, log_scale)}
    assert found == {torch.float32}


def test_the_papers_preset() -> None:
    model = build_model(preset("mnist"))
    strides = [block.first.stride for block in model.encoder.blocks]
    assert strides == [2, 1, 2, 1, 2]
    assert [len(block.second.g) for block in model.encoder.blocks] == [16, 16, 32, 32, 32]
    assert len(model.encoder.hidden.g) == 450
    assert model.layout.dim == 32
    assert [tuple(len(layer.g) for layer in s.made.hidden) for s in model.flow.steps] == [
        (320, 320),
        (320, 320),
    ]
    assert 1.0e6 < sum(p.numel() for p in model.parameters()) < 1.3e6


def test_the_order_is_reversed_between_steps_and_the_gate_starts_open() -> None:
    model = build_model(preset("mnist"))
    first, second = (step.made.m.mask for step in model.flow.steps)
    assert not first[0].eq(first[-1]).all()
    torch.testing.assert_close(first, second.flip(0))
    assert all(1 <= s <= 2 for step in model.flow.steps for s in step.made.s.bias)


def test_the_model_learns_one_image() -> None:
    model, x, _ = prepared(SMALL)
    x = x[:1].repeat(16, 1, 1, 1)
    before = copy.deepcopy(model)
    optimizer = torch.optim.Adamax(model.parameters(), lr=0.01)
    for _ in range(150):
        terms = model.elbo_terms(x, model.bottom_up(x), torch.randn(16, 5))
        optimizer.zero_grad()
        (-terms.elbo.mean()).backward()
        optimizer.step()
    eps = torch.randn(16, 5)
    start = before.elbo_terms(x, before.bottom_up(x), eps).elbo.mean()
    end = model.elbo_terms(x, model.bottom_up(x), eps).elbo.mean()
    assert start < -40
    assert end > -5
