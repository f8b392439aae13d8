"""The prior of the top latent group as a transform of noise: `z = f(eps)` and its inverse.

log p(z) = log N(eps; 0, I) + log|det d eps / d z| at eps = f^-1(z), and both ways are one pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import Foldable
from model.priors import CouplingPrior, PriorConfig
from model.validation import require

OUTPUT_INIT_SCALE = 0.05  # a fresh flow is close to the identity
LOG_SCALE_BOUND = 2.0


class Prior(nn.Module, ABC):
    """An invertible transform of standard normal noise, `[B, D]` or maps `[B, C, H, W]`.

    `elementwise`: whether log p(z) is a sum of terms that belong to single elements.
    """

    elementwise: ClassVar[bool]

    @abstractmethod
    def forward(self, eps: Tensor) -> Tensor:
        """Give z = f(eps)."""

    @abstractmethod
    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Give eps = f^-1(z) and log|det d eps / d z|, `[B or 1, 1]`, both in z's precision."""


class StandardNormal(Prior):
    """f is the identity: z ~ N(0, I)."""

    elementwise = True

    def forward(self, eps: Tensor) -> Tensor:
        """z = eps."""
        return eps

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """eps = z."""
        return z, z.new_zeros(1, 1)


class CouplingFlow(Prior):
    """Real NVP (Dinh, Sohl-Dickstein & Bengio 2016, arXiv:1605.08803) from z to its noise.

    Which half a coupling keeps is a permutation of its own, from a fixed seed, and every second
    coupling keeps what the one before it moved. The halves are masks on the weights: vectors are
    neither permuted nor cut. With all parameters zero f is the identity.
    """

    elementwise = False

    def __init__(self, dim: int, config: CouplingPrior) -> None:
        super().__init__()
        require(dim >= 2, "a coupling prior needs at least 2 latents in the top group")
        self.couplings = nn.ModuleList(
            Coupling(kept, config.hidden) for kept in halves(dim, config.couplings)
        )

    def forward(self, eps: Tensor) -> Tensor:
        """Undo the couplings from the last to the first."""
        z = eps.flatten(1)
        for coupling in reversed(self.couplings):
            z = coupling.inverse(z)  # type: ignore[operator]
        return z.view_as(eps)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the couplings, z first; log-determinants are added."""
        eps, log_det = z.flatten(1), z.new_zeros(1, 1)
        for coupling in self.couplings:
            eps, step_log_det = coupling(eps)
            log_det = log_det + step_log_det
        return eps.view_as(z), log_det


def halves(dim: int, count: int) -> list[Tensor]:
    """Which of `dim` elements each of `count` couplings keeps, bool `[D]` each."""
    generator = torch.Generator().manual_seed(0)
    kept: list[Tensor] = []
    for t in range(count):
        if t % 2:
            kept.append(~kept[-1])
        else:
            order = torch.randperm(dim, generator=generator)
            kept.append(order < dim // 2)
    return kept


class Coupling(Foldable):
    """y = exp(l) u + t with u = exp(a) z + b, where (l, t) = (2 tanh(q / 2), t) are a function of
    the kept elements of u and zero for them.

    a and b are learned numbers for each element; q and t come from a network with ReLU layers.
    `kept` (bool `[D]`) is stored with the weights, so that no generator decides what they mean.
    """

    def __init__(self, kept: Tensor, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("kept", kept)
        self.kept: Tensor
        dim = len(kept)
        self.log_scale = nn.Parameter(torch.zeros(dim))  # a
        self.shift = nn.Parameter(torch.zeros(dim))  # b
        self.hidden = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise((dim, *hidden)))
        self.out = nn.Linear(hidden[-1], 2 * dim)
        with torch.no_grad():
            self.out.weight.mul_(OUTPUT_INIT_SCALE)
            self.out.bias.mul_(OUTPUT_INIT_SCALE)

    def _moves(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """l and t, `[B, D]` each, in u's precision; what is moved in u is not looked at."""
        first, *rest = self.hidden
        kept = self.kept.to(u.dtype)
        moved = (1 - kept).repeat(2)
        h = F.relu(F.linear(u, first.weight * kept, first.bias))  # type: ignore[operator, arg-type]
        for layer in rest:
            h = F.relu(layer(h))
        out = F.linear(h, self.out.weight * moved[:, None], self.out.bias * moved)
        return bounded(out.to(u.dtype))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Give y and log|det dy/dz|, `[B, 1]`."""
        u = torch.exp(self.log_scale) * z + self.shift
        log_scale, shift = self._moves(u)
        log_det = log_scale.sum(dim=1, keepdim=True) + self.log_scale.sum()
        return torch.exp(log_scale) * u + shift, log_det

    def inverse(self, y: Tensor) -> Tensor:
        """Give z; what is kept of y is what is kept of u."""
        log_scale, shift = self._moves(y)
        u = (y - shift) * torch.exp(-log_scale)
        return (u - self.shift) * torch.exp(-self.log_scale)

    def folded(self) -> nn.Module:
        """The same with the masks inside the weights and exp(a) computed."""
        return _PlainCoupling(self)


def bounded(out: Tensor) -> tuple[Tensor, Tensor]:
    """Cut `[B, 2 D]` into the log-scale l = 2 tanh(q / 2) and the shift."""
    q, shift = out.chunk(2, dim=1)
    return LOG_SCALE_BOUND * torch.tanh(q / LOG_SCALE_BOUND), shift


class _PlainCoupling(nn.Module):
    """`Coupling` folded."""

    def __init__(self, coupling: Coupling) -> None:
        super().__init__()
        kept = coupling.kept.to(coupling.shift.dtype)
        moved = (1 - kept).repeat(2)
        first, *rest = (_copied(layer) for layer in coupling.hidden)
        first.weight.data.mul_(kept)
        out = _copied(coupling.out)
        out.weight.data.mul_(moved[:, None])
        out.bias.data.mul_(moved)
        layers = [module for layer in (first, *rest) for module in (layer, nn.ReLU())]
        self.net = nn.Sequential(*layers, out)
        a = coupling.log_scale.detach()
        for name, value in (
            ("scale", a.exp()),
            ("inv_scale", (-a).exp()),
            ("shift", coupling.shift.detach().clone()),
            ("log_det", a.sum()),
        ):
            self.register_buffer(name, value)
        self.scale: Tensor
        self.inv_scale: Tensor
        self.shift: Tensor
        self.log_det: Tensor

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        u = self.scale * z + self.shift
        log_scale, shift = bounded(self.net(u))
        log_det = log_scale.sum(dim=1, keepdim=True) + self.log_det
        return torch.exp(log_scale) * u + shift, log_det

    def inverse(self, y: Tensor) -> Tensor:
        log_scale, shift = bounded(self.net(y))
        return ((y - shift) * torch.exp(-log_scale) - self.shift) * self.inv_scale


def _copied(layer: nn.Module) -> nn.Linear:
    assert isinstance(layer, nn.Linear)  # noqa: S101  for the type checker
    plain = nn.Linear(layer.in_features, layer.out_features)
    plain.load_state_dict(layer.state_dict())
    return plain.to(layer.weight.dtype)


def build_prior(config: PriorConfig, dim: int) -> Prior:
    """Build the prior that `config` names over a top group of `dim` latents.

    Raises `ConfigError` where `dim` is too small for it.
    """
    return CouplingFlow(dim, config) if isinstance(config, CouplingPrior) else StandardNormal()
