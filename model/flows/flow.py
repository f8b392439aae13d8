"""Building a posterior's flow from its configuration.

Flat posteriors (`build_flow`) transform vectors `[B, D]`; those of a ladder (`build_conv_flow`)
feature maps `[B, C, H, W]`. The steps themselves are in `iaf` (with the networks of `made`),
`linear_iaf`, `planar` and `coupling` beside this file.
"""

from __future__ import annotations

from model.config import (
    ConvIafPosterior,
    CouplingPosterior,
    DiagonalPosterior,
    FlatPosterior,
    Gain,
    IafPosterior,
    LinearIafPosterior,
    MapPosterior,
    PlanarPosterior,
)
from model.flows.chain import Conditions, FlowChain, FlowStep
from model.flows.coupling import AdditiveCoupling, AffineCoupling
from model.flows.iaf import IafStep
from model.flows.linear_iaf import LinearIafStep
from model.flows.made import ConvMade, Made
from model.flows.planar import PlanarStep
from model.flows.updates import Affine, Gated, Location, Update

__all__ = [
    "Conditions",
    "FlowChain",
    "FlowStep",
    "build_conv_flow",
    "build_flow",
    "conv_context_channels",
]


def _update(config: IafPosterior | ConvIafPosterior) -> Update:
    if config.update == "gated":
        return Gated(config.gate_bias)
    return Affine() if config.update == "affine" else Location()


def _iaf(config: IafPosterior, dim: int, context_dim: int) -> list[FlowStep]:
    # Reversing the order between steps is done in the masks: no permutation to compute.
    update = _update(config)
    orders = (config.reverse and t % 2 == 1 for t in range(config.steps))
    return [
        IafStep(Made(dim, context_dim, config.hidden, update, reverse=reverse), update)
        for reverse in orders
    ]


def _coupling(config: CouplingPosterior, dim: int, context_dim: int) -> list[FlowStep]:
    step = AffineCoupling if config.update == "affine" else AdditiveCoupling
    return [step(dim, context_dim, config.hidden, swap=t % 2 == 1) for t in range(config.steps)]


def build_flow(config: FlatPosterior, dim: int, context_dim: int) -> FlowChain:
    """Build the flow that `config` names over `dim` latents and a context h `[B, context_dim]`.

    Raises `ConfigError` where `dim` is too small for it.
    """
    match config:
        case DiagonalPosterior():
            return FlowChain([])
        case IafPosterior():
            return FlowChain(_iaf(config, dim, context_dim))
        case LinearIafPosterior():
            return FlowChain([LinearIafStep(dim, context_dim)])
        case PlanarPosterior():
            return FlowChain([PlanarStep(dim, context_dim) for _ in range(config.steps)])
        case CouplingPosterior():
            return FlowChain(_coupling(config, dim, context_dim))


def conv_context_channels(config: MapPosterior, z_channels: int, channels: int) -> int:
    """Count the context maps that `build_conv_flow`'s chain takes; 0: it takes no context."""
    if isinstance(config, DiagonalPosterior):
        return 0
    return channels if config.hidden_layers else _update(config).heads * z_channels


def build_conv_flow(
    config: MapPosterior, z_channels: int, channels: int, *, gain: Gain = "linear"
) -> FlowChain:
    """Build the flow that `config` names over maps `[B, z_channels, H, W]`, H and W any.

    Its context has `conv_context_channels` maps of the same H and W; every step has an
    autoregressive network of its own and adds the same context to it. `parts` is `z_channels`
    where the density splits by channel (`FlowChain`), else 1.
    """
    if isinstance(config, DiagonalPosterior):
        return FlowChain([], parts=z_channels)
    update = _update(config)
    steps = []
    for t in range(config.steps):
        reverse = config.reverse and t % 2 == 1
        made = ConvMade(
            z_channels, channels, config.hidden_layers, update, reverse=reverse, gain=gain
        )
        steps.append(IafStep(made, update))
    one_order = config.steps == 1 or not config.reverse
    return FlowChain(steps, parts=z_channels if one_order else 1)
