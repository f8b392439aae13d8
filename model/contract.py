"""What every density model here is: a flat latent made of named groups, and five functions.

No function draws noise: `eps` is always an argument, standard normal, `[B, latent_dim]`.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from model.config import ModelConfig
from model.densities import Likelihood
from model.flows.prior import Prior, StandardNormal
from model.layers import fold_weight_norm
from model.objective import ElboTerms

Features = tuple[Tensor, ...]


@dataclass(frozen=True)
class LatentGroup:
    """One stochastic layer's latents, `channels * height * width` of them."""

    name: str
    channels: int
    height: int
    width: int

    @property
    def size(self) -> int:
        """The number of latents in the group."""
        return self.channels * self.height * self.width


@dataclass(frozen=True)
class LatentLayout:
    """The groups of the flat latent, from the top of the model down."""

    groups: tuple[LatentGroup, ...]

    @property
    def dim(self) -> int:
        """The number of all latents."""
        return sum(group.size for group in self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        """The groups' names, top down."""
        return tuple(group.name for group in self.groups)


@dataclass(frozen=True)
class Inference:
    """One draw from the posterior and what the model computed on the way.

    `z [B, D]`; `prior_eps [B, D]`, the noise that the prior makes it of: (z - prior mean) / prior
    scale, group by group, through the inverse flow where the prior is one; `kl [B, F]` in nats,
    log q(z|x) - log p(z) of each part; `params`, the likelihood's.
    """

    z: Tensor
    prior_eps: Tensor
    kl: Tensor
    params: Tensor


def repeated(t: Tensor, times: int) -> Tensor:
    """`[B, ...] -> [times * B, ...]`, all rows once, then all again."""
    return t.repeat(times, *[1] * (t.dim() - 1))


class DensityModel(nn.Module, ABC):
    """A variational autoencoder; `x [B, C, H, W]` is in its likelihood's units.

    `prior` is that of the top group.
    """

    prior: Prior

    def __init__(self, config: ModelConfig, layout: LatentLayout, likelihood: Likelihood) -> None:
        super().__init__()
        self.config = config
        self.layout = layout
        self.likelihood = likelihood
        self.prior = StandardNormal()

    @property
    def kl_groups(self) -> tuple[str, ...]:
        """Names of the columns of `group_kl`: the latent groups, top down."""
        return self.layout.names

    @property
    def dims(self) -> int:
        """The number of subpixels of an image."""
        return math.prod(self.config.image_shape)

    @abstractmethod
    def bottom_up(self, x: Tensor) -> Features:
        """Compute, once per image, what inference needs; each tensor's first axis is B."""

    @abstractmethod
    def infer(self, features: Features, eps: Tensor) -> Inference:
        """Draw from q(z|x), with the likelihood's parameters at that z."""

    def prior_data(self, features: Features, eps: Tensor) -> Tensor:
        """A draw of the top group from q(z|x), `[B, D_top]`, as the flow of a prior gives it out.

        That is z itself, or in a ladder (z - mean) / scale of the top layer's Gaussian: what a
        prior's density is fitted to.
        """
        top = self.layout.groups[0].size
        data: Tensor = self.prior(self.infer(features, eps).prior_eps[:, :top])
        return data

    @abstractmethod
    def generate(self, eps: Tensor, temperature: Tensor) -> Tensor:
        """Likelihood parameters at z = prior mean + prior scale * f(T * eps), T `[B, G]` >= 0.

        f is the prior's flow in the top group, else the identity.
        """

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Likelihood parameters at z `[B, D]`."""

    @abstractmethod
    def group_kl(self, kl: Tensor) -> Tensor:
        """Reduce the free-bits parts `[B, F]` to the latent groups `[B, G]`."""

    def elbo_terms(self, x: Tensor, features: Features, eps: Tensor) -> ElboTerms:
        """The bound's parts for images x whose features are at hand."""
        inference = self.infer(features, eps)
        return ElboTerms(self.likelihood.log_prob(inference.params, x), inference.kl)

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Give `log_px_z [B]` and `kl [B, F]`, in nats, of one draw for each image.

        Of eps `[K, B, D]`, K draws for each that share its features: `[K, B]` and `[K, B, F]`.
        """
        if eps.dim() == 2:
            terms = self.elbo_terms(x, self.bottom_up(x), eps)
            return terms.log_px_z, terms.kl
        draws, images, _ = eps.shape
        rows = tuple(repeated(feature, draws) for feature in self.bottom_up(x))
        terms = self.elbo_terms(repeated(x, draws), rows, eps.flatten(0, 1))
        return terms.log_px_z.view(draws, images), terms.kl.view(draws, images, -1)

    def fold(self) -> Self:
        """A copy in evaluation mode with weight norm and masks folded into plain weights."""
        folded = copy.deepcopy(self).eval()
        fold_weight_norm(folded)
        return folded
