"""The prior's flow: its density against Jacobians, integrals and the closed forms it must have."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from model.config import ConfigError, ConvVaeConfig, CouplingPrior, config_from_dict
from model.densities import standard_normal_log_prob
from model.flows.prior import CouplingFlow, StandardNormal, build_prior, halves
from model.layers import fold_weight_norm

SHAPES = {
    "even": (6, CouplingPrior(couplings=3, hidden=(16, 13))),
    "odd": (5, CouplingPrior(couplings=4, hidden=(11,))),
    "two": (2, CouplingPrior(couplings=5, hidden=(8, 8))),
}


def awake(name: str, size: float = 0.3) -> CouplingFlow:
    """A flow in float64 all of whose parameters matter."""
    torch.manual_seed(0)
    dim, config = SHAPES[name]
    flow = build_prior(config, dim)
    for parameter in flow.parameters():
        parameter.data.add_(size * torch.randn_like(parameter))
    return flow.double()


def latents(name: str, rows: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, SHAPES[name][0], generator=generator, dtype=torch.float64)


def jacobians(function, at: Tensor) -> Tensor:
    full = torch.autograd.functional.jacobian(function, at)
    return torch.stack([full[i, :, i] for i in range(len(at))])


@pytest.mark.parametrize("name", SHAPES)
def test_log_det_equals_the_jacobians(name: str) -> None:
    flow, z = awake(name), latents(name)
    _, log_det = flow.inverse(z)
    wanted = torch.linalg.slogdet(jacobians(lambda t: flow.inverse(t)[0], z)).logabsdet
    assert log_det.abs().min() > 0.01  # there is something to compare
    torch.testing.assert_close(log_det[:, 0], wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SHAPES)
def test_forward_is_the_inverse_of_inverse_and_so_are_their_jacobians(name: str) -> None:
    flow, z = awake(name), latents(name)
    eps, _ = flow.inverse(z)
    torch.testing.assert_close(flow(eps), z, rtol=1e-9, atol=1e-9)
    there = jacobians(lambda t: flow.inverse(t)[0], z)
    back = jacobians(flow, eps)
    torch.testing.assert_close(back @ there, torch.eye(z.shape[1]).double().expand_as(there))


@torch.no_grad()
def test_the_density_integrates_to_one() -> None:
    flow = awake("two", 0.2)
    axis = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    eps, log_det = flow.inverse(grid)
    log_p = standard_normal_log_prob(eps).sum(1) + log_det[:, 0]
    mass = log_p.exp() * (24 / 1200) ** 2
    assert mass.sum() == pytest.approx(1, abs=1e-4)
    normal = standard_normal_log_prob(grid).sum(1)
    assert (mass * (log_p - normal)).sum() > 0.5  # nats: it is no N(0, I)


@torch.no_grad()
def test_draws_have_the_density() -> None:
    """E[g(z) / p(z)] over draws z = f(eps) is g's integral, 1, for a narrow Gaussian g."""
    flow = awake("two", 0.2)
    eps = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    z = flow(eps)
    found, log_det = flow.inverse(z)
    log_p = standard_normal_log_prob(found).sum(1) + log_det[:, 0]
    centre, scale = z[:1000].mean(0), 0.5 * z[:1000].std(0)
    log_g = (standard_normal_log_prob((z - centre) / scale) - scale.log()).sum(1)
    ratio = (log_g - log_p).exp()
    error = ratio.std() / len(ratio) ** 0.5
    assert error < 0.02
    assert (ratio.mean() - 1).abs() < 4 * error


@pytest.mark.parametrize("name", SHAPES)
def test_a_flow_of_zeros_is_the_standard_normal(name: str) -> None:
    flow, z = awake(name), latents(name)
    for parameter in flow.parameters():
        parameter.data.zero_()
    eps, log_det = flow.inverse(z)
    assert torch.equal(eps, z)
    assert torch.equal(flow(z), z)
    assert not log_det.any()
    standard, nothing = StandardNormal().inverse(z)
    assert torch.equal(standard, z)
    assert not nothing.any()


