"""The rows of `ablations.py`: what each changes in a run, and how.

Most change the run's configuration. Three choices have no switch, because nobody should turn them
off: data-dependent initialisation, weight normalisation, and how a convolutional model's gains
are stored. They are changed here, from outside, in the model that the trainer builds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import training.fit.trainer
from model.config import DiagonalPosterior, ModelConfig, ResnetVaeConfig
from model.layers import WeightNormLayer
from training.config import RunConfig, overridden

Configure = Callable[[RunConfig], RunConfig]
Alter = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Row:
    """One line of the table. `alter` changes the model before its initialisation."""

    name: str
    what: str
    configure: Configure = lambda config: config
    alter: Alter | None = None
    data_init: bool = True

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Make trainers build the row's model inside."""
        loop: Any = training.loop
        build, initialise = loop.build_model, loop.data_dependent_init
        alter = self.alter

        def altered(config: ModelConfig) -> Any:
            model = build(config)
            if alter is not None:
                alter(model)
            return model

        loop.build_model = altered
        if not self.data_init:
            loop.data_dependent_init = contextlib.nullcontext
        try:
            yield
        finally:
            loop.build_model, loop.data_dependent_init = build, initialise


def _normalised(model: nn.Module) -> Iterator[WeightNormLayer]:
    return (layer for layer in model.modules() if isinstance(layer, WeightNormLayer))


class Unnormalised:
    """Mixed into a weight-normalised layer: w = v, masked, and no gain of its own.

    Data-dependent initialisation gives the same start: the gain that it finds goes into v.
    """

    v: nn.Parameter
    g: nn.Parameter
    mask: Tensor | None
    out_dim: int

    def direction(self) -> Tensor:
        """Give v with the mask applied, whatever its norm."""
        return self.v if self.mask is None else self.v * self.mask

    def weight(self) -> Tensor:
        """Give the weight: v."""
        return self.direction()

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set v and bias so that pre-activations have mean 0 and the wanted deviation."""
        super().initialize(x)  # type: ignore[misc]
        shape = [1] * self.v.dim()
        shape[self.out_dim] = -1
        self.v.mul_(self.g.view(shape))
        self.g.fill_(1.0)


def without_weight_norm(model: nn.Module) -> None:
    """Make every layer's weight a parameter as it is."""
    for layer in _normalised(model):
        layer.gain = "linear"
        with torch.no_grad():
            layer.g.fill_(1.0)
        layer.g.requires_grad_(False)
        layer.__class__ = type(f"Plain{type(layer).__name__}", (Unnormalised, type(layer)), {})


def with_gain(gain: str) -> Alter:
    """Store every layer's gain as `model.layers.WeightNormLayer` describes."""

    def alter(model: nn.Module) -> None:
        for layer in _normalised(model):
            layer.gain = gain  # type: ignore[assignment]
            with torch.no_grad():
                layer.g.fill_(1.0 if gain == "linear" else 0.0)

    return alter


def _set(part: str, **changes: Any) -> Configure:
    """Change fields of one part of the configuration: model, optim, train."""
    return lambda config: overridden(config, {part: changes})


def _posterior(where: Callable[[Any], bool] = lambda _posterior: True, **changes: Any) -> Configure:
    """Change those fields of a flow's configuration, where they have a meaning to it."""

    def configure(config: RunConfig) -> RunConfig:
        posterior: Any = config.model.posterior
        if isinstance(posterior, DiagonalPosterior) or not where(posterior):
            return config
        model: Any = replace(config.model, posterior=replace(posterior, **changes))
        return replace(config, model=model)

    return configure


def _gates(posterior: Any) -> bool:
    return bool(posterior.update == "gated")


def _has_several_steps(posterior: Any) -> bool:
    return bool(posterior.steps > 1)


def _rate(factor: float, batch: float = 1.0) -> Configure:
    """Multiply the learning rate and the batch."""

    def configure(config: RunConfig) -> RunConfig:
        optim = config.optim
        size = max(1, round(optim.batch_size * batch))
        rate = optim.learning_rate * factor
        return overridden(config, {"optim": {"learning_rate": rate, "batch_size": size}})

    return configure


def _adam(config: RunConfig) -> RunConfig:
    rate = config.optim.learning_rate / 2
    return overridden(config, {"optim": {"kind": "adam", "learning_rate": rate}})


def _widened(config: RunConfig) -> RunConfig:
    """Twice the feature maps, both networks' alike."""
    model: Any = config.model
    maps = model.channels
    wide = 2 * maps if isinstance(maps, int) else tuple(2 * n for n in maps)
    return overridden(config, {"model": {"channels": wide}})


def _bottom_up(config: RunConfig) -> RunConfig:
    if not isinstance(config.model, ResnetVaeConfig):
        return config
    return replace(config, model=replace(config.model, inference="bottom_up"))


ROWS = (
    Row("base", "the preset as it is"),
    Row(
        "diagonal",
        "diagonal posterior instead of IAF",
        _set("model", posterior=DiagonalPosterior()),
    ),
    Row("gated", "z' = sigma z + (1 - sigma) m", _posterior(update="gated")),
    Row("affine", "z' = (z - 0.1 m) / exp(0.1 s)", _posterior(update="affine")),
    Row("location", "z' = z + m, no scale", _posterior(update="location")),
    Row("gate-bias-0", "the gate starts at one half", _posterior(_gates, gate_bias=0.0)),
    Row(
        "same-order",
        "the order is not reversed between steps",
        _posterior(_has_several_steps, reverse=False),
    ),
    Row("bottom-up", "bottom-up inference", _bottom_up),
    Row("free-bits-0", "no free bits", _set("train", free_bits_nats=0.0)),
    Row("free-bits-0.1", "0.1 free nats a part", _set("train", free_bits_nats=0.1)),
    Row("free-bits-1", "1 free nat a part", _set("train", free_bits_nats=1.0)),
    Row("free-bits-8", "8 free nats a part", _set("train", free_bits_nats=8.0)),
    Row("no-kl-warmup", "the whole KL from the first step", _set("train", kl_warmup_epochs=0.0)),
    Row("no-data-init", "gains 1, biases 0 at the start", data_init=False),
    Row("no-weight-norm", "plain weights, the same start", alter=without_weight_norm),
    Row("rate-x3", "3 times the learning rate", _rate(3.0)),
    Row("rate-x6", "6 times the learning rate", _rate(6.0)),
    Row("rate-x3-batch-half", "3 times the rate, half the batch", _rate(3.0, batch=0.5)),
    Row("rate-x3-batch-twice", "3 times the rate, twice the batch", _rate(3.0, batch=2.0)),
    Row("adam", "Adam at half the rate instead of Adamax", _adam),
    Row("ema-0.99", "weights averaged over 100 steps", _set("optim", ema_decay=0.99)),
    Row("weight-decay", "an L2 penalty of 0.0001", _set("optim", weight_decay=1e-4)),
    Row("no-skip", "steps of large gradients are taken", _set("optim", skip_factor=0.0)),
    Row("wide", "twice the feature maps", _widened),
    Row("gain-exp", "gains exp(g)", alter=with_gain("exp")),
    Row("gain-exp-third", "exp(g), g a third at the start", alter=with_gain("exp_third")),
)


def rows_for(base: RunConfig) -> list[Row]:
    """The rows that differ from `base`, and the base itself first."""
    return [
        row
        for row in ROWS
        if row.name == "base"
        or row.alter is not None
        or not row.data_init
        or row.configure(base) != base
    ]
