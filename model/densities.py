"""Hand-written log-densities, in nats, and the pixel likelihoods.

Everything here computes in float32 (or the float64 it is given), whatever precision the
networks ran in.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.logistic import DiscretizedLogistic, at_least_float32
from model.mixture import LogisticMixture

LOG_2PI = math.log(2 * math.pi)
# Gaussians are bounded: of images unlike those of training, numbers would grow beyond float32 from
# layer to layer, and a score be no number. Those of training have means within 16 and log-scales
# from -5 to 3 where it was looked at.
MOST_MEAN, LOG_SCALES = 100.0, (-10.0, 5.0)


def bounded_gaussian(mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """A Gaussian's mean and log-scale, cut to what float32 bears in the layers that follow."""
    return mean.clamp(-MOST_MEAN, MOST_MEAN), log_scale.clamp(*LOG_SCALES)


def gaussian_log_prob(z: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Elementwise log N(z; mean, exp(log_scale)^2), in nats."""
    return -0.5 * LOG_2PI - log_scale - 0.5 * ((z - mean) * torch.exp(-log_scale)).square()


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Elementwise log N(z; 0, 1), in nats."""
    return -0.5 * LOG_2PI - 0.5 * z.square()


def binarised(pixels: Tensor, u: Tensor) -> Tensor:
    """1 where uint8 pixels / 255 > u, uniform in [0, 1) and as many numbers, else 0: each pixel
    with its grey level as the chance. Black and white stay what they are."""
    return (pixels.float() / 255 > u.view_as(pixels)).float()


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

    x is 0 or 1; as uint8 that is 0 or 255. A grey pixel is a probability (`binarised`); where
    there is no noise to draw it with, it is thresholded at 128.
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


def build_likelihood(
    kind: str, image_shape: tuple[int, int, int], *, mixtures: int = 10
) -> Likelihood:
    """Build the likelihood that `kind` names for images `(C, H, W)`.

    `mixtures` counts the components of a "logistic_mixture".
    """
    if kind == LogisticMixture.kind:
        return LogisticMixture(image_shape, mixtures)
    return {cls.kind: cls for cls in (Bernoulli, DiscretizedLogistic)}[kind](image_shape)


__all__ = [
    "LOG_2PI",
    "Bernoulli",
    "DiscretizedLogistic",
    "Likelihood",
    "LogisticMixture",
    "at_least_float32",
    "bounded_gaussian",
    "build_likelihood",
    "gaussian_log_prob",
    "standard_normal_log_prob",
]
