"""A run's configuration: the model, the data, the optimisation; frozen, validated, JSON.

What changes the mathematics of a run stands in `RunConfig` and is kept in its `config.json`.
What only changes how fast it is computed stands in `Runtime` and may differ at every resume.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from model.config import (
    ConfigError,
    ConvVaeConfig,
    ModelConfig,
    config_from_dict,
    construct,
    preset,
    require,
)

Schedule = Literal["constant", "cosine", "trapezoid", "budget"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
Switch = Literal["auto", "on", "off"]

# Epochs of a run that its minutes end: more than any run takes, so that it never ends by itself.
UNENDING_EPOCHS = 100_000


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images: "mnist", "mnist-static", "fashion-mnist", "cifar10" or "folder:PATH".

    `size`, `channels` and `fit` ("crop": scaled and cut to the middle, "pad": scaled into black)
    are a folder's. With `horizontal_flips` every second image, drawn anew
    at each presentation, is shown to the training mirrored; of `distorted`, a share from 0 to 1,
    they are turned, stretched and slanted a little. `with_validation`: the validation images are
    trained on, too.
    """

    name: str = "mnist"
    size: tuple[int, int] | None = None
    channels: int | None = None
    fit: Literal["crop", "pad"] = "crop"
    horizontal_flips: bool = False
    distorted: float = 0.0
    with_validation: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.distorted <= 1, f"data.distorted must be in [0, 1], not {self.distorted}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser, its schedule, and the averaging of weights.

    The learning rate rises linearly over `warmup_steps` (at most a tenth of the run); then it is
    constant, or follows a cosine to zero at the last step, or ("trapezoid") stays and falls
    linearly to zero over the last `decay_fraction` of all steps (0: never), so that a run can be
    lengthened until the fall begins. "budget" is a trapezoid whose fall lies in the last part of
    a call's minutes (`--budget-minutes`), however many steps that is.
    A step whose gradient norm is not finite, or above `skip_factor` times its running mean, is
    skipped (0: only the former); a gradient that is taken is cut to a norm of `clip_norm` (0: as
    it is). A flow of the prior learns at `prior_rate` times the learning rate, with a penalty
    `prior_weight_decay` of its own. `batch_size` counts all images of a step, over all processes;
    `accumulate` divides them into so many micro-batches, computed one after another. Under free
    bits each micro-batch has a mean of its own, so that it is another objective.
    """

    kind: Literal["adamax", "adam"] = "adamax"
    learning_rate: float = 0.002
    batch_size: int = 128
    warmup_steps: int = 400
    schedule: Schedule = "trapezoid"
    decay_fraction: float = 0.4
    weight_decay: float = 0.0
    prior_rate: float = 0.25
    prior_weight_decay: float = 0.0
    ema_decay: float = 0.999
    skip_factor: float = 10.0
    clip_norm: float = 0.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        require(self.kind in ("adamax", "adam"), f"optim.kind is adamax or adam, not {self.kind!r}")
        require(
            self.schedule in SCHEDULES,
            f"optim.schedule is one of {', '.join(SCHEDULES)}, not {self.schedule!r}",
        )
        require(
            math.isfinite(self.learning_rate) and self.learning_rate > 0,
            f"optim.learning_rate must be positive, not {self.learning_rate}",
        )
        require(self.batch_size >= 1, f"optim.batch_size must be positive, not {self.batch_size}")
        require(self.accumulate >= 1, f"optim.accumulate must be positive, not {self.accumulate}")
        require(
            self.batch_size % self.accumulate == 0,
            f"a batch of {self.batch_size} images does not divide into {self.accumulate} "
            "micro-batches: change --batch-size or --accumulate",
        )
        require(self.warmup_steps >= 0, "optim.warmup_steps must not be negative")
        require(
            0 <= self.decay_fraction <= 1,
            f"optim.decay_fraction must be in [0, 1], not {self.decay_fraction}",
        )
        require(0 <= self.ema_decay < 1, f"optim.ema_decay must be in [0, 1), not {self.ema_decay}")
        for name in ("weight_decay", "prior_weight_decay", "prior_rate", "clip_norm"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"optim.{name} must be finite and >= 0, not {value}")
        require(
            self.skip_factor == 0 or self.skip_factor > 1,
            f"optim.skip_factor must be 0 (off) or above 1, not {self.skip_factor}",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, from which seed, towards which objective.

    With `importance_samples` K > 1 that is the importance-weighted bound of K draws an image
    (Burda et al. 2016), to which neither free bits nor the KL's warm-up apply.
    """

    epochs: int = 100
    seed: int = 0
    free_bits_nats: float = 0.0
    kl_warmup_epochs: float = 5.0
    kl_warmup_start: float = 0.1
    importance_samples: int = 1

    @property
    def has_free_bits(self) -> bool:
        """Whether the objective has them: then means of micro-batches are not the batch's."""
        return self.free_bits_nats > 0 and self.importance_samples == 1

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"train.epochs must be at least 1, not {self.epochs}")
        require(0 <= self.seed < 2**63, f"train.seed must be in [0, 2^63), not {self.seed}")
        for name in ("free_bits_nats", "kl_warmup_epochs"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"train.{name} must be finite and >= 0, not {value}")
        require(
            self.importance_samples >= 1,
            f"train.importance_samples must be at least 1, not {self.importance_samples}",
        )
        require(0 <= self.kl_warmup_start <= 1, "train.kl_warmup_start must be in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that determines a run's numbers on one machine."""

    preset: str = ""
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_dict(self) -> dict[str, Any]:
        """Give the configuration as JSON values."""
        return {**asdict(self), "model": self.model.to_dict()}


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How a run is computed: no number in it is part of the run's definition.

    `compile` and `bf16`: "auto" turns each on where it pays (a long run; a processor or GPU with
    bfloat16 products). `cuda_graphs` replays a compiled step as CUDA graphs, in one process.
    `threads`: 0 leaves torch's choice. `timeout_minutes`: how long a process of several waits for
    the others before it gives up.
    """

    device: str = "auto"
    compile: Switch = "auto"
    bf16: Switch = "auto"
    channels_last: bool = True
    threads: int = 0
    cuda_graphs: Literal["on", "off"] = "off"
    timeout_minutes: float = 10.0

    def __post_init__(self) -> None:
        switches = get_args(Switch)
        for name in ("compile", "bf16"):
            value = getattr(self, name)
            require(value in switches, f"{name} is one of {', '.join(switches)}, not {value!r}")
        require(self.threads >= 0, f"threads must not be negative, not {self.threads}")
        require(
            self.cuda_graphs in ("on", "off"),
            f"cuda_graphs is on or off, not {self.cuda_graphs!r}",
        )
        require(
            not (self.cuda_graphs == "on" and self.compile == "off"),
            "CUDA graphs are captured by the compiler: --cuda-graphs on contradicts --compile off",
        )
        require(
            0 < self.timeout_minutes < math.inf,
            f"timeout_minutes must be finite and positive, not {self.timeout_minutes}",
        )


def _part(cls: type[Any], values: Any, what: str) -> Any:
    require(isinstance(values, Mapping), f"{what} must be an object, not {values!r}")
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    require(not unknown, f"{what} has no field {', '.join(unknown)}; it has {sorted(known)}")
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return construct(cls, given, what)


def run_config_from_dict(values: Mapping[str, Any]) -> RunConfig:
    """Rebuild a `RunConfig` from `to_dict`'s output; raises `ConfigError` naming what is wrong."""
    unknown = sorted(set(values) - {"preset", "model", "data", "optim", "train"})
    require(not unknown, f"a run's configuration has no part {', '.join(unknown)}")
    require("model" in values, "a run's configuration needs the part 'model'")
    return RunConfig(
        preset=values.get("preset", ""),
        model=config_from_dict(values["model"]),
        data=_part(DataConfig, values.get("data", {}), "data"),
        optim=_part(OptimConfig, values.get("optim", {}), "optim"),
        train=_part(TrainConfig, values.get("train", {}), "train"),
    )


def _ladder(
    batch_size: int, epochs: int, data: DataConfig, learning_rate: float = 0.002, **optim: Any
) -> dict[str, Any]:
    """The authors' settings: free bits of 0.1 nats a part, which take the KL warm-up's place.

    The small ladders learn with small batches and a higher rate, which was measured to be quicker
    (training/RUNS.md).
    """
    return {
        "data": data,
        "optim": OptimConfig(batch_size=batch_size, learning_rate=learning_rate, **optim),
        "train": TrainConfig(epochs=epochs, free_bits_nats=0.1, kl_warmup_epochs=0.0),
    }


_FASHION = DataConfig(name="fashion-mnist")
_CIFAR10 = DataConfig(name="cifar10", horizontal_flips=True)
# What a preset's run has other than the defaults, which are the MNIST model's.
_RECIPES: dict[str, dict[str, Any]] = {
    "fashion-mnist": _ladder(64, 20, _FASHION, 0.01),
    "fashion-mnist-mixture": _ladder(64, 20, _FASHION, 0.01),
    "fashion-mnist-mixture-diagonal": _ladder(64, 20, _FASHION, 0.01),
    "fashion-mnist-flat": {"data": _FASHION},
    "mnist-ladder": _ladder(128, 100, DataConfig()),
    "cifar10-small": _ladder(32, 20, _CIFAR10, 0.01),
    "cifar10-mixture": _ladder(32, 40, _CIFAR10, 0.005, kind="adam"),
    "cifar10-medium": _ladder(256, 200, _CIFAR10),
    "cifar10-paper": _ladder(256, 400, _CIFAR10),
}


def run_preset(name: str) -> RunConfig:
    """The run that a preset's name stands for: its architecture, its data, its settings.

    Raises `ConfigError` listing the names for an unknown one.
    """
    return RunConfig(model=preset(name), preset=name, **_RECIPES.get(name, {}))


def overridden(config: RunConfig, overrides: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """Change what is named, part -> field -> value; a value of None leaves the field as it is."""
    for part, fields_of_part in overrides.items():
        given = {name: value for name, value in fields_of_part.items() if value is not None}
        config = replace(config, **{part: replace(getattr(config, part), **given)})
    return config


def for_images(config: RunConfig, shape: tuple[int, int, int]) -> RunConfig:
    """Fit a preset to images `(C, H, W)`; raises `ConfigError` where its model cannot take them.

    A convolutional model gets stride-2 blocks, each of the last one's width, until the smallest
    side is at most 7 pixels, or loses some while it would vanish. A ladder keeps its levels.
    """
    model = config.model
    if shape == model.image_shape:
        return config
    if isinstance(model, ConvVaeConfig):
        channels = list(model.channels)
        smallest = min(shape[1:])
        while len(channels) > 1 and smallest < 2 ** len(channels):
            channels.pop()
        while math.ceil(smallest / 2 ** len(channels)) > 7:
            channels.append(channels[-1])
        return replace(config, model=replace(model, image_shape=shape, channels=tuple(channels)))
    return replace(config, model=replace(model, image_shape=shape))


__all__ = [
    "UNENDING_EPOCHS",
    "ConfigError",
    "DataConfig",
    "OptimConfig",
    "RunConfig",
    "Runtime",
    "TrainConfig",
    "for_images",
    "overridden",
    "run_config_from_dict",
    "run_preset",
]
