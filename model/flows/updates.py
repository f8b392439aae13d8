"""The elementwise updates of inverse autoregressive flow: what m and s do to z."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

Heads = tuple[Tensor, ...]


class Update(ABC):
    """z' as an elementwise function of z and of an autoregressive network's heads.

    The heads are m, or m and s (`has_scale`), shaped as z. `init_scale` is the deviation that
    data-dependent initialisation gives them, chosen so that a fresh step moves z by a tenth of a
    unit; `s_bias`, where not None, is the value at which the bias of s starts.
    """

    has_scale: ClassVar[bool] = True
    init_scale: ClassVar[float] = 0.1
    s_bias: float | None = None

    @property
    def heads(self) -> int:
        """The number of heads, 1 or 2."""
        return 2 if self.has_scale else 1

    @abstractmethod
    def forward(self, z: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
        """Give z' and, of each element, log dz'/dz at fixed heads."""

    @abstractmethod
    def inverse(self, z_next: Tensor, heads: Heads) -> Tensor:
        """Give z from z' at the same heads."""


class Gated(Update):
    """z' = sigma z + (1 - sigma) m, sigma = sigmoid(s) (paper, eqs. 13 and 14)."""

    def __init__(self, gate_bias: float = 1.5) -> None:
        self.s_bias = gate_bias

    def forward(self, z: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
        """See the base class."""
        m, s = heads
        sigma = torch.sigmoid(s)
        return sigma * z + (1 - sigma) * m, F.logsigmoid(s)

    def inverse(self, z_next: Tensor, heads: Heads) -> Tensor:
        """See the base class."""
        m, s = heads
        sigma = torch.sigmoid(s)
        return (z_next - (1 - sigma) * m) / sigma


class Affine(Update):
    """z' = (z - 0.1 m) / exp(0.1 s), the form of the authors' code, with both bounded.

    Images like those of training stay far within (|0.1 m| < 13 and |0.1 s| < 3 were met); of
    others, layer by layer, numbers would grow beyond float32.
    """

    init_scale = 1.0  # the factor of 0.1 follows
    damping: ClassVar[float] = 0.1
    most_shift: ClassVar[float] = 100.0
    most_log_scale: ClassVar[float] = 5.0

    def forward(self, z: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
        """See the base class."""
        shift, log_scale = self._bounded(heads)
        return (z - shift) * torch.exp(-log_scale), -log_scale

    def inverse(self, z_next: Tensor, heads: Heads) -> Tensor:
        """See the base class."""
        shift, log_scale = self._bounded(heads)
        return z_next * torch.exp(log_scale) + shift

    def _bounded(self, heads: Heads) -> tuple[Tensor, Tensor]:
        m, s = heads
        shift = (self.damping * m).clamp(-self.most_shift, self.most_shift)
        return shift, (self.damping * s).clamp(-self.most_log_scale, self.most_log_scale)


class Location(Update):
    """z' = z + m, which preserves volume (the location-only column of the paper's Table 3)."""

    has_scale = False

    def forward(self, z: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
        """See the base class."""
        (m,) = heads
        return z + m, torch.zeros_like(z)

    def inverse(self, z_next: Tensor, heads: Heads) -> Tensor:
        """See the base class."""
        (m,) = heads
        return z_next - m
