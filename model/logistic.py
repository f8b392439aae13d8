"""Pixel likelihoods made of logistic densities, integrated over the bins of 8-bit levels.

The pixel range is (-1/2, 1/2). Level k stands for the bin [k/256 - 1/2, (k+1)/256 - 1/2); the
lowest and the highest reach to infinity, so that the 256 probabilities sum to one (the paper's
formula, Appendix C.5, leaves the tails out).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_LOG_SCALE = -7.0  # a quarter of a bin: keeps gradients finite where a pixel is constant
MAX_LOG_SCALE = 7.0  # a thousand ranges: beyond, a bin's probability is lost in float32


def at_least_float32(t: Tensor) -> Tensor:
    """Give `t` in float32, or unchanged where it is wider."""
    return t if t.dtype == torch.float64 else t.float()


def bin_centre(level: Tensor) -> Tensor:
    """The middle of a level's bin, (level + 1/2) / 256 - 1/2."""
    return (level + 0.5) / 256 - 0.5


def bin_log_prob(mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    """Elementwise log-probability of the levels x, in nats.

    With a, b the standardised upper and lower edges, sigmoid(a) - sigmoid(b) =
    sigmoid(a) sigmoid(-b) (1 - exp(b - a)): a sum of logarithms without cancellation.
    """
    inv_scale = torch.exp(-log_scale)
    lower = x / 256 - 0.5 - mean
    log_below_upper = F.logsigmoid((lower + 1 / 256) * inv_scale)
    log_above_lower = F.logsigmoid(-lower * inv_scale)
    inside = log_below_upper + log_above_lower + torch.log(-torch.expm1(-inv_scale / 256))
    edges = torch.where(x <= 0, log_below_upper, log_above_lower)
    return torch.where((x <= 0) | (x >= 255), edges, inside)


def draw_level(mean: Tensor, log_scale: Tensor, u: Tensor) -> Tensor:
    """Invert the logistic's cumulative function at u in [0, 1); the bin that is hit, a float."""
    tiny = 2.0**-25  # u is a multiple of 2^-24: both logarithms stay finite
    u = u.clamp(tiny, 1 - 2.0**-24)
    value = mean + torch.exp(log_scale) * (torch.log(u) - torch.log1p(-u))
    return torch.floor((value + 0.5) * 256).clamp(0, 255)


def as_share_of_255(value: Tensor) -> Tensor:
    """A point of the pixel range as a mean in [0, 1]: `round(255 mean)` is its nearest level."""
    return (((value + 0.5) * 256 - 0.5) / 255).clamp(0.0, 1.0)


class DiscretizedLogistic:
    """One logistic density for each subpixel (paper, Appendix C.5).

    Parameters are the location and log-scale of each subpixel, stacked in the channels.
    """

    kind = "discretized_logistic"

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        self.channels = image_shape[0]
        self.parameter_channels = 2 * image_shape[0]
        self.uniforms = math.prod(image_shape)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Levels 0..255 as floats."""
        return pixels.float()

    def network_input(self, x: Tensor) -> Tensor:
        """Bin centres."""
        return bin_centre(x)

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = at_least_float32(params).chunk(2, dim=1)
        return mean, log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log-probability of the levels x, `[B]`."""
        return bin_log_prob(*self._split(params), x).flatten(1).sum(dim=1)

    def mean(self, params: Tensor) -> Tensor:
        """The location, as a share of 255."""
        mean, _ = self._split(params)
        return as_share_of_255(mean)

    def draw(self, params: Tensor, u: Tensor) -> Tensor:
        """Draw each subpixel with its own uniform number."""
        mean, log_scale = self._split(params)
        return draw_level(mean, log_scale, u.view_as(mean)).to(torch.uint8)
