"""Densities against torch.distributions, sums over all levels, and frequencies of draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.densities import (
    Bernoulli,
    DiscretizedLogistic,
    binarised,
    build_likelihood,
    gaussian_log_prob,
    standard_normal_log_prob,
)

SHAPE = (2, 3, 4)
LEVELS = torch.arange(256, dtype=torch.float64)


def logistic_params(mean: float, log_scale: float) -> Tensor:
    return (
        torch.tensor([mean, log_scale], dtype=torch.float64).view(1, 2, 1, 1).expand(256, 2, 1, 1)
    )


def test_gaussian_agrees_with_torch() -> None:
    torch.manual_seed(0)
    z, mean, log_scale = torch.randn(3, 50, dtype=torch.float64)
    expected = torch.distributions.Normal(mean, log_scale.exp()).log_prob(z)
    torch.testing.assert_close(gaussian_log_prob(z, mean, log_scale), expected)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    torch.testing.assert_close(standard_normal_log_prob(z), expected)


def test_bernoulli_agrees_with_torch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, *SHAPE) * 20
    x = (torch.rand(5, *SHAPE) < 0.5).float()
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(Bernoulli(SHAPE).log_prob(logits, x), expected)


def test_bernoulli_is_finite_at_extreme_logits() -> None:
    logits = torch.full((1, *SHAPE), 1e4)
    assert torch.isfinite(Bernoulli(SHAPE).log_prob(logits, torch.zeros(1, *SHAPE))).all()


@pytest.mark.parametrize("log_scale", [-7.0, -6.0, -4.0, -2.0, 0.0, 3.0])
@pytest.mark.parametrize("mean", [-3.0, -0.5, -0.2, 0.0, 0.0019, 0.5, 0.9])
def test_the_256_levels_sum_to_one(mean: float, log_scale: float) -> None:
    likelihood = DiscretizedLogistic((1, 1, 1))
    log_prob = likelihood.log_prob(logistic_params(mean, log_scale), LEVELS.view(256, 1, 1, 1))
    assert torch.isfinite(log_prob).all()
    assert torch.logsumexp(log_prob, dim=0).item() == pytest.approx(0.0, abs=1e-12)


def test_logistic_is_the_integral_over_the_bin() -> None:
    """A plain difference of cumulative functions, where it is accurate, says the same."""
    mean, scale = 0.03, 0.05
    edges = torch.arange(257, dtype=torch.float64) / 256 - 0.5
    cumulative = torch.sigmoid((edges - mean) / scale)
    cumulative[0], cumulative[-1] = 0.0, 1.0
    expected = torch.log(cumulative[1:] - cumulative[:-1])
    params = logistic_params(mean, math.log(scale))
    got = DiscretizedLogistic((1, 1, 1)).log_prob(params, LEVELS.view(256, 1, 1, 1))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("log_scale", [-30.0, -7.0, 0.0, 20.0])
def test_logistic_gradients_are_finite_in_float32(log_scale: float) -> None:
    params = torch.tensor([0.4, log_scale]).view(1, 2, 1, 1).repeat(256, 1, 1, 1).requires_grad_()
    x = torch.arange(256.0).view(256, 1, 1, 1)
    DiscretizedLogistic((1, 1, 1)).log_prob(params, x).sum().backward()
    assert torch.isfinite(params.grad).all()


@pytest.mark.parametrize("kind", ["bernoulli", "discretized_logistic"])
def test_draws_follow_the_probabilities(kind: str) -> None:
    torch.manual_seed(3)
    likelihood = build_likelihood(kind, (1, 1, 1))
    n = 200_000
    params = torch.tensor([0.3, -3.0][: likelihood.parameter_channels]).view(1, -1, 1, 1)
    drawn = likelihood.draw(params.expand(n, -1, 1, 1), torch.rand(n, 1)).flatten()
    frequency = torch.bincount(drawn.long(), minlength=256).double() / n
    levels = torch.tensor([0, 255]) if kind == "bernoulli" else torch.arange(256)
    x = likelihood.from_pixels(levels.to(torch.uint8)).view(-1, 1, 1, 1)
    p = likelihood.log_prob(params.expand(len(levels), -1, 1, 1).double(), x.double()).exp()
    error = (frequency[levels] - p).abs()
    assert (error < 5 * (p * (1 - p) / n).sqrt() + 1e-5).all()


@pytest.mark.parametrize("kind", ["bernoulli", "discretized_logistic"])
@pytest.mark.parametrize("edge", [0.0, 1 - 2.0**-24])
def test_draws_at_the_edges_of_u_are_pixels(kind: str, edge: float) -> None:
    likelihood = build_likelihood(kind, SHAPE)
    params = torch.zeros(1, likelihood.parameter_channels, 3, 4)
    drawn = likelihood.draw(params, torch.full((1, likelihood.uniforms), edge))
    assert drawn.dtype == torch.uint8
    assert drawn.shape == (1, *SHAPE)
    assert drawn.unique().tolist() == ([255] if (kind == "bernoulli") == (edge == 0.0) else [0])


def test_the_lowest_u_draws_no_outlier() -> None:
    """u is a multiple of 2^-24: its 0 stands for no farther than that, not for minus infinity."""
    params = torch.tensor([0.3, -7.0]).view(1, 2, 1, 1)
    drawn = DiscretizedLogistic((1, 1, 1)).draw(params, torch.zeros(1, 1)).item()
    assert abs((drawn + 0.5) / 256 - 0.5 - 0.3) < 20 * math.exp(-7.0)


def test_no_scale_is_too_small_for_a_density() -> None:
    """Below a quarter of a bin narrower ones are the same, and numbers."""
    likelihood = DiscretizedLogistic((1, 1, 1))
    x = torch.arange(256.0).view(256, 1, 1, 1)
    least, beyond = (
        likelihood.log_prob(torch.tensor([0.3, s]).view(1, 2, 1, 1).expand(256, 2, 1, 1), x)
        for s in (-7.0, -200.0)
    )
    assert torch.equal(least, beyond)
    assert torch.isfinite(least).all()


def test_logistic_mean_names_the_nearest_level() -> None:
    centres = ((torch.arange(256.0) + 0.5) / 256 - 0.5).view(256, 1, 1, 1)
    params = torch.cat([centres, torch.zeros_like(centres)], dim=1)
    mean = DiscretizedLogistic((1, 1, 1)).mean(params)
    assert (mean * 255).round().flatten().tolist() == list(range(256))
    assert mean.min() >= 0
    assert mean.max() <= 1


def test_pixels_are_thresholded_at_128() -> None:
    pixels = torch.tensor([0, 127, 128, 255], dtype=torch.uint8)
    assert Bernoulli(SHAPE).from_pixels(pixels).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("edge", [0.0, 1 - 2.0**-24])
def test_black_and_white_are_certain_at_the_edges_of_u(edge: float) -> None:
    """u is in [0, 1): a pixel that is never white is black at 0 too."""
    likelihood, u = Bernoulli((1, 1, 2)), torch.full((1, 2), edge)
    pixels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert binarised(pixels, u).flatten().tolist() == [0.0, 1.0]
    logits = torch.tensor([[[[-200.0, 200.0]]]])
    assert likelihood.draw(logits, u).flatten().tolist() == [0, 255]


def test_densities_stay_float32_under_bfloat16_parameters() -> None:
    params = torch.randn(2, 4, 3, 4).bfloat16()
    x = torch.randint(0, 256, (2, *SHAPE)).float()
    log_prob = DiscretizedLogistic(SHAPE).log_prob(params, x)
    assert log_prob.dtype == torch.float32
