"""Models whose prior is a flow: the bound, editing, temperature, and rows that share an image."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from model import build_model
from model.config import (
    ConvVaeConfig,
    CouplingPrior,
    IafPosterior,
    ModelConfig,
    ResnetVaeConfig,
)
from model.contract import DensityModel
from model.densities import standard_normal_log_prob
from model.flows.prior import StandardNormal
from model.layers import data_dependent_init
from model.objective import free_bits_objective

FLOW = CouplingPrior(couplings=3, hidden=(9, 7))
CONV = ConvVaeConfig(
    image_shape=(1, 11, 8),
    channels=(4, 6),
    hidden=20,
    latent_dim=5,
    posterior=IafPosterior(steps=2, hidden=(12, 12)),
    prior=FLOW,
)
LADDER = ResnetVaeConfig(image_shape=(1, 7, 6), channels=4, z_channels=2, levels=(2, 1), prior=FLOW)
CONFIGS: dict[str, ModelConfig] = {
    "conv": CONV,
    "ladder": LADDER,
    "ladder, bottom-up": replace(LADDER, inference="bottom_up"),
    "one layer": replace(LADDER, levels=(1,)),
}


def prepared(config: ModelConfig, rows: int = 4) -> tuple[DensityModel, Tensor, Tensor]:
    """A model in float64 with weights far from any special value."""
    torch.manual_seed(0)
    model = build_model(config)
    x = model.likelihood.from_pixels(
        torch.randint(0, 256, (rows, *config.image_shape), dtype=torch.uint8)
    )
    eps = torch.randn(rows, model.layout.dim)
    with torch.no_grad(), data_dependent_init(model):
        model(x, eps)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double(), x.double(), eps.double()


def top(model: DensityModel) -> int:
    return model.layout.groups[0].size


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_a_gradient(name: str) -> None:
    model, x, eps = prepared(CONFIGS[name])
    terms = model.elbo_terms(x, model.bottom_up(x), eps)
    (-free_bits_objective(terms, 0.0)).backward()
    assert any(n.startswith("prior.couplings.2.out") for n, _ in model.named_parameters())
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_the_kl_differs_from_the_gaussians_by_the_flows_density(name: str) -> None:
    """By the autograd Jacobian of f^-1, at latents that the model with a Gaussian prior tells."""
    model, x, eps = prepared(CONFIGS[name])
    flow = model.prior
    found = model.infer(model.bottom_up(x), eps)
    model.prior = StandardNormal()
    plain = model.infer(model.bottom_up(x), eps)
    torch.testing.assert_close(found.z, plain.z)
    data = plain.prior_eps[:, : top(model)]
    jacobian = torch.autograd.functional.jacobian(lambda t: flow.inverse(t)[0], data)
    log_det = torch.stack(
        [torch.linalg.slogdet(jacobian[i, :, i]).logabsdet for i in range(len(x))]
    )
    log_p = standard_normal_log_prob(flow.inverse(data)[0]).sum(1) + log_det
    gain = log_p - standard_normal_log_prob(data).sum(1)
    wanted = model.group_kl(plain.kl)
    model.prior = flow
    got = model.group_kl(found.kl)
    assert gain.abs().min() > 1e-3
    torch.testing.assert_close(got[:, 0], wanted[:, 0] - gain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got[:, 1:], wanted[:, 1:])
    torch.testing.assert_close(found.prior_eps[:, top(model) :], plain.prior_eps[:, top(model) :])


@pytest.mark.parametrize("name", CONFIGS)
def test_generate_at_prior_eps_equals_decode_at_z(name: str) -> None:
    model, x, eps = prepared(CONFIGS[name])
    inference = model.infer(model.bottom_up(x), eps)
    ones = torch.ones(len(x), len(model.layout.groups)).double()
    decoded = model.decode(inference.z)
    torch.testing.assert_close(model.generate(inference.prior_eps, ones), decoded)
    torch.testing.assert_close(inference.params, decoded)


@pytest.mark.parametrize("name", CONFIGS)
def test_temperature_scales_the_noise_inside_the_flow(name: str) -> None:
    model, _, eps = prepared(CONFIGS[name])
    groups = model.layout.groups
    warmth = torch.rand(len(eps), len(groups)).double()
    sizes = [group.size for group in groups]
    warm = torch.cat(
        [t * e for t, e in zip(warmth.split(1, 1), eps.split(sizes, 1), strict=True)], 1
    )
    torch.testing.assert_close(
        model.generate(eps, warmth), model.generate(warm, torch.ones_like(warmth))
    )


def test_a_warm_draw_is_the_flow_of_scaled_noise() -> None:
    model, _, eps = prepared(CONV)
    warmth = torch.full((len(eps), 1), 0.6, dtype=torch.float64)
    z = model.prior(0.6 * eps)
    assert (z - 0.6 * eps).abs().max() > 0.1
    torch.testing.assert_close(model.generate(eps, warmth), model.decode(z))


@pytest.mark.parametrize("name", CONFIGS)
def test_prior_data_is_what_the_flow_makes_of_prior_eps(name: str) -> None:
    model, x, eps = prepared(CONFIGS[name])
    features = model.bottom_up(x)
    data = model.prior_data(features, eps)
    made = model.prior(model.infer(features, eps).prior_eps[:, : top(model)])
    torch.testing.assert_close(data, made, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_folding_changes_no_number(name: str) -> None:
    model, x, eps = prepared(CONFIGS[name])
    for folded in (model.fold(), model.fold().fold()):
        torch.testing.assert_close(folded(x, eps), model(x, eps))
        warmth = torch.rand(len(x), len(model.layout.groups)).double()
        torch.testing.assert_close(folded.generate(eps, warmth), model.generate(eps, warmth))


@pytest.mark.parametrize("name", [*CONFIGS, "standard normal"])
def test_draws_of_an_image_share_its_features_and_count_each_for_itself(name: str) -> None:
    config = CONFIGS.get(name, replace(CONV, prior=ConvVaeConfig().prior))
    model, x, _ = prepared(config)
    eps = torch.randn(3, len(x), model.layout.dim).double()
    calls: list[int] = []
    bottom_up = model.bottom_up
    model.bottom_up = lambda x: calls.append(len(x)) or bottom_up(x)
    log_px_z, kl = model(x, eps)
    assert calls == [len(x)]
    assert log_px_z.shape == (3, len(x))
    for k in range(3):
        wanted_log_px_z, wanted_kl = model(x, eps[k])
        torch.testing.assert_close(log_px_z[k], wanted_log_px_z)
        torch.testing.assert_close(kl[k], wanted_kl)


TINY: dict[str, ModelConfig] = {
    "conv": ConvVaeConfig(
        image_shape=(1, 2, 2),
        channels=(3,),
        hidden=6,
        latent_dim=2,
        posterior=IafPosterior(steps=1, hidden=(6,)),
        prior=FLOW,
    ),
    "ladder": ResnetVaeConfig(
        image_shape=(1, 2, 2),
        likelihood="bernoulli",
        channels=4,
        z_channels=2,
        levels=(1,),
        prior=FLOW,
    ),
}


def broad(config: ModelConfig) -> tuple[DensityModel, Tensor]:
    """A model whose posterior is broader than its prior: weights of finite variance."""
    model, x, _ = prepared(config, rows=64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".g"):
                parameter.mul_(0.3)
        if isinstance(config, ConvVaeConfig):
            model.log_scale.bias.fill_(0.7)
            return model, x
        for layer in model.up.values():
            layer.parts.conv.bias[2:4] = 0.7  # the log-scales
        for layer in model.down.values():
            layer.parts.conv.bias[2:4] = 0
            layer.parts.conv.g[2:4] *= 0.1
    return model, x


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_importance_weights_average_to_the_marginal(name: str) -> None:
    """p(x) by quadrature over the prior's noise, through `generate`; the weights by `infer`."""
    model, x = broad(TINY[name])
    grid = torch.linspace(-7, 7, 141, dtype=torch.float64)
    eps = torch.cartesian_prod(grid, grid)
    params = model.generate(eps, torch.ones(len(eps), 1).double())
    log_prior = Normal(0.0, 1.0).log_prob(eps).sum(1) + 2 * math.log(14 / 140)
    samples = 20_000
    for row in x[:2]:
        many = row.expand(len(eps), *row.shape)
        exact = torch.logsumexp(log_prior + model.likelihood.log_prob(params, many), 0)
        log_px_z, kl = model(row.expand(samples, *row.shape), torch.randn(samples, 2).double())
        ratio = (log_px_z - kl.sum(1) - exact).exp()
        error = ratio.std() / samples**0.5
        assert error < 0.05
        assert (ratio.mean() - 1).abs() < 4 * error
