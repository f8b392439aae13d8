"""The priors a model's top latent group can have, as frozen, validated configurations.

`model.flows.prior` builds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from model.validation import require, require_counts


@dataclass(frozen=True, kw_only=True)
class StandardNormalPrior:
    """p(z) = N(0, I): the paper's. (In a ladder: the Gaussian of its top layer, as it is.)"""

    kind: ClassVar[str] = "standard_normal"


@dataclass(frozen=True, kw_only=True)
class CouplingPrior:
    """p(z) is what a coupling flow f makes of noise: z = f(eps) (Real NVP, Dinh et al. 2016).

    `couplings` affine couplings, each with hidden layers as wide as `hidden` says. In a ladder f
    acts on the noise of the top layer, before its mean and scale.
    """

    kind: ClassVar[str] = "coupling"
    couplings: int = 10
    hidden: tuple[int, ...] = (128, 128)

    def __post_init__(self) -> None:
        require(self.couplings >= 1, f"prior.couplings must be at least 1, not {self.couplings}")
        require(len(self.hidden) >= 1, "prior.hidden of a coupling flow needs a layer")
        require_counts("prior.hidden", self.hidden)


PriorConfig = StandardNormalPrior | CouplingPrior
PRIORS: dict[str, type[PriorConfig]] = {
    cls.kind: cls for cls in (StandardNormalPrior, CouplingPrior)
}
