"""Planar flow (Rezende & Mohamed 2015, arXiv:1505.05770; the paper's eq. 6)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from model.densities import at_least_float32
from model.flows.chain import FlowStep
from model.layers import Linear

U_INIT_SCALE = 0.1  # a fresh step moves z by about a tenth of a unit
SOFTPLUS_SHIFT = math.log(math.e - 1)  # softplus(SOFTPLUS_SHIFT) = 1
FLOOR = 1e-3  # of r: the least that a step stretches along w
NORM_EPS = 1e-12
BISECTIONS = 80  # halvings of the bracket; float64 has 53 bits


class PlanarStep(FlowStep):
    """z' = z + u tanh(w'z + b), with u, w `[B, D]` and b `[B, 1]` linear in the context.

    det dz'/dz = 1 + (1 - tanh^2) w'u, and the step is invertible where w'u > -1. So u is moved
    along w until w'u is m(w'u), an increasing function above -1 (their Appendix A.1). Here
    1 + m(a) = r(a) = f + (1 - f) softplus(a + log(e - 1)): the shift makes m(0) = 0, so that a
    step with u near 0 is near the identity, and the floor f = 0.001 keeps rounding away from
    singular steps. The determinant is tanh^2 + (1 - tanh^2) r: positive, without cancellation.
    """

    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.u = Linear(context_dim, dim, init_scale=U_INIT_SCALE)
        self.w = Linear(context_dim, dim, init_scale=dim**-0.5)
        self.b = Linear(context_dim, 1)

    def condition(self, h: Tensor) -> Tensor:
        """Compute u, w, b and r, side by side, `[B, 2 D + 2]`."""
        u, w, b = (at_least_float32(layer(h)) for layer in (self.u, self.w, self.b))
        wu = (w * u).sum(dim=1, keepdim=True)  # [B, 1]
        r = FLOOR + (1 - FLOOR) * F.softplus(wu + SOFTPLUS_SHIFT)
        along = (r - 1 - wu) / (w.square().sum(dim=1, keepdim=True) + NORM_EPS)
        return torch.cat((u + along * w, w, b, r), dim=1)

    def _split(self, condition: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c, dim = condition.to(z.dtype), self.dim
        return c[:, :dim], c[:, dim : 2 * dim], c[:, 2 * dim : -1], c[:, -1:]

    def forward(self, z: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Move z along u; `log_det` is `[B, 1]`."""
        u, w, b, r = self._split(condition, z)
        t = torch.tanh((w * z).sum(dim=1, keepdim=True) + b)  # [B, 1]
        t2 = t.square()
        return z + u * t, torch.log(t2 + (1 - t2) * r)

    @torch.no_grad()
    def inverse(self, z_next: Tensor, condition: Tensor) -> Tensor:
        """Find z by bisection along w: numerical, no closed form exists, `BISECTIONS` short steps.

        a = w'z solves a + w'u tanh(a + b) = w'z', whose left side increases in a; a is no
        farther from w'z' than |w'u|.
        """
        u, w, b, r = self._split(condition, z_next)
        wu, target = r - 1, (w * z_next).sum(dim=1, keepdim=True)
        low, high = target - wu.abs(), target + wu.abs()
        for _ in range(BISECTIONS):
            a = (low + high) / 2
            above = a + wu * torch.tanh(a + b) > target
            low, high = torch.where(above, low, a), torch.where(above, a, high)
        return z_next - u * torch.tanh((low + high) / 2 + b)
