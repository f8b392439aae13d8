"""Transforms of a posterior: inverse autoregressive flow.

One contract: a step maps `(z [B, D], context [B, H]) -> (z' [B, D], log_det [B, F])`, both at
once, with `log_det = log|det dz'/dz|` split over the F parts it can be attributed to (1 here).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import DiagonalPosterior, IafPosterior, PosteriorConfig
from model.layers import Linear
from model.masks import made_masks

# The heads start small: a fresh step moves z by a tenth of a unit, not by one.
HEAD_INIT_SCALE = 0.1


class Made(nn.Module):
    """An autoregressive network (Germain et al. 2015) with a context added in an unmasked path.

    `(z [B, D], context [B, H]) -> (m [B, D], s [B, D])`, where m_i and s_i depend on the
    elements of z before i in the order, and on all of the context. With `hidden=()` it is
    linear in z and in the context.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        hidden: tuple[int, ...],
        *,
        reverse: bool,
        gate_bias: float,
    ) -> None:
        super().__init__()
        *hidden_masks, head_mask = made_masks(dim, hidden, reverse=reverse)
        sizes = (dim, *hidden)
        self.hidden = nn.ModuleList(
            Linear(sizes[i], sizes[i + 1], mask=mask) for i, mask in enumerate(hidden_masks)
        )
        self.context = Linear(context_dim, hidden[0] if hidden else 2 * dim)
        self.m = Linear(sizes[-1], dim, mask=head_mask, init_scale=HEAD_INIT_SCALE)
        self.s = Linear(
            sizes[-1], dim, mask=head_mask, init_scale=HEAD_INIT_SCALE, bias_start=gate_bias
        )

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Give m and s, `[B, D]` each."""
        c = self.context(context)  # [B, hidden[0]] or [B, 2 D]
        if not self.hidden:
            c_m, c_s = c.chunk(2, dim=1)
            return self.m(z) + c_m, self.s(z) + c_s
        a = F.elu(self.hidden[0](z) + c)
        for layer in self.hidden[1:]:
            a = F.elu(layer(a))
        return self.m(a), self.s(a)


class IafStep(nn.Module):
    """One step of inverse autoregressive flow in its gated form (paper, eqs. 12-14).

    z' = sigma * z + (1 - sigma) * m, sigma = sigmoid(s); since m and s are autoregressive in z,
    dz'/dz is triangular with sigma on its diagonal and log|det| = sum_i log sigma_i (eq. 8).
    """

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.made = made

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Transform z; the update and the log-determinant keep z's own precision."""
        m, s = (t.to(z.dtype) for t in self.made(z, context))
        sigma = torch.sigmoid(s)
        return sigma * z + (1 - sigma) * m, F.logsigmoid(s).sum(dim=1, keepdim=True)

    @torch.no_grad()
    def inverse(self, z_next: Tensor, context: Tensor) -> Tensor:
        """Find z with `forward(z) = z_next`, element by element: D passes, slow, exact.

        After i passes the first i elements of the order are right, whatever the order is.
        """
        z = torch.zeros_like(z_next)
        for _ in range(z.shape[1]):
            m, s = (t.to(z.dtype) for t in self.made(z, context))
            sigma = torch.sigmoid(s)
            z = (z_next - (1 - sigma) * m) / sigma
        return z


class FlowChain(nn.Module):
    """Steps one after another, their log-determinants added (paper, eq. 5); none: the identity."""

    def __init__(self, steps: list[IafStep]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map z through every step; `log_det` is `[B, 1]`."""
        log_det = z.new_zeros(z.shape[0], 1)
        for step in self.steps:
            z, step_log_det = step(z, context)
            log_det = log_det + step_log_det
        return z, log_det

    @torch.no_grad()
    def inverse(self, z: Tensor, context: Tensor) -> Tensor:
        """Undo `forward`, for tests and for evaluating q at a given z."""
        for step in reversed(self.steps):
            z = step.inverse(z, context)  # type: ignore[operator]
        return z


def _iaf(config: IafPosterior, dim: int, context_dim: int) -> FlowChain:
    # Reversing the order between steps is done in the masks: no permutation to compute.
    return FlowChain(
        [
            IafStep(
                Made(
                    dim,
                    context_dim,
                    config.hidden,
                    reverse=config.reverse and t % 2 == 1,
                    gate_bias=config.gate_bias,
                )
            )
            for t in range(config.steps)
        ]
    )


def build_flow(config: PosteriorConfig, dim: int, context_dim: int) -> FlowChain:
    """Build the flow that `config` names over `dim` latents and a context of `context_dim`."""
    if isinstance(config, DiagonalPosterior):
        return FlowChain([])
    return _iaf(config, dim, context_dim)
