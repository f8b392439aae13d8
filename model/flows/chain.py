"""The contract of a posterior's transforms, and the chain that composes them.

A step maps `(z, condition) -> (z', log_det [B, F])`, both at once, where `condition` is what the
step takes from the image: `condition(h)` computes it once for each image, however many latents
are then drawn. `log_det = log|det dz'/dz|` is split over the F parts it can be attributed to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Conditions = tuple[Tensor, ...]


class FlowStep(nn.Module, ABC):
    """One invertible transform of z, `[B, D]` or maps `[B, C, H, W]`, given the image."""

    @abstractmethod
    def condition(self, h: Tensor) -> Tensor:
        """Compute what the step takes from the encoder's h; the first axis is B."""

    @abstractmethod
    def forward(self, z: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Give z' and `log_det [B, F]`, both in z's own precision."""

    @abstractmethod
    def inverse(self, z_next: Tensor, condition: Tensor) -> Tensor:
        """Find z with `forward(z) = z_next`; each step says how slow that is."""


class FlowChain(nn.Module):
    """Steps one after another, their log-determinants added (paper, eq. 5); none: the identity.

    `parts` is F of the chain's `log_det [B, F]`: the number of channels of feature maps whose
    densities split by channel, else 1. They split where every step runs in the same
    autoregressive order (one step always does): then z' is autoregressive in that order too, and
    the terms of a channel belong to its conditional densities. Once an order is reversed they
    belong to nothing, and the chain gives their sum.
    """

    def __init__(self, steps: Sequence[FlowStep], parts: int = 1) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.parts = parts

    def condition(self, h: Tensor) -> Conditions:
        """Give every step's condition, computed once for each image from h."""
        return tuple(step.condition(h) for step in self.steps)  # type: ignore[operator]

    def forward(self, z: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """Map z through every step; `log_det` is `[B, parts]`."""
        log_det = z.new_zeros(z.shape[0], self.parts)
        for step, condition in zip(self.steps, conditions, strict=True):
            z, step_log_det = step(z, condition)
            if step_log_det.shape[1] != self.parts:
                step_log_det = step_log_det.sum(dim=1, keepdim=True)
            log_det = log_det + step_log_det
        return z, log_det

    @torch.no_grad()
    def inverse(self, z: Tensor, conditions: Conditions) -> Tensor:
        """Undo `forward`, for tests and for evaluating q at a given z; as slow as its steps."""
        for step, condition in reversed(list(zip(self.steps, conditions, strict=True))):
            z = step.inverse(z, condition)  # type: ignore[operator]
        return z

    def sum_parts(self, terms: Tensor) -> Tensor:
        """Add elementwise terms, `[B, D]` or `[B, C, H, W]`, over each part: `[B, parts]`."""
        if terms.dim() == 4 and terms.shape[1] == self.parts:
            return terms.flatten(2).sum(dim=2)
        return terms.flatten(1).sum(dim=1, keepdim=True)
