"""Inverse autoregressive flow: an elementwise update whose m and s are autoregressive in z."""

from __future__ import annotations

import torch
from torch import Tensor

from model.flows.chain import FlowStep
from model.flows.made import AutoregressiveNet
from model.flows.updates import Heads, Update


class IafStep(FlowStep):
    """One step of inverse autoregressive flow (paper, section 3 and Algorithm 1).

    dz'/dz is triangular in the network's order, with the update's scale on its diagonal, so
    log|det| is the sum of the log-scales (eq. 8): for vectors one number, `[B, 1]`; for maps
    summed over the pixels of each channel, `[B, C]`. All elements are transformed at once.
    """

    def __init__(self, made: AutoregressiveNet, update: Update) -> None:
        super().__init__()
        self.made = made
        self.update = update

    def condition(self, h: Tensor) -> Tensor:
        """Give the context's share of the network's first pre-activation."""
        return self.made.condition(h)

    def _heads(self, z: Tensor, condition: Tensor) -> Heads:
        return tuple(t.to(z.dtype) for t in self.made(z, condition))

    def forward(self, z: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Transform z; the update and the log-determinant keep z's own precision."""
        z, log_scale = self.update.forward(z, self._heads(z, condition))
        if z.dim() == 2:
            return z, log_scale.sum(dim=1, keepdim=True)
        return z, log_scale.flatten(2).sum(dim=2)

    @torch.no_grad()
    def inverse(self, z_next: Tensor, condition: Tensor) -> Tensor:
        """Find z rank by rank: one pass of the network for each rank, slow, exact.

        A vector has D ranks; maps have C (W + 2 (H - 1)). What is not known yet stays zero, so
        that nothing overflows on the way.
        """
        z = torch.zeros_like(z_next)
        ranks = self.made.ranks(z)
        for rank in range(int(ranks.max()) + 1):
            found = self.update.inverse(z_next, self._heads(z, condition))
            z = torch.where(ranks == rank, found, z)
        return z
