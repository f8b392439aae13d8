"""Each posterior's step against the equation it stands for and what that equation implies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.config import (
    ConfigError,
    CouplingPosterior,
    IafPosterior,
    LinearIafPosterior,
    PlanarPosterior,
)
from model.flows.flow import FlowChain, build_flow

DIM, CONTEXT, BATCH = 5, 7, 4


def awake(flow: FlowChain) -> FlowChain:
    generator = torch.Generator().manual_seed(1)
    for parameter in flow.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return flow.double()


def inputs(rows: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(rows, DIM, generator=generator, dtype=torch.float64)
    return z, torch.randn(rows, CONTEXT, generator=generator, dtype=torch.float64)


# Linear IAF (paper, Appendix A)


def test_linear_iaf_has_the_log_density_of_a_full_covariance_gaussian() -> None:
    """log q(z) from z_0's diagonal density equals torch's N(L mean, L diag(s^2) L') at z."""
    flow = awake(build_flow(LinearIafPosterior(), DIM, CONTEXT))
    z_0, h = inputs()
    mean, scale = torch.randn_like(z_0), torch.rand_like(z_0) + 0.5
    (strictly_upper,) = conditions = flow.condition(h)
    assert not strictly_upper.tril().any()
    z, log_det = flow(z_0, conditions)
    log_q = torch.distributions.Normal(mean, scale).log_prob(z_0).sum(dim=1) - log_det[:, 0]

    lower = strictly_upper.mT + torch.eye(DIM)
    covariance = lower @ torch.diag_embed(scale**2) @ lower.mT
    full = torch.distributions.MultivariateNormal(
        (lower @ mean[:, :, None])[:, :, 0], covariance_matrix=covariance
    )
    torch.testing.assert_close(log_q, full.log_prob(z))
    assert covariance[:, torch.ones(DIM, DIM).tril(-1).bool()].abs().min() > 1e-4


def test_linear_iaf_draws_have_that_covariance() -> None:
    flow = awake(build_flow(LinearIafPosterior(), DIM, CONTEXT))
    _, h = inputs(rows=1)
    rows = 40_000
    scale = torch.linspace(0.5, 2.0, DIM, dtype=torch.float64)
    eps = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (condition,) = flow.condition(h)
    with torch.no_grad():
        z, _ = flow(eps * scale, (condition.expand(rows, -1, -1),))
    lower = condition[0].T + torch.eye(DIM)
    wanted = lower @ torch.diag(scale**2) @ lower.T
    # The deviation of an empirical covariance: sqrt((c_ij^2 + c_ii c_jj) / n).
    error = torch.sqrt((wanted**2 + torch.outer(wanted.diag(), wanted.diag())) / rows)
    assert ((torch.cov(z.T) - wanted).abs() < 5 * error).all()


def test_an_unconditional_linear_made_is_such_a_gaussian_too() -> None:
    """A MADE without hidden layers is affine in z where its scale is constant."""
    flow = awake(build_flow(IafPosterior(steps=1, hidden=()), DIM, CONTEXT))
    flow.steps[0].made.s.g.data.zero_()
    z, h = inputs()
    conditions = flow.condition(h)
    (here, there) = (
        torch.autograd.functional.jacobian(lambda t: flow(t, conditions)[0].sum(dim=0), at)
        for at in (z, z + 3.0)
    )
    torch.testing.assert_close(here, there)


# Planar flow (Rezende & Mohamed 2015)


def test_planar_step_is_the_papers_equation() -> None:
    flow = awake(build_flow(PlanarPosterior(steps=1), DIM, CONTEXT))
    step = flow.steps[0]
    z, h = inputs()
    u, w, b = step.u(h), step.w(h), step.b(h)
    wu = (w * u).sum(dim=1, keepdim=True)
    m = 1e-3 + (1 - 1e-3) * torch.log1p(torch.exp(wu) * (math.e - 1)) - 1
    u_hat = u + (m - wu) * w / (w * w).sum(dim=1, keepdim=True)
    pre = (w * z).sum(dim=1, keepdim=True) + b
    psi = (1 - torch.tanh(pre) ** 2) * w
    z_next, log_det = flow(z, flow.condition(h))
    torch.testing.assert_close(z_next, z + u_hat * torch.tanh(pre))
    torch.testing.assert_close(log_det, torch.log((1 + (psi * u_hat).sum(1, keepdim=True)).abs()))


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
def test_planar_step_is_invertible_even_where_u_points_against_w(size: float) -> None:
    flow = build_flow(PlanarPosterior(steps=1), DIM, CONTEXT).double()
    step = flow.steps[0]
    step.u.v.data.copy_(-step.w.v.data)
    step.u.g.data.fill_(size)
    z, h = inputs(rows=200)
    condition = step.condition(h)
    u_hat, w = condition[:, :DIM], condition[:, DIM : 2 * DIM]
    assert ((w * u_hat).sum(dim=1) > -1).all()
    assert size > 0 or not u_hat.any()  # where u is 0, the step is the identity
    z_next, log_det = step(z, condition)
    assert torch.isfinite(log_det).all()
    torch.testing.assert_close(step.inverse(z_next, condition), z, rtol=1e-8, atol=1e-8)


def test_planar_survives_a_w_of_zero() -> None:
    flow = build_flow(PlanarPosterior(steps=1), DIM, CONTEXT)
    flow.steps[0].w.g.data.zero_()
    z, h = (t.float() for t in inputs())
    z_next, log_det = flow(z, flow.condition(h))
    assert torch.isfinite(z_next).all()
    torch.testing.assert_close(log_det, torch.zeros(BATCH, 1))
    log_det.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in flow.parameters())


# Coupling flows (Dinh et al. 2014, 2016)


@pytest.mark.parametrize("update", ["affine", "additive"])
def test_coupling_keeps_one_half_and_then_the_other(update: str) -> None:
    flow = awake(build_flow(CouplingPosterior(steps=2, hidden=(8,), update=update), DIM, CONTEXT))
    z, h = inputs()
    first, second = (
        step(z, condition)[0] != z
        for step, condition in zip(flow.steps, flow.condition(h), strict=True)
    )
    assert first.all(dim=0).tolist() == [False, False, True, True, True]
    assert second.any(dim=0).tolist() == [True, True, False, False, False]


def test_nice_preserves_volume_and_real_nvp_bounds_its_scale() -> None:
    z, h = inputs()
    nice = awake(build_flow(CouplingPosterior(update="additive", hidden=(8,)), DIM, CONTEXT))
    assert not nice(z, nice.condition(h))[1].any()
    real_nvp = awake(build_flow(CouplingPosterior(steps=1, hidden=(8,)), DIM, CONTEXT))
    for parameter in real_nvp.parameters():
        parameter.data.mul_(100)
    _, log_det = real_nvp(z, real_nvp.condition(h))
    assert log_det.abs().max() <= 3 * 2.0  # three elements, e^2 at most
    assert log_det.abs().max() > 2.0


@pytest.mark.parametrize("posterior", [CouplingPosterior(), LinearIafPosterior()])
def test_one_latent_is_refused_where_two_are_needed(posterior) -> None:
    with pytest.raises(ConfigError, match="latent_dim of at least 2"):
        build_flow(posterior, 1, CONTEXT)
