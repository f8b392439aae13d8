"""The posteriors under test, in one dictionary: a line added to it adds every property's test.

`flow_case` runs a test over all of them, `flat_case` over those of vectors, `map_case` over those
of feature maps.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from model.config import (
    ConvIafPosterior,
    ConvVaeConfig,
    CouplingPosterior,
    DiagonalPosterior,
    IafPosterior,
    LinearIafPosterior,
    ModelConfig,
    PlanarPosterior,
    PosteriorConfig,
    ResnetVaeConfig,
)
from model.flows.flow import FlowChain, build_conv_flow, build_flow, conv_context_channels
from model.layers import data_dependent_init

CONTEXT, CHANNELS, BATCH = 7, 7, 4
VECTOR, MAPS = (5,), (3, 3, 4)


@dataclass(frozen=True)
class FlowCase:
    """A posterior over latents of one shape, `(D,)` or `(C, H, W)`, with what tests ask of it."""

    config: PosteriorConfig
    shape: tuple[int, ...] = VECTOR
    channels: int = CHANNELS  # hidden maps of a convolutional flow

    @property
    def is_maps(self) -> bool:
        return len(self.shape) == 3

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def parts(self) -> int:
        """F as the design says: channels where a chain has one order, else 1."""
        reverses = getattr(self.config, "reverse", False) and self.config.steps > 1
        return self.shape[0] if self.is_maps and not reverses else 1

    @property
    def context_shape(self) -> tuple[int, ...]:
        if not self.is_maps:
            return (CONTEXT,)
        count = conv_context_channels(self.config, self.shape[0], self.channels)
        return (count, *self.shape[1:])

    def over(self, *shape: int) -> FlowCase:
        """The same posterior over latents of another shape."""
        return replace(self, shape=shape)

    def model_config(self) -> ModelConfig:
        """A model with this posterior."""
        if self.is_maps:
            return ResnetVaeConfig(posterior=self.config)
        return ConvVaeConfig(posterior=self.config)

    def inputs(self, rows: int = BATCH, seed: int = 2) -> tuple[Tensor, Tensor]:
        """Latents and a context in float64."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(rows, *self.shape, generator=generator, dtype=torch.float64)
        h = torch.randn(rows, *self.context_shape, generator=generator, dtype=torch.float64)
        return z, h

    def build(self) -> FlowChain:
        """The chain as it comes, in float32."""
        torch.manual_seed(zlib.crc32(repr(self).encode()))
        if self.is_maps:
            return build_conv_flow(self.config, self.shape[0], self.channels)
        return build_flow(self.config, self.shape[0], CONTEXT)

    def awake(self, size: float = 0.5, flow: FlowChain | None = None) -> FlowChain:
        """A chain in float64 all of whose parameters matter: fresh gains and biases hide
        mistakes."""
        return awaken(flow or self.build(), size)

    def initialized(self) -> FlowChain:
        """The chain after data-dependent initialisation, in float32."""
        flow = self.build()
        z, h = (t.float() for t in self.inputs(rows=256, seed=3))
        # A ladder's context comes from a convolution that starts small, and is added as it is.
        h = 0.1 * h if self.is_maps else h
        with torch.no_grad(), data_dependent_init(flow):
            flow(z, flow.condition(h))
        return flow


def awaken(module: nn.Module, size: float = 0.5) -> nn.Module:
    """Perturb every parameter, and compute in float64 from then on."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * size)
    return module.double()


CASES: dict[str, FlowCase] = {
    "diagonal": FlowCase(DiagonalPosterior()),
    "linear-iaf": FlowCase(LinearIafPosterior()),
    "iaf-linear": FlowCase(IafPosterior(steps=1, hidden=())),
    "iaf-1x1-layer": FlowCase(IafPosterior(steps=1, hidden=(11,))),
    "iaf-2x2-layers": FlowCase(IafPosterior(steps=2, hidden=(16, 13))),
    "iaf-narrow": FlowCase(IafPosterior(steps=2, hidden=(2, 3))),
    "iaf-3-same-order": FlowCase(IafPosterior(steps=3, hidden=(9, 9), reverse=False)),
    "iaf-affine": FlowCase(IafPosterior(steps=2, hidden=(16, 13), update="affine")),
    "iaf-affine-linear": FlowCase(IafPosterior(steps=2, hidden=(), update="affine")),
    "iaf-location": FlowCase(IafPosterior(steps=2, hidden=(16, 13), update="location")),
    "iaf-location-linear": FlowCase(IafPosterior(steps=1, hidden=(), update="location")),
    "planar": FlowCase(PlanarPosterior(steps=5)),
    "coupling-affine": FlowCase(CouplingPosterior(steps=3, hidden=(16, 13))),
    "coupling-additive": FlowCase(CouplingPosterior(steps=3, hidden=(16, 13), update="additive")),
    "coupling-even": FlowCase(CouplingPosterior(steps=2, hidden=(9,)), (4,)),
    "maps-diagonal": FlowCase(DiagonalPosterior(), MAPS),
    "conv-iaf": FlowCase(ConvIafPosterior(), MAPS),
    "conv-iaf-linear": FlowCase(ConvIafPosterior(hidden_layers=0), MAPS),
    "conv-iaf-gated": FlowCase(ConvIafPosterior(hidden_layers=1, update="gated"), MAPS),
    "conv-iaf-location": FlowCase(ConvIafPosterior(update="location"), MAPS),
    "conv-iaf-location-linear": FlowCase(
        ConvIafPosterior(hidden_layers=0, update="location"), MAPS
    ),
    "conv-iaf-2-reversed": FlowCase(ConvIafPosterior(steps=2), MAPS),
    "conv-iaf-2-same-order": FlowCase(ConvIafPosterior(steps=2, reverse=False), MAPS),
    "conv-iaf-narrow": FlowCase(ConvIafPosterior(), MAPS, channels=2),
    "conv-iaf-one-channel": FlowCase(ConvIafPosterior(), (1, 3, 4)),
}
FLAT = [name for name, case in CASES.items() if not case.is_maps]
OVER_MAPS = [name for name, case in CASES.items() if case.is_maps]


@pytest.fixture(scope="session")
def flow_cases() -> dict[str, FlowCase]:
    """All posteriors under test, by name."""
    return CASES


@pytest.fixture(params=CASES)
def flow_case(request: pytest.FixtureRequest) -> FlowCase:
    """Each posterior."""
    return CASES[request.param]


@pytest.fixture(params=FLAT)
def flat_case(request: pytest.FixtureRequest) -> FlowCase:
    """Each posterior over vectors."""
    return CASES[request.param]


@pytest.fixture(params=OVER_MAPS)
def map_case(request: pytest.FixtureRequest) -> FlowCase:
    """Each posterior over feature maps."""
    return CASES[request.param]
