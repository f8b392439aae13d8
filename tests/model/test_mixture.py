"""The mixture of logistics: sums over all levels, frequencies of draws, and its special cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model import build_model
from model.config import ConvVaeConfig
from model.densities import DiscretizedLogistic, LogisticMixture, build_likelihood
from model.mixture import START_LOG_SCALE

LEVELS = torch.arange(256.0, dtype=torch.float64)


def random_params(colours: int, mixtures: int, seed: int = 0, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    channels = LogisticMixture((colours, 1, 1), mixtures).parameter_channels
    params = torch.randn(channels, generator=generator, dtype=torch.float64)
    params[mixtures : mixtures * (1 + colours)] *= 0.05  # means inside the range
    return params.view(1, -1, 1, 1).expand(rows, -1, 1, 1)


def fewer_colours(params: Tensor, mixtures: int, colours: int, kept: int) -> Tensor:
    """The parameters of the first `kept` colours alone."""
    blocks = list(params.split(mixtures, dim=1))
    means, scales = blocks[1 : 1 + colours], blocks[1 + colours : 1 + 2 * colours]
    slopes = blocks[1 + 2 * colours :]  # pairs (1, 0), (2, 0), (2, 1)
    return torch.cat(
        [blocks[0], *means[:kept], *scales[:kept], *slopes[: kept * (kept - 1) // 2]], dim=1
    )


def joint(likelihood: LogisticMixture, params: Tensor, *levels: Tensor) -> Tensor:
    """p of all combinations of levels, one axis a colour."""
    x = torch.cartesian_prod(*levels).view(-1, len(levels), 1, 1)
    log_prob = likelihood.log_prob(params.expand(len(x), -1, 1, 1), x)
    return log_prob.exp().view([len(level) for level in levels])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mixtures", [1, 3, 10])
def test_levels_sum_to_one_given_the_earlier_colours(mixtures: int, seed: int) -> None:
    """Summed over its last colour, a pixel's probability is that of the colours before it."""
    params = random_params(3, mixtures, seed)
    of = {c: fewer_colours(params, mixtures, 3, c) for c in (1, 2, 3)}
    likelihood = {c: LogisticMixture((c, 1, 1), mixtures) for c in (1, 2, 3)}
    some = torch.tensor([0.0, 3.0, 100.0, 255.0], dtype=torch.float64)
    torch.testing.assert_close(
        joint(likelihood[3], of[3], some, some, LEVELS).sum(2),
        joint(likelihood[2], of[2], some, some),
    )
    torch.testing.assert_close(
        joint(likelihood[2], of[2], some, LEVELS).sum(1), joint(likelihood[1], of[1], some)
    )
    assert joint(likelihood[1], of[1], LEVELS).sum().item() == pytest.approx(1.0, abs=1e-12)


def test_one_component_without_slopes_is_a_discretised_logistic() -> None:
    params = random_params(3, 1)
    params = torch.cat([params[:, :7], torch.zeros(1, 3, 1, 1, dtype=torch.float64)], 1)
    plain = torch.cat([params[:, 1:4], params[:, 4:7] + START_LOG_SCALE], 1)
    x = torch.randint(0, 256, (50, 3, 1, 1)).double()
    torch.testing.assert_close(
        LogisticMixture((3, 1, 1), 1).log_prob(params.expand(50, -1, 1, 1), x),
        DiscretizedLogistic((3, 1, 1)).log_prob(plain.expand(50, -1, 1, 1), x),
    )


def test_colours_follow_each_other() -> None:
    """With a slope near one, green is found where red is, and blue where green is not."""
    likelihood = LogisticMixture((3, 1, 1), 1)
    params = torch.zeros(1, 10, 1, 1)
    params[:, 4:7] = -3.0  # narrow
    params[:, 4] = 1.0  # but red may be anything
    params[:, 7], params[:, 9] = 3.0, -3.0  # slopes tanh(+-3) of green on red, blue on green
    drawn = likelihood.draw(params.expand(500, -1, 1, 1), torch.rand(500, 4)).double()
    red, green, blue = drawn.flatten(1).unbind(1)
    inner = (red > 20) & (red < 235)
    assert inner.sum() > 30
    assert (green - red)[inner].abs().max() < 16
    assert (blue + green - 255)[inner].abs().max() < 16


