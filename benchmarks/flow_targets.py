"""Densities with a known normaliser that a posterior can be fitted to.

Latents are maps `[C, S, S]`, flattened. `Linear` is a posterior that a VAE really has to match;
`Bent` is the same, no longer Gaussian. KL(q || p) is then an absolute number of nats: no constant
is missing, and zero is perfect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


class Target(Protocol):
    """p(z) over `[B, D]`."""

    shape: tuple[int, int, int]

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), `[B]`, in nats, normalised."""


def lattice(dim: int) -> tuple[int, int, int]:
    """Maps (C, S, S) of `dim` latents: S the largest power of two that leaves 8 channels."""
    size = 1
    while 8 * (2 * size) ** 2 <= dim:
        size *= 2
    if dim % size**2:
        raise ValueError(f"{dim} latents do not fill maps of {size} x {size}")
    return dim // size**2, size, size


class Linear:
    """p(z|x) at x = 0 of the linear VAE z ~ N(0, I), x = A z + noise of variance `noise`.

    A is a random 3x3 convolution from C to C / 2 maps, so that latents near each other explain
    the same pixels and become dependent ("explaining away"). p(z|x) is Gaussian with precision
    I + A'A / noise: no order of the latents is special to it.
    """

    def __init__(self, dim: int, noise: float = 0.05, seed: int = 0) -> None:
        self.shape = lattice(dim)
        channels = self.shape[0]
        generator = torch.Generator().manual_seed(seed)
        outputs = max(1, channels // 2)
        kernel = torch.randn(outputs, channels, 3, 3, generator=generator, dtype=torch.float64)
        self.kernel = kernel / math.sqrt(9 * outputs * noise)  # A / sqrt(noise), A'A near I
        _, log_det = torch.linalg.slogdet(self.precision())
        self.log_normaliser = 0.5 * (log_det.item() - dim * LOG_2PI)
        self.kernel = self.kernel.float()

    def _decoded(self, z: Tensor) -> Tensor:
        return F.conv2d(z.view(-1, *self.shape), self.kernel.to(z), padding=1).flatten(1)

    def precision(self) -> Tensor:
        """The precision matrix `[D, D]`, float64."""
        eye = torch.eye(math.prod(self.shape), dtype=torch.float64)
        decoded = self._decoded(eye)  # [D, outputs S S] = A'
        return eye + decoded @ decoded.T

    def log_prob(self, z: Tensor) -> Tensor:
        """See `Target`."""
        energy = z.square().sum(dim=1) + self._decoded(z).square().sum(dim=1)
        log_p: Tensor = self.log_normaliser - 0.5 * energy
        return log_p

    def diagonal_gap(self) -> float:
        """KL(q || p) in nats of the best diagonal Gaussian q, variances 1 / precision_ii."""
        precision = self.precision()
        _, log_det = torch.linalg.slogdet(precision)
        return 0.5 * float(precision.diagonal().log().sum() - log_det)


class Bent:
    """`Linear`, bent: z_i = w_i + `bend` cos(3 z_{i-1}) along a chain through all latents.

    The chain runs against the order of the flows, from the last latent to the first. It is
    unit-triangular, so p(z) = p_linear(w): volumes and the normaliser stay.
    """

    def __init__(self, dim: int, bend: float = 0.5, seed: int = 0) -> None:
        self.straight = Linear(dim, seed=seed)
        self.shape = self.straight.shape
        self.bend = bend

    def straightened(self, z: Tensor) -> Tensor:
        """w `[B, D]` from z: all at once."""
        before = F.pad(z[:, 1:], (0, 1))  # z_{i-1} of the chain; the first has none
        return z - self.bend * torch.cos(3 * before)

    def log_prob(self, z: Tensor) -> Tensor:
        """See `Target`."""
        return self.straight.log_prob(self.straightened(z))


TARGETS: dict[str, Callable[[int], Target]] = {"linear": Linear, "bent": Bent}
