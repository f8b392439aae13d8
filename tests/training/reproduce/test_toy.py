"""The toy of figure 1 against independent integrals, and as a pure function of its seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model.densities import standard_normal_log_prob
from training.reproduce.toy import (
    POSTERIORS,
    Grid,
    data_points,
    fit_toy,
    log_posterior,
    measure,
    posterior_samples,
)

STEPS = 40


@pytest.fixture(scope="module", params=list(POSTERIORS))
def fitted(request):
    return fit_toy(request.param, seed=3, steps=STEPS)


@pytest.fixture(scope="module")
def figures(fitted):
    return measure(fitted, grid=Grid(81), draws=4000)


def test_the_points_are_the_four_images_with_one_pixel_lit():
    points = data_points()
    assert points.shape == (4, 1, 2, 2)
    assert torch.equal(points.flatten(1).sum(dim=1), torch.ones(4))
    assert torch.equal(points.flatten(1).argmax(dim=1), torch.arange(4))


def test_the_grid_integrates_a_gaussian_and_its_moments():
    grid = Grid(121)
    density = standard_normal_log_prob(grid.z).sum(dim=1).exp()
    assert grid.integral(density).item() == pytest.approx(1, abs=1e-8)
    assert grid.integral(density * grid.z[:, 0] ** 2).item() == pytest.approx(1, abs=1e-6)
    assert grid.integral(density * grid.z.prod(dim=1)).item() == pytest.approx(0, abs=1e-9)


def test_log_px_is_that_of_draws_from_the_prior(fitted, figures):
    """Plain Monte-Carlo over the prior, in NumPy: no grid, no posterior."""
    z = np.random.default_rng(0).standard_normal((50_000, 2)).astype(np.float32)
    with torch.inference_mode():
        logits = fitted.decode(torch.from_numpy(z)).flatten(1).double().numpy()
    log_off = -np.logaddexp(0, logits)
    log_px_z = log_off.sum(axis=1, keepdims=True) + logits  # log p_i + sum_{j != i} log(1 - p_j)
    px_z = np.exp(log_px_z)
    px = px_z.mean(axis=0)
    relative = px_z.std(axis=0) / np.sqrt(len(z)) / px
    error = np.sqrt(np.square(relative).sum()) / 4
    assert figures.log_px == pytest.approx(np.log(px).mean(), abs=5 * error)
    assert figures.log_px < -math.log(4)


def test_the_posteriors_density_is_the_one_that_its_draws_have(fitted):
    """log q through the flow's inverse equals log q on the way of a draw."""
    model = fitted.fold().double()
    x = data_points().double()
    eps = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.inference_mode():
        inference = model.infer(model.bottom_up(x), eps)
        log_p = standard_normal_log_prob(inference.z).sum(dim=1)
        forwards = inference.kl.sum(dim=1) + log_p
        backwards = log_posterior(model, x, inference.z).diagonal()
    assert torch.allclose(forwards, backwards, atol=1e-6)


def test_the_two_ways_to_the_gap_agree(figures):
    """log p(x) - ELBO (paper, eq. 3) by draws, KL(q || p(z|x)) on the grid."""
    assert figures.mass_error < 1e-4
    gap = figures.log_px - figures.elbo
    assert gap == pytest.approx(figures.kl_to_posterior, abs=5 * figures.elbo_standard_error)
    assert figures.kl_to_posterior > 0


def test_the_aggregate_posterior_takes_its_share(figures):
    assert 0 <= figures.information <= math.log(4)
    assert figures.aggregate_kl >= 0
    assert figures.kl_to_prior == pytest.approx(figures.information + figures.aggregate_kl)
    assert 0 <= figures.overlap <= 0.75


def test_the_overlap_is_the_rate_of_wrong_guesses(fitted, figures):
    """Guess each draw's image by the densities at it, and count."""
    draws = 500
    z = posterior_samples(fitted, draws, seed=5).double()  # [4, n, 2]
    with torch.inference_mode():
        log_q = log_posterior(fitted.fold().double(), data_points().double(), z.flatten(0, 1))
    wrong = (log_q.argmax(dim=0).view(4, draws) != torch.arange(4)[:, None]).double()
    assert figures.overlap == pytest.approx(wrong.mean().item(), abs=5 * 0.5 / math.sqrt(4 * draws))


def test_a_finer_grid_says_the_same(fitted, figures):
    finer = measure(fitted, grid=Grid(121, 7.0), draws=10)
    for name in ("log_px", "kl_to_posterior", "aggregate_kl", "information"):
        assert getattr(finer, name) == pytest.approx(getattr(figures, name), abs=1e-4)


def test_training_raises_the_bound(figures):
    untrained = measure(fit_toy("diagonal", seed=3, steps=0), grid=Grid(41), draws=2000)
    assert figures.elbo > untrained.elbo + 0.1


def test_a_fit_is_a_function_of_its_seed():
    told = []
    first = fit_toy("iaf", seed=1, steps=3, told=told.append)
    again, other = fit_toy("iaf", seed=1, steps=3), fit_toy("iaf", seed=2, steps=3)
    assert told == [1, 2, 3]
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.decoder.project.v, other.decoder.project.v)
    samples = posterior_samples(first, 5, seed=0)
    assert samples.shape == (4, 5, 2)
    assert torch.equal(samples, posterior_samples(again, 5, seed=0))