@pytest.mark.parametrize("colour", [0, 1])
def test_draws_follow_the_probabilities(colour: int) -> None:
    n, mixtures = 100_000, 3
    generator = torch.Generator().manual_seed(3)
    params = random_params(2, mixtures, seed=4)
    likelihood = LogisticMixture((2, 1, 1), mixtures)
    u = torch.rand(n, likelihood.uniforms, generator=generator)
    drawn = likelihood.draw(params.float().expand(n, -1, 1, 1), u)[:, colour].flatten()
    frequency = torch.bincount(drawn.long(), minlength=256).double() / n
    p = joint(likelihood, params, LEVELS, LEVELS).sum(1 - colour)
    assert ((frequency - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 2e-5).all()


@pytest.mark.parametrize("edge", [0.0, 1 - 2.0**-24])
def test_draws_at_the_edges_of_u_are_pixels(edge: float) -> None:
    likelihood = LogisticMixture((3, 2, 2), 4)
    params = torch.zeros(1, likelihood.parameter_channels, 2, 2)
    drawn = likelihood.draw(params, torch.full((1, likelihood.uniforms), edge))
    assert drawn.unique().tolist() == [0 if edge == 0 else 255]


def test_a_component_without_weight_is_never_drawn() -> None:
    """Not at u = 0 either; its levels would be black, the other's are white."""
    likelihood = LogisticMixture((1, 1, 1), 2)
    params = torch.tensor([-1e4, 0.0, -50.0, 50.0, 0.0, 0.0]).view(1, 6, 1, 1)
    assert likelihood.draw(params, torch.tensor([[0.0, 0.5]])).item() == 255


def test_weights_that_sum_to_less_than_the_highest_u_draw_the_last_component() -> None:
    """As float32 rounds them: some of so many sums are below 1 - 2^-24."""
    likelihood = LogisticMixture((1, 40, 40), 10)
    generator = torch.Generator().manual_seed(0)
    params = torch.randn(1, likelihood.parameter_channels, 40, 40, generator=generator)
    highest = 1 - 2.0**-24
    sums = params[:, :10].log_softmax(dim=1).exp().cumsum(dim=1)[:, -1]
    assert (sums <= highest).any()
    assert likelihood.draw(params, torch.full((1, likelihood.uniforms), highest)).shape[1:] == (
        1,
        40,
        40,
    )


def test_a_colour_is_given_the_middle_of_the_earlier_ones_bins() -> None:
    """One component, written out: its location moves with (r + 1/2) / 256 - 1/2."""
    mean, scale, slope, r, g = 0.05, math.exp(START_LOG_SCALE - 1.0), 0.8, 40, 130
    params = torch.tensor([0.0, 0.0, mean, 0.0, -1.0, math.atanh(slope)], dtype=torch.float64)
    likelihood = LogisticMixture((2, 1, 1), 1)
    x = torch.tensor([r, g], dtype=torch.float64).view(1, 2, 1, 1)

    def bin_mass(level: int, location: float, width: float) -> float:
        low, high = level / 256 - 0.5, (level + 1) / 256 - 0.5
        return 1 / (1 + math.exp((location - high) / width)) - 1 / (
            1 + math.exp((location - low) / width)
        )

    first = bin_mass(r, 0.0, math.exp(START_LOG_SCALE))
    second = bin_mass(g, mean + slope * ((r + 0.5) / 256 - 0.5), scale)
    found = likelihood.log_prob(params.view(1, 6, 1, 1), x).item()
    assert found == pytest.approx(math.log(first) + math.log(second), abs=1e-9)


def test_the_mean_of_a_grey_mixture_is_the_mean_level() -> None:
    params = random_params(1, 4)
    params[:, 8:] = -2.0  # narrow: hardly any mass beyond the range
    likelihood = LogisticMixture((1, 1, 1), 4)
    expected = (joint(likelihood, params, LEVELS) * LEVELS).sum()
    assert 255 * likelihood.mean(params).item() == pytest.approx(expected.item(), abs=0.1)


def test_the_mean_of_colours_is_what_draws_average_to() -> None:
    params = random_params(3, 2, seed=1)
    params[:, 8:14] = -2.0
    likelihood = LogisticMixture((3, 1, 1), 2)
    u = torch.rand(40_000, likelihood.uniforms, generator=torch.Generator().manual_seed(0))
    drawn = likelihood.draw(params.float().expand(len(u), -1, 1, 1), u).double()
    error = drawn.std(0) / len(u) ** 0.5
    difference = (drawn.mean(0) - 255 * likelihood.mean(params)[0]).abs()
    assert (difference < 5 * error + 0.2).all()


@pytest.mark.parametrize("size", [0.0, 5.0, 200.0])
def test_gradients_are_finite_in_float32(size: float) -> None:
    torch.manual_seed(0)
    likelihood = LogisticMixture((3, 1, 1), 5)
    params = (size * torch.randn(256, likelihood.parameter_channels, 1, 1)).requires_grad_()
    x = torch.arange(256.0).view(256, 1, 1, 1).repeat(1, 3, 1, 1)
    log_prob = likelihood.log_prob(params, x)
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(params.grad).all()
    assert ((likelihood.mean(params) >= 0) & (likelihood.mean(params) <= 1)).all()


def test_parameters_of_zero_say_little() -> None:
    """Where training starts: near 8 bits/dim whatever the pixel, less where tails are."""
    likelihood = LogisticMixture((3, 1, 1), 10)
    params = torch.zeros(256, likelihood.parameter_channels, 1, 1)
    x = torch.arange(256.0).view(256, 1, 1, 1).repeat(1, 3, 1, 1)
    bits = -likelihood.log_prob(params, x) / (3 * math.log(2))
    assert bits[1:-1].min() > 7
    assert bits.max() < 8


def test_densities_are_float32_under_bfloat16_parameters() -> None:
    likelihood = LogisticMixture((3, 2, 2), 3)
    params = torch.randn(2, likelihood.parameter_channels, 2, 2).bfloat16()
    assert likelihood.log_prob(params, torch.zeros(2, 3, 2, 2)).dtype == torch.float32


def test_it_serves_the_one_layer_model_too() -> None:
    config = ConvVaeConfig(image_shape=(3, 8, 8), likelihood="logistic_mixture", channels=(4,))
    model = build_model(config)
    assert model.likelihood.parameter_channels == 100
    x = model.likelihood.from_pixels(torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8))
    log_px_z, _ = model(x, torch.randn(2, 32))
    log_px_z.sum().backward()
    assert torch.isfinite(log_px_z).all()
    assert build_likelihood("logistic_mixture", (1, 2, 2), mixtures=3).parameter_channels == 9
