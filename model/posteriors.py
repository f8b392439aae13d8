"""The approximate posteriors a model can have, as frozen, validated configurations.

All start from z_0 ~ N(mean(x), diag(scale(x)^2)) and differ in the flow that follows
(`model.flows` builds it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from model.validation import require, require_choice, require_counts

IafUpdate = Literal["gated", "affine", "location"]
IAF_UPDATES: tuple[str, ...] = ("gated", "affine", "location")
CouplingUpdate = Literal["affine", "additive"]
COUPLING_UPDATES: tuple[str, ...] = ("affine", "additive")


@dataclass(frozen=True, kw_only=True)
class DiagonalPosterior:
    """q(z|x) a Gaussian with diagonal covariance: the paper's baseline, no flow at all."""

    kind: ClassVar[str] = "diagonal"


@dataclass(frozen=True, kw_only=True)
class LinearIafPosterior:
    """q(z|x) a Gaussian with full covariance: z = L(x) z_0 (paper, Appendix A).

    L is lower triangular with ones on its diagonal, D (D - 1) / 2 numbers from the encoder.
    """

    kind: ClassVar[str] = "linear_iaf"


@dataclass(frozen=True, kw_only=True)
class IafPosterior:
    """A diagonal Gaussian followed by `steps` IAF transformations (paper, Algorithm 1).

    `hidden` lists the widths of each MADE's hidden layers; with none, m and s are linear in z. The
    paper's "2-layer MADE" is read as two hidden layers; `IAF 2x320` of its Table 1 is `steps=2,
    hidden=(320, 320)`. `update`: "gated" is z' = sigma z + (1 - sigma) m with sigma = sigmoid(s)
    (eq. 14), "affine" z' = (z - 0.1 m) / exp(0.1 s), "location" z' = z + m (the location-only
    column of Table 3). `gate_bias` is the value at which the gate's bias starts (section 4);
    `reverse` turns the order round after each step.
    """

    kind: ClassVar[str] = "iaf"
    steps: int = 2
    hidden: tuple[int, ...] = (320, 320)
    update: IafUpdate = "gated"
    gate_bias: float = 1.5
    reverse: bool = True

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"posterior.steps must be at least 1, not {self.steps}")
        require_counts("posterior.hidden", self.hidden)
        require_choice("posterior.update", self.update, IAF_UPDATES)


@dataclass(frozen=True, kw_only=True)
class ConvIafPosterior:
    """IAF over feature maps: masked 3x3 convolutions, raster order over pixels (paper, C.3).

    Each autoregressive network has `hidden_layers` (0, 1 or 2) hidden layers, as wide as the
    ladder's maps; the fields are `IafPosterior`'s otherwise. The paper's best model, and its
    code, has one step of two hidden layers with the "affine" update.
    """

    kind: ClassVar[str] = "conv_iaf"
    steps: int = 1
    hidden_layers: int = 2
    update: IafUpdate = "affine"
    gate_bias: float = 1.5
    reverse: bool = True

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"posterior.steps must be at least 1, not {self.steps}")
        require(
            self.hidden_layers in (0, 1, 2),
            f"posterior.hidden_layers must be 0, 1 or 2, not {self.hidden_layers}",
        )
        require_choice("posterior.update", self.update, IAF_UPDATES)


@dataclass(frozen=True, kw_only=True)
class PlanarPosterior:
    """A chain of planar flows z' = z + u tanh(w'z + b) (Rezende & Mohamed 2015; paper, eq. 6).

    u, w and b of every step come from the encoder.
    """

    kind: ClassVar[str] = "planar"
    steps: int = 16

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"posterior.steps must be at least 1, not {self.steps}")


@dataclass(frozen=True, kw_only=True)
class CouplingPosterior:
    """A chain of coupling layers: half of z is moved by a network of the other half.

    `update`: "affine" scales and shifts (Real NVP, Dinh et al. 2016), "additive" only shifts
    (NICE, Dinh et al. 2014). `hidden` are the widths of each network's hidden layers.
    """

    kind: ClassVar[str] = "coupling"
    steps: int = 4
    hidden: tuple[int, ...] = (320, 320)
    update: CouplingUpdate = "affine"

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"posterior.steps must be at least 1, not {self.steps}")
        require(len(self.hidden) >= 1, "posterior.hidden of a coupling flow needs a layer")
        require_counts("posterior.hidden", self.hidden)
        require_choice("posterior.update", self.update, COUPLING_UPDATES)


FlatPosterior = (
    DiagonalPosterior | LinearIafPosterior | IafPosterior | PlanarPosterior | CouplingPosterior
)
MapPosterior = DiagonalPosterior | ConvIafPosterior
PosteriorConfig = FlatPosterior | ConvIafPosterior

FLAT_POSTERIORS: tuple[type[FlatPosterior], ...] = (
    DiagonalPosterior,
    LinearIafPosterior,
    IafPosterior,
    PlanarPosterior,
    CouplingPosterior,
)
MAP_POSTERIORS: tuple[type[MapPosterior], ...] = (DiagonalPosterior, ConvIafPosterior)
POSTERIORS: dict[str, type[PosteriorConfig]] = {
    cls.kind: cls for cls in (*FLAT_POSTERIORS, ConvIafPosterior)
}
