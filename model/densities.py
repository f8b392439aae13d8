"""Hand-written log-densities, in nats, and the pixel likelihoods built on them.

Everything here computes in float32 (or the float64 it is given), whatever precision the
networks ran in.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def at_least_float32(t: Tensor) -> Tensor:
    """Give `t` in float32, or unchanged where it is wider."""
    return t if t.dtype == torch.float64 else t.float()


def gaussian_log_prob(z: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Elementwise log N(z; mean, exp(log_scale)^2), in nats."""
    return -0.5 * LOG_2PI - log_scale - 0.5 * ((z - mean) * torch.exp(-log_scale)).square()


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Elementwise log N(z; 0, 1), in nats."""
    return -0.5 * LOG_2PI - 0.5 * z.square()


class Likelihood(Protocol):
    """p(x|z) over images: its parameters are a tensor `[B, parameter_channels, H, W]`.

    `x` is a float tensor `[B, C, H, W]` in the likelihood's own units (`from_pixels`).
    """

    kind: str
    parameter_channels: int
    uniforms: int

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Turn uint8 pixels into x."""

    def network_input(self, x: Tensor) -> Tensor:
        """Centre x for the inference network."""

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Give log p(x|z), `[B]`, in nats."""

    def mean(self, params: Tensor) -> Tensor:
        """Give the mean image in [0, 1], `[B, C, H, W]`, where 255 mean is a pixel value."""

    def draw(self, params: Tensor, u: Tensor) -> Tensor:
        """Draw uint8 pixels `[B, C, H, W]` from uniforms `u [B, uniforms]` in [0, 1)."""


class Bernoulli:
    """Independent binary pixels; the parameters are logits.

    x is 0 or 1; as uint8 that is 0 or 255, and any other pixel is thresholded at 128.
    """

    kind = "bernoulli"
    threshold = 128

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        self.parameter_channels = image_shape[0]
        self.uniforms = math.prod(image_shape)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Threshold uint8 pixels at 128."""
        return (pixels >= self.threshold).float()

    def network_input(self, x: Tensor) -> Tensor:
        """Move {0, 1} to {-1/2, 1/2}."""
        return x - 0.5

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log p = sum x l - softplus(l), for logits l."""
        logits = at_least_float32(params)
        return (x * logits - F.softplus(logits)).flatten(1).sum(dim=1)

    def mean(self, params: Tensor) -> Tensor:
        """The probability of each pixel."""
        return torch.sigmoid(at_least_float32(params))

    def draw(self, params: Tensor, u: Tensor) -> Tensor:
        """255 where u < p, else 0."""
        p = self.mean(params)
        return (u.view_as(p) < p).to(torch.uint8) * 255


class DiscretizedLogistic:
    """A logistic density integrated over the bins of 8-bit pixels (paper, Appendix C.5).

    Parameters are the location and log-scale of each subpixel, stacked in the channels, in
    units where the pixel range is (-1/2, 1/2). Level k stands for the bin
    [k/256 - 1/2, (k+1)/256 - 1/2); the lowest and the highest reach to infinity, so that the
    256 probabilities sum to one (the paper's formula leaves the tails out).
    """

    kind = "discretized_logistic"
    min_log_scale = -7.0  # a ninth of a bin: keeps gradients finite where a pixel is constant

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        self.channels = image_shape[0]
        self.parameter_channels = 2 * image_shape[0]
        self.uniforms = math.prod(image_shape)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Levels 0..255 as floats."""
        return pixels.float()

    def network_input(self, x: Tensor) -> Tensor:
        """Bin centres, (x + 1/2) / 256 - 1/2."""
        return (x + 0.5) / 256 - 0.5

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = at_least_float32(params).chunk(2, dim=1)
        return mean, log_scale.clamp_min(self.min_log_scale)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log-probability of the levels x.

        With a, b the standardised upper and lower edges, sigmoid(a) - sigmoid(b) =
        sigmoid(a) sigmoid(-b) (1 - exp(b - a)): a sum of logarithms without cancellation.
        """
        mean, log_scale = self._split(params)
        inv_scale = torch.exp(-log_scale)
        lower = x / 256 - 0.5 - mean
        log_below_upper = F.logsigmoid((lower + 1 / 256) * inv_scale)
        log_above_lower = F.logsigmoid(-lower * inv_scale)
        inside = log_below_upper + log_above_lower + torch.log(-torch.expm1(-inv_scale / 256))
        edges = torch.where(x <= 0, log_below_upper, log_above_lower)
        return torch.where((x <= 0) | (x >= 255), edges, inside).flatten(1).sum(dim=1)

    def mean(self, params: Tensor) -> Tensor:
        """The location, as a share of 255, so that `round(255 mean)` is its nearest level."""
        mean, _ = self._split(params)
        return (((mean + 0.5) * 256 - 0.5) / 255).clamp(0.0, 1.0)

    def draw(self, params: Tensor, u: Tensor) -> Tensor:
        """Invert the logistic's cumulative function at u and take the bin it falls into."""
        mean, log_scale = self._split(params)
        tiny = 2.0**-25  # u is a multiple of 2^-24: both logarithms stay finite
        u = u.view_as(mean).clamp(tiny, 1 - 2.0**-24)
        value = mean + torch.exp(log_scale) * (torch.log(u) - torch.log1p(-u))
        return torch.floor((value + 0.5) * 256).clamp(0, 255).to(torch.uint8)


LIKELIHOOD_CLASSES: dict[str, type[Bernoulli] | type[DiscretizedLogistic]] = {
    cls.kind: cls for cls in (Bernoulli, DiscretizedLogistic)
}


def build_likelihood(kind: str, image_shape: tuple[int, int, int]) -> Likelihood:
    """Build the likelihood that `kind` names for images `(C, H, W)`."""
    return LIKELIHOOD_CLASSES[kind](image_shape)
