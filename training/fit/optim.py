"""The optimiser, Polyak averaging, and the guard against bad steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.config import OptimConfig
from training.errors import TrainingError

# The running mean of the gradient's norm looks about a hundred steps back ...
NORM_DECAY = 0.99
# ... and is trusted after as many.
NORM_SETTLED = 100
# So many exploding steps in a row are no accident but a new level: take them.
ESCAPE_AFTER = 20
# So many steps in a row without a finite gradient, and nothing will get better.
DIVERGED_AFTER = 100

# torch has a fused kernel for Adam, none for Adamax, whose operations go over lists of tensors.
OPTIMIZERS: dict[str, tuple[Any, dict[str, bool]]] = {
    "adamax": (torch.optim.Adamax, {"foreach": True}),
    "adam": (torch.optim.Adam, {"fused": True}),
}


PRIOR = "prior."  # what the names of a prior's parameters begin with


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Adamax or Adam (Kingma & Ba 2015); `set_rate` gives it the rate of a step.

    The parameters of a prior's flow are a group with a rate and a weight decay of their own.
    """
    cls, fastest = OPTIMIZERS[config.kind]
    named = list(model.named_parameters())
    prior = [parameter for name, parameter in named if name.startswith(PRIOR)]
    others = [parameter for name, parameter in named if not name.startswith(PRIOR)]
    groups = [
        {"params": others, "factor": 1.0, "weight_decay": config.weight_decay},
        {
            "params": prior,
            "factor": config.prior_rate,
            "weight_decay": config.prior_weight_decay,
        },
    ]
    optimizer: torch.optim.Optimizer = cls(
        [group for group in groups if group["params"]], lr=config.learning_rate, **fastest
    )
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step be at this rate, times each group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as tensors named `parameter|key`."""
    return {
        f"{name}|{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave; none at all leaves the optimiser fresh.

    Raises `TrainingError` where a tensor belongs to no parameter of the model.
    """
    parameters = dict(model.named_parameters())
    fused = bool(optimizer.defaults.get("fused"))
    for full_name, value in tensors.items():
        name, _, key = full_name.partition("|")
        if name not in parameters:
            raise TrainingError(f"the optimiser's state names {name!r}, which the model lacks")
        target = parameters[name]
        # "step" counts on the CPU, but for fused kernels; the others lie in memory as their
        # parameter does, for kernels over mixed layouts are slower.
        like = target if key != "step" else value.to(target.device) if fused else value
        optimizer.state[target][key] = torch.empty_like(like, requires_grad=False).copy_(value)


class Ema:
    """Polyak averaging: an exponential moving average of parameters, held by a second model.

    The decay rises as (1 + t) / (10 + t) up to its value, so that early averages forget the
    initialisation.
    """

    def __init__(self, model: nn.Module, average: nn.Module, decay: float) -> None:
        self.decay = decay
        self.source: list[Tensor] = list(model.parameters())
        self.target: list[Tensor] = list(average.parameters())
        for parameter in self.target:
            parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, updates_done: int) -> None:
        """Move the average towards the parameters after update number `updates_done`."""
        decay = min(self.decay, (1 + updates_done) / (10 + updates_done))
        torch._foreach_lerp_(self.target, self.source, 1 - decay)


@dataclass
class StepGuard:
    """Decides whether a step is taken: never with a gradient that is not finite or explodes.

    Its numbers are the state that a resumed run needs; those "in a row" are since the last step
    that was taken.
    """

    factor: float
    mean_norm: float = 0.0
    taken: int = 0
    skipped_nonfinite: int = 0
    skipped_exploding: int = 0
    nonfinite_in_a_row: int = 0
    exploding_in_a_row: int = 0

    @property
    def skipped(self) -> int:
        """All steps skipped so far."""
        return self.skipped_nonfinite + self.skipped_exploding

    def allows(self, loss: float, norm: float) -> bool:
        """Judge a step by its loss and its gradient's norm, and count it.

        Raises `TrainingError` when training has diverged for good.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.skipped_nonfinite += 1
            self.nonfinite_in_a_row += 1
            if self.nonfinite_in_a_row >= DIVERGED_AFTER:
                raise TrainingError(
                    f"{self.nonfinite_in_a_row} steps in a row had no finite gradient: training "
                    "has diverged. Use --resume with --bf16 off, or start a new run with a lower "
                    "--learning-rate."
                )
            return False
        settled = self.factor > 0 and self.taken >= NORM_SETTLED
        explodes = settled and norm > self.factor * self.mean_norm
        if explodes and self.exploding_in_a_row < ESCAPE_AFTER:
            self.skipped_exploding += 1
            self.exploding_in_a_row += 1
            return False
        self.nonfinite_in_a_row = self.exploding_in_a_row = 0
        self.taken += 1
        weight = 1.0 if explodes else max(1 - NORM_DECAY, 1 / self.taken)
        self.mean_norm += weight * (norm - self.mean_norm)
        return True

    def state(self) -> dict[str, float]:
        """Give what `restore` takes."""
        return {k: v for k, v in vars(self).items() if k != "factor"}

    def restore(self, state: Mapping[str, float]) -> None:
        """Put back what `state` gave."""
        for key in self.state():
            value = getattr(self, key)  # kept where an older checkpoint has none
            setattr(self, key, type(value)(state.get(key, value)))
