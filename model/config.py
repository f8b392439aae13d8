"""Architecture choices as frozen, validated dataclasses, and the presets that name them.

A configuration is data: it round-trips through JSON (`to_dict`, `config_from_dict`), rejects
unknown and contradictory values by name, and says nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal

LikelihoodKind = Literal["bernoulli", "discretized_logistic"]
LIKELIHOODS: tuple[str, ...] = ("bernoulli", "discretized_logistic")


class ConfigError(ValueError):
    """A configuration that names something unknown or contradicts itself."""


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class DiagonalPosterior:
    """q(z|x) a Gaussian with diagonal covariance: the paper's baseline, no flow at all."""

    kind: ClassVar[str] = "diagonal"


@dataclass(frozen=True, kw_only=True)
class IafPosterior:
    """q(z|x) a diagonal Gaussian followed by `steps` IAF transformations (paper, Algorithm 1).

    `hidden` lists the widths of each MADE's hidden layers. The paper's "2-layer MADE" is read
    as two hidden layers; `IAF 2x320` of its Table 1 is `steps=2, hidden=(320, 320)`.
    `gate_bias` is the value at which the bias of s starts, before the sigmoid (section 4).
    """

    kind: ClassVar[str] = "iaf"
    steps: int = 2
    hidden: tuple[int, ...] = (320, 320)
    gate_bias: float = 1.5
    reverse: bool = True

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"posterior.steps must be at least 1, not {self.steps}")
        require(
            all(width >= 1 for width in self.hidden),
            f"posterior.hidden must hold positive widths, not {self.hidden}",
        )


PosteriorConfig = DiagonalPosterior | IafPosterior
POSTERIORS: dict[str, type[PosteriorConfig]] = {
    cls.kind: cls for cls in (DiagonalPosterior, IafPosterior)
}


@dataclass(frozen=True, kw_only=True)
class ConvVaeConfig:
    """The paper's MNIST model (Appendix B): one stochastic layer between two ResNets.

    `channels` are the feature maps of the stride-2 blocks; a stride-1 block stands between
    every two of them. `hidden` is the fully connected layer of both networks.
    """

    kind: ClassVar[str] = "conv_vae"
    image_shape: tuple[int, int, int] = (1, 28, 28)
    likelihood: LikelihoodKind = "bernoulli"
    channels: tuple[int, ...] = (16, 32, 32)
    hidden: int = 450
    latent_dim: int = 32
    posterior: PosteriorConfig = field(default_factory=IafPosterior)

    def __post_init__(self) -> None:
        require(
            len(self.image_shape) == 3 and all(n >= 1 for n in self.image_shape),
            f"image_shape must be (channels, height, width), not {self.image_shape}",
        )
        require(
            self.likelihood in LIKELIHOODS,
            f"likelihood must be one of {', '.join(LIKELIHOODS)}, not {self.likelihood!r}",
        )
        require(
            len(self.channels) >= 1 and all(n >= 1 for n in self.channels),
            f"channels must hold at least one positive width, not {self.channels}",
        )
        require(
            min(self.image_shape[1:]) >= 2 ** len(self.channels),
            f"an image of {self.image_shape[1]}x{self.image_shape[2]} is too small for "
            f"{len(self.channels)} stride-2 blocks; use fewer channels",
        )
        require(self.hidden >= 1, f"hidden must be positive, not {self.hidden}")
        require(self.latent_dim >= 1, f"latent_dim must be positive, not {self.latent_dim}")

    def to_dict(self) -> dict[str, Any]:
        """Give the configuration as plain JSON values, each part with its `kind`."""
        return _plain(self)


ModelConfig = ConvVaeConfig
MODELS: dict[str, type[ModelConfig]] = {cls.kind: cls for cls in (ConvVaeConfig,)}


def _plain(config: Any) -> dict[str, Any]:
    values = {"kind": config.kind, **{f.name: getattr(config, f.name) for f in fields(config)}}
    return {k: _plain_value(v) for k, v in values.items()}


def _plain_value(value: Any) -> Any:
    if is_dataclass(value):
        return _plain(value)
    return list(value) if isinstance(value, tuple) else value


def _build(registry: Mapping[str, type[Any]], values: Mapping[str, Any], what: str) -> Any:
    require(isinstance(values, Mapping), f"{what} must be an object with a 'kind', not {values!r}")
    kind = values.get("kind")
    if kind not in registry:
        raise ConfigError(f"{what}.kind must be one of {', '.join(registry)}, not {kind!r}")
    cls = registry[str(kind)]
    known = {f.name for f in fields(cls)}
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k != "kind"
    }
    unknown = sorted(set(given) - known)
    require(
        not unknown,
        f"{what} of kind {kind!r} has no field {', '.join(unknown)}; it has "
        f"{', '.join(sorted(known)) or 'none'}",
    )
    if "posterior" in given:
        given["posterior"] = _build(POSTERIORS, given["posterior"], f"{what}.posterior")
    return construct(cls, given, what)


def construct(cls: type[Any], values: Mapping[str, Any], what: str) -> Any:
    """Call a configuration's class; a value of the wrong type is a `ConfigError` naming `what`."""
    try:
        return cls(**values)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"{what} has a value of the wrong type ({error}): {values}") from error


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """Rebuild a configuration from `to_dict`'s output.

    Raises `ConfigError` naming the field when one is unknown, missing its `kind`, or invalid.
    """
    config: ModelConfig = _build(MODELS, values, "model")
    return config


def _mnist(steps: int, width: int) -> ConvVaeConfig:
    return ConvVaeConfig(posterior=IafPosterior(steps=steps, hidden=(width, width)))


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "mnist": lambda: _mnist(2, 320),
    "mnist-diagonal": lambda: ConvVaeConfig(posterior=DiagonalPosterior()),
    "mnist-iaf-2x1920": lambda: _mnist(2, 1920),
    "mnist-iaf-4x1920": lambda: _mnist(4, 1920),
    "mnist-iaf-8x1920": lambda: _mnist(8, 1920),
    "fashion-mnist": lambda: ConvVaeConfig(likelihood="discretized_logistic"),
}


def preset_names() -> tuple[str, ...]:
    """Give the names that `preset` knows."""
    return tuple(PRESETS)


def preset(name: str) -> ModelConfig:
    """Give the named architecture; raises `ConfigError` listing the names for an unknown one."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()
