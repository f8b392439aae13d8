"""Coupling flows: one half of z is moved by a network of the other (Dinh et al. 2014, 2016).

NICE (arXiv:1410.8516) shifts, Real NVP (arXiv:1605.08803) scales and shifts. Both directions are
one pass of the network.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import require
from model.flows.chain import FlowStep
from model.layers import Linear

HEAD_INIT_SCALE = 0.1  # a fresh step moves z by about a tenth of a unit
LOG_SCALE_BOUND = 2.0


class CouplingStep(FlowStep):
    """z' = (kept, moved') where moved' is an elementwise function of moved, given kept.

    The halves are z[:, :D // 2] and the rest (one element longer where D is odd); the first is
    kept, or with `swap` the second. The network, through layers as wide as `hidden` says, takes
    the context as a MADE does: added to its first pre-activation. It needs two halves: D = 1 is a
    `ConfigError`.
    """

    outputs: ClassVar[int]

    def __init__(self, dim: int, context_dim: int, hidden: tuple[int, ...], *, swap: bool) -> None:
        super().__init__()
        require(
            dim >= 2,
            "a coupling posterior needs a latent_dim of at least 2: it moves one half of the "
            "latents by the other",
        )
        self.swap = swap
        self.boundary = dim // 2
        kept, moved = (
            (dim - self.boundary, self.boundary) if swap else (self.boundary, dim - self.boundary)
        )
        widths = (kept, *hidden)
        self.hidden = nn.ModuleList(Linear(a, b) for a, b in pairwise(widths))
        self.context = Linear(context_dim, hidden[0])
        self.heads = nn.ModuleList(
            Linear(hidden[-1], moved, init_scale=HEAD_INIT_SCALE) for _ in range(self.outputs)
        )

    @abstractmethod
    def move(self, moved: Tensor, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Give moved' and `log_det [B, 1]`."""

    @abstractmethod
    def move_back(self, moved: Tensor, outputs: tuple[Tensor, ...]) -> Tensor:
        """Undo `move`."""

    def condition(self, h: Tensor) -> Tensor:
        """Project the context, `[B, hidden[0]]`."""
        c: Tensor = self.context(h)
        return c

    def _halves(self, z: Tensor) -> tuple[Tensor, Tensor]:
        first, second = z[:, : self.boundary], z[:, self.boundary :]
        return (second, first) if self.swap else (first, second)

    def _whole(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat((moved, kept) if self.swap else (kept, moved), dim=1)

    def _outputs(self, kept: Tensor, condition: Tensor) -> tuple[Tensor, ...]:
        a = F.elu(self.hidden[0](kept) + condition)
        for layer in self.hidden[1:]:
            a = F.elu(layer(a))
        return tuple(head(a).to(kept.dtype) for head in self.heads)

    def forward(self, z: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Move one half of z; `log_det` is `[B, 1]`."""
        kept, moved = self._halves(z)
        moved, log_det = self.move(moved, self._outputs(kept, condition))
        return self._whole(kept, moved), log_det

    @torch.no_grad()
    def inverse(self, z_next: Tensor, condition: Tensor) -> Tensor:
        """Move the half back: closed and parallel, as fast as `forward`."""
        kept, moved = self._halves(z_next)
        return self._whole(kept, self.move_back(moved, self._outputs(kept, condition)))


class AdditiveCoupling(CouplingStep):
    """NICE: moved' = moved + t. Volume is preserved, log|det| = 0."""

    outputs = 1

    def move(self, moved: Tensor, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """See the base class."""
        return moved + outputs[0], moved.new_zeros(moved.shape[0], 1)

    def move_back(self, moved: Tensor, outputs: tuple[Tensor, ...]) -> Tensor:
        """See the base class."""
        return moved - outputs[0]


class AffineCoupling(CouplingStep):
    """Real NVP: moved' = exp(l) moved + t, with the log-scale bounded as l = 2 tanh(s / 2).

    A step scales by no more than e^2 and no less than e^-2, and by about exp(s) for small s.
    """

    outputs = 2

    @staticmethod
    def _log_scale(s: Tensor) -> Tensor:
        return LOG_SCALE_BOUND * torch.tanh(s / LOG_SCALE_BOUND)

    def move(self, moved: Tensor, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """See the base class."""
        t, s = outputs
        log_scale = self._log_scale(s)
        return torch.exp(log_scale) * moved + t, log_scale.sum(dim=1, keepdim=True)

    def move_back(self, moved: Tensor, outputs: tuple[Tensor, ...]) -> Tensor:
        """See the base class."""
        t, s = outputs
        return (moved - t) * torch.exp(-self._log_scale(s))
