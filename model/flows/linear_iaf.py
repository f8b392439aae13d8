"""Linear inverse autoregressive flow: a Gaussian with full covariance (paper, Appendix A)."""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import require
from model.densities import at_least_float32
from model.flows.chain import FlowStep
from model.layers import Linear

# L starts near the identity: its entries have this deviation after initialisation.
ENTRY_INIT_SCALE = 0.05


class LinearIafStep(FlowStep):
    """z' = L(x) z with L lower triangular and ones on its diagonal; log|det L| = 0.

    From z ~ N(mean, diag(scale^2)) it makes z' ~ N(L mean, L diag(scale^2) L'), and every
    Gaussian with a covariance of full rank is of that form. The D (D - 1) / 2 entries below the
    diagonal are a linear layer of the context. In one dimension there are none: `ConfigError`.
    """

    index: Tensor

    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__()
        require(
            dim >= 2,
            "a linear_iaf posterior needs a latent_dim of at least 2; in one dimension it is the "
            "diagonal posterior",
        )
        entries = dim * (dim - 1) // 2
        self.dim = dim
        self.entries = Linear(context_dim, entries, init_scale=ENTRY_INIT_SCALE)
        # Where each of the D x D places of (L - I)' finds its entry; those not above the
        # diagonal find the zero that stands after the last.
        index = torch.full((dim, dim), entries)
        index[tuple(torch.triu_indices(dim, dim, offset=1))] = torch.arange(entries)
        self.register_buffer("index", index.flatten(), persistent=False)

    def condition(self, h: Tensor) -> Tensor:
        """Compute (L - I)', `[B, D, D]`: row i holds what z_i adds to the elements after it."""
        entries = at_least_float32(self.entries(h))
        padded = torch.cat((entries, torch.zeros_like(entries[:, :1])), dim=1)
        return padded.index_select(1, self.index).view(-1, self.dim, self.dim)

    def forward(self, z: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Give L z and zero, `[B, 1]`.

        As a sum of products: autocast would round a matrix product to half precision. Whole rows
        are added, so that no sum's order depends on where an image stands in a batch.
        """
        moved = (condition.to(z.dtype) * z[:, :, None]).sum(dim=1)
        return z + moved, z.new_zeros(z.shape[0], 1)

    @torch.no_grad()
    def inverse(self, z_next: Tensor, condition: Tensor) -> Tensor:
        """Solve L z = z' by forward substitution: D short steps, one element each."""
        solved: Tensor = torch.linalg.solve_triangular(
            condition.to(z_next.dtype).mT, z_next[:, :, None], upper=False, unitriangular=True
        )
        return solved[:, :, 0]