def test_a_fresh_flow_is_close_to_the_standard_normal() -> None:
    torch.manual_seed(0)
    flow = build_prior(CouplingPrior(), 32)
    z = torch.randn(500, 32)
    eps, log_det = flow.inverse(z)
    log_p = standard_normal_log_prob(eps).sum(1) + log_det[:, 0]
    assert (log_p - standard_normal_log_prob(z).sum(1)).abs().max() < 1.0


@pytest.mark.parametrize("dim", [2, 5, 32])
def test_every_two_couplings_move_every_element(dim: int) -> None:
    kept = halves(dim, 6)
    assert [int(half.sum()) for half in kept[::2]] == [dim // 2] * 3
    assert all(torch.equal(a, ~b) for a, b in zip(kept[::2], kept[1::2], strict=True))
    assert dim < 5 or len({tuple(half.tolist()) for half in kept}) > 2
    assert all(torch.equal(a, b) for a, b in zip(kept, halves(dim, 6), strict=True))


def test_a_coupling_keeps_what_it_keeps_and_looks_at_nothing_else() -> None:
    coupling = awake("even").couplings[0]
    z, kept = latents("even"), coupling.kept
    jacobian = jacobians(lambda t: coupling(t)[0], z)
    off = jacobian - torch.diag_embed(jacobian.diagonal(dim1=1, dim2=2))
    assert not off[:, kept].any()  # kept elements depend on themselves alone
    assert not off[:, :, ~kept].any()  # nothing depends on moved ones
    assert off[:, ~kept][:, :, kept].all()


@pytest.mark.parametrize("name", SHAPES)
def test_folding_changes_no_number_and_leaves_no_mask(name: str) -> None:
    flow, z = awake(name), latents(name)
    folded = copy.deepcopy(flow)
    fold_weight_norm(folded)
    assert not any("kept" in n for n, _ in folded.named_buffers())
    torch.testing.assert_close(folded.inverse(z), flow.inverse(z))
    torch.testing.assert_close(folded(z), flow(z))


def test_maps_are_taken_as_vectors() -> None:
    flow, z = awake("even"), latents("even")
    maps = z.view(4, 3, 2, 1)
    torch.testing.assert_close(flow(maps), flow(z).view_as(maps))
    torch.testing.assert_close(flow.inverse(maps)[0], flow.inverse(z)[0].view_as(maps))


def test_bfloat16_networks_leave_the_density_in_float32() -> None:
    flow, z = awake("even").float(), latents("even", 64).float()
    exact, exact_log_det = flow.inverse(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eps, log_det = flow.inverse(z)
    assert eps.dtype == log_det.dtype == torch.float32
    assert (log_det - exact_log_det).abs().max() < 0.1
    assert (eps - exact).abs().max() < 0.2


def test_a_configuration_without_a_prior_is_the_standard_normal() -> None:
    config = ConvVaeConfig(prior=CouplingPrior(couplings=2, hidden=(7, 7)))
    assert config_from_dict(config.to_dict()) == config
    values = ConvVaeConfig().to_dict()
    del values["prior"]
    assert config_from_dict(values) == ConvVaeConfig()


@pytest.mark.parametrize(
    ("prior", "named"),
    [
        ({"kind": "flow"}, "prior.kind must be one of standard_normal, coupling"),
        ({"kind": "coupling", "couplings": 0}, "prior.couplings"),
        ({"kind": "coupling", "hidden": []}, "prior.hidden"),
        ({"kind": "coupling", "width": 3}, "no field width"),
    ],
)
def test_what_is_wrong_is_named(prior: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config_from_dict({**ConvVaeConfig().to_dict(), "prior": prior})


def test_one_latent_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 latents"):
        build_prior(CouplingPrior(), 1)
    assert math.isclose(float(StandardNormal().inverse(torch.ones(1, 1))[1]), 0)
