"""The bounds against a linear-Gaussian model whose marginal likelihood is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.config import IafPosterior
from model.densities import gaussian_log_prob, standard_normal_log_prob
from model.flows.flow import build_flow
from model.objective import (
    ElboTerms,
    bits_per_dim,
    free_bits_objective,
    importance_weighted_bound,
)

D, X, B = 3, 6, 8


class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(W z + b, s^2 I), so p(x) = N(b, W W^T + s^2 I)."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.W = torch.randn(X, D, dtype=torch.float64)
        self.b = torch.randn(X, dtype=torch.float64)
        self.s = 0.7
        self.x = torch.randn(B, D, dtype=torch.float64) @ self.W.T + self.b
        self.x += self.s * torch.randn(B, X, dtype=torch.float64)

    @property
    def log_px(self) -> Tensor:
        covariance = self.W @ self.W.T + self.s**2 * torch.eye(X, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.b, covariance).log_prob(self.x)

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean `[B, D]` and covariance `[D, D]` of the exact p(z|x)."""
        precision = torch.eye(D, dtype=torch.float64) + self.W.T @ self.W / self.s**2
        covariance = torch.linalg.inv(precision)
        return (self.x - self.b) @ self.W @ covariance / self.s**2, covariance

    def log_weights(self, K: int, *, flow: bool = False, exact: bool = False) -> Tensor:
        """log w of K draws for each x, `[K, B]`, under a diagonal q, a flow, or the posterior."""
        mean, covariance = self.posterior()
        eps = torch.randn(K, B, D, dtype=torch.float64)
        if exact:
            L = torch.linalg.cholesky(covariance)
            z = mean + eps @ L.T
            log_q = standard_normal_log_prob(eps).sum(-1) - L.diagonal().log().sum()
        else:
            log_scale = covariance.diagonal().log() / 2
            z = mean + log_scale.exp() * eps
            log_q = gaussian_log_prob(z, mean, log_scale).sum(-1)
        if flow:
            chain = build_flow(IafPosterior(steps=2, hidden=(8, 8)), D, X).double()
            context = self.x.expand(K, B, X).reshape(-1, X)
            z_flat, log_det = chain(z.view(-1, D), chain.condition(context))
            z, log_q = z_flat.view(K, B, D).detach(), log_q - log_det.view(K, B).detach()
        log_px_z = gaussian_log_prob(
            self.x, z @ self.W.T + self.b, torch.tensor(math.log(self.s), dtype=torch.float64)
        ).sum(-1)
        log_p = standard_normal_log_prob(z).sum(-1)
        terms = ElboTerms(log_px_z.flatten(), (log_q - log_p).view(-1, 1))
        return terms.log_weight.view(K, B)


@pytest.fixture
def model() -> LinearGaussian:
    return LinearGaussian()


def test_exact_posterior_makes_every_bound_the_likelihood(model: LinearGaussian) -> None:
    log_weight = model.log_weights(5, exact=True)
    expected = model.log_px.expand(5, B)
    torch.testing.assert_close(log_weight, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(importance_weighted_bound(log_weight), model.log_px)


@pytest.mark.parametrize("flow", [False, True])
def test_elbo_below_iw_below_log_likelihood(model: LinearGaussian, flow: bool) -> None:
    repeats, K = 400, 32
    log_weight = torch.stack([model.log_weights(K, flow=flow) for _ in range(repeats)])
    elbo = log_weight.mean(dim=1)  # [repeats, B]: the mean over the same draws
    bound = torch.stack([importance_weighted_bound(w) for w in log_weight])
    assert (elbo <= bound + 1e-9).all()
    error = bound.std(dim=0) / math.sqrt(repeats)
    assert (bound.mean(dim=0) <= model.log_px + 4 * error).all()
    assert (elbo.mean(dim=0) < model.log_px).all()  # neither q is the posterior


def test_the_gap_closes_as_k_grows(model: LinearGaussian) -> None:
    log_weight = model.log_weights(200_000)
    gaps = []
    for K in (1, 10, 100, 1000):
        bounds = importance_weighted_bound(log_weight.view(-1, K, B).transpose(0, 1))
        gaps.append((model.log_px - bounds.mean(dim=0)).mean().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.1
    assert abs(gaps[-1]) < 0.01 * gaps[0]


def test_iw_at_one_sample_is_the_elbo() -> None:
    log_weight = torch.randn(1, 4)
    torch.testing.assert_close(importance_weighted_bound(log_weight), log_weight[0])


def test_free_bits_clamp_the_batch_mean_part_by_part() -> None:
    kl = torch.tensor([[0.0, 4.0], [0.5, 2.0]], requires_grad=True)
    terms = ElboTerms(torch.tensor([-10.0, -12.0]), kl)
    objective = free_bits_objective(terms, 1.0)
    assert objective.item() == pytest.approx(-11 - (1.0 + 3.0))
    objective.backward()
    assert kl.grad.tolist() == [[0.0, -0.5], [0.0, -0.5]]  # nothing to gain below the minimum
    assert terms.elbo.tolist() == [-14.0, -14.5]  # what is reported is not clamped


def test_no_free_bits_is_the_mean_elbo_even_where_a_draw_of_kl_is_negative() -> None:
    terms = ElboTerms(torch.tensor([-10.0, -12.0]), torch.tensor([[-3.0], [1.0]]))
    assert free_bits_objective(terms, 0.0).item() == pytest.approx(terms.elbo.mean().item())


def test_bits_per_dim_of_uniform_pixels_is_eight() -> None:
    dims = 3072
    nats = torch.tensor(-dims * math.log(256), dtype=torch.float64)
    assert bits_per_dim(nats, dims).item() == pytest.approx(8.0)
