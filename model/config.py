"""Architecture choices as frozen, validated dataclasses, and the presets that name them.

A configuration is data: it round-trips through JSON (`to_dict`, `config_from_dict`), rejects
unknown and contradictory values by name, and says nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from model.posteriors import (
    FLAT_POSTERIORS,
    MAP_POSTERIORS,
    POSTERIORS,
    ConvIafPosterior,
    CouplingPosterior,
    DiagonalPosterior,
    FlatPosterior,
    IafPosterior,
    LinearIafPosterior,
    MapPosterior,
    PlanarPosterior,
    PosteriorConfig,
)
from model.priors import PRIORS, CouplingPrior, PriorConfig, StandardNormalPrior
from model.validation import (
    ConfigError,
    construct,
    plain,
    require,
    require_choice,
    require_counts,
)

LikelihoodKind = Literal["bernoulli", "discretized_logistic", "logistic_mixture"]
LIKELIHOODS: tuple[str, ...] = ("bernoulli", "discretized_logistic", "logistic_mixture")
# Of pixels that are black or white: a grey one is the chance of white, and is drawn.
BINARY_LIKELIHOODS: tuple[str, ...] = ("bernoulli",)
ScaleKind = Literal["scalar", "channel", "pixel"]
SCALES: tuple[str, ...] = ("scalar", "channel", "pixel")
Direction = Literal["bidirectional", "bottom_up"]
DIRECTIONS: tuple[str, ...] = ("bidirectional", "bottom_up")
Gain = Literal["linear", "exp", "exp_third"]
Head = Literal["transposed", "shuffle"]
HEADS: tuple[str, ...] = ("transposed", "shuffle")
GAINS: tuple[str, ...] = ("linear", "exp", "exp_third")


def _require_image_shape(shape: tuple[int, int, int]) -> None:
    require(
        len(shape) == 3 and all(n >= 1 for n in shape),
        f"image_shape must be (channels, height, width), not {shape}",
    )


def _require_prior(prior: object) -> None:
    kind = getattr(prior, "kind", prior)
    require(
        isinstance(prior, tuple(PRIORS.values())),
        f"prior is one of {', '.join(PRIORS)}, not {kind}",
    )


def _require_posterior(posterior: object, allowed: tuple[type[Any], ...], model: str) -> None:
    names = ", ".join(cls.kind for cls in allowed)
    kind = getattr(posterior, "kind", posterior)
    require(
        isinstance(posterior, allowed), f"the posterior of a {model} is one of {names}, not {kind}"
    )


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
    posterior: FlatPosterior = field(default_factory=IafPosterior)
    prior: PriorConfig = field(default_factory=StandardNormalPrior)

    def __post_init__(self) -> None:
        _require_image_shape(self.image_shape)
        require_choice("likelihood", self.likelihood, LIKELIHOODS)
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
        _require_posterior(self.posterior, FLAT_POSTERIORS, self.kind)
        _require_prior(self.prior)

    def to_dict(self) -> dict[str, Any]:
        """Give the configuration as plain JSON values, each part with its `kind`."""
        return plain(self)


@dataclass(frozen=True, kw_only=True)
class ResnetVaeConfig:
    """The paper's CIFAR-10 model (Appendix C): a ladder of stochastic layers in a ResNet.

    `levels` counts the stochastic layers of each level from the finest resolution (half the
    image's) up; each further level halves it again. `channels` is h and `z_channels` the latent
    maps of a layer. `inference` is the direction of section C.1. `scale` says where the
    logistic's log-scale comes from: one learned scalar (the authors' code), one a channel (paper,
    C.5), or the network, one a subpixel; `mixtures` counts the components of a
    "logistic_mixture", whose scales always come from the network. `residual_scale` multiplies
    every residual branch. `gain` is how weight norm's gains are stored: "linear" g; "exp" exp(g);
    "exp_third" exp(g) with g initialised to a third of its logarithm, as the authors' code does.
    `prior` is that of the top layer's noise. `head` gives the pixels: "transposed", a transposed
    5x5 convolution; "shuffle", a 1x1 convolution to four times the maps and a pixel shuffle.
    """

    kind: ClassVar[str] = "resnet_vae"
    image_shape: tuple[int, int, int] = (3, 32, 32)
    likelihood: LikelihoodKind = "discretized_logistic"
    scale: ScaleKind = "scalar"
    mixtures: int = 10
    channels: int = 160
    z_channels: int = 32
    levels: tuple[int, ...] = (20,)
    inference: Direction = "bidirectional"
    posterior: MapPosterior = field(default_factory=ConvIafPosterior)
    prior: PriorConfig = field(default_factory=StandardNormalPrior)
    residual_scale: float = 0.1
    gain: Gain = "linear"
    head: Head = "transposed"

    def __post_init__(self) -> None:
        _require_image_shape(self.image_shape)
        require_choice("likelihood", self.likelihood, LIKELIHOODS)
        require_choice("scale", self.scale, SCALES)
        require_choice("inference", self.inference, DIRECTIONS)
        require_choice("gain", self.gain, GAINS)
        require_choice("head", self.head, HEADS)
        require(self.mixtures >= 1, f"mixtures must be positive, not {self.mixtures}")
        require(self.channels >= 1, f"channels must be positive, not {self.channels}")
        require(self.z_channels >= 1, f"z_channels must be positive, not {self.z_channels}")
        require(len(self.levels) >= 1, "levels must count the layers of at least one level")
        require_counts("levels", self.levels)
        require(
            min(self.image_shape[1:]) >= 2 ** len(self.levels),
            f"an image of {self.image_shape[1]}x{self.image_shape[2]} is too small for "
            f"{len(self.levels)} levels; use fewer",
        )
        require(
            self.residual_scale > 0, f"residual_scale must be positive, not {self.residual_scale}"
        )
        _require_posterior(self.posterior, MAP_POSTERIORS, self.kind)
        _require_prior(self.prior)

    @property
    def depth(self) -> int:
        """The number of stochastic layers, L."""
        return sum(self.levels)

    def to_dict(self) -> dict[str, Any]:
        """Give the configuration as plain JSON values, each part with its `kind`."""
        return plain(self)


ModelConfig = ConvVaeConfig | ResnetVaeConfig
MODELS: dict[str, type[ModelConfig]] = {cls.kind: cls for cls in (ConvVaeConfig, ResnetVaeConfig)}


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
    parts: dict[str, Mapping[str, type[Any]]] = {"posterior": POSTERIORS, "prior": PRIORS}
    for part in parts.keys() & given:
        given[part] = _build(parts[part], given[part], f"{what}.{part}")
    return construct(cls, given, what)


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """Rebuild a configuration from `to_dict`'s output.

    Raises `ConfigError` naming the field when one is unknown, missing its `kind`, or invalid.
    """
    config: ModelConfig = _build(MODELS, values, "model")
    return config


def _mnist(steps: int, width: int) -> ConvVaeConfig:
    return ConvVaeConfig(posterior=IafPosterior(steps=steps, hidden=(width, width)))


def _fashion(posterior: ConvIafPosterior | DiagonalPosterior) -> ResnetVaeConfig:
    """The ladder of `mnist-ladder` with a mixture of logistics for its 8-bit pixels."""
    return ResnetVaeConfig(
        image_shape=(1, 28, 28),
        likelihood="logistic_mixture",
        channels=32,
        z_channels=16,
        levels=(1, 2),
        posterior=posterior,
    )


def _cifar10_mixture() -> ResnetVaeConfig:
    """Five layers that learn most in a CPU's hours: measured in training/RUNS.md."""
    return ResnetVaeConfig(
        likelihood="logistic_mixture",
        mixtures=5,
        channels=64,
        z_channels=16,
        levels=(3, 2),
        posterior=ConvIafPosterior(hidden_layers=1),
        residual_scale=0.5,
        head="shuffle",
    )


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "mnist": lambda: _mnist(2, 320),
    "mnist-diagonal": lambda: ConvVaeConfig(posterior=DiagonalPosterior()),
    "mnist-iaf-2x320": lambda: _mnist(2, 320),
    "mnist-iaf-2x1920": lambda: _mnist(2, 1920),
    "mnist-iaf-4x1920": lambda: _mnist(4, 1920),
    "mnist-iaf-8x1920": lambda: _mnist(8, 1920),
    "mnist-ladder": lambda: ResnetVaeConfig(
        image_shape=(1, 28, 28),
        likelihood="bernoulli",
        channels=32,
        z_channels=16,
        levels=(1, 2),
    ),
    "fashion-mnist": lambda: _fashion(ConvIafPosterior()),
    "fashion-mnist-mixture": lambda: _fashion(ConvIafPosterior()),
    "fashion-mnist-mixture-diagonal": lambda: _fashion(DiagonalPosterior()),
    "fashion-mnist-flat": lambda: ConvVaeConfig(likelihood="discretized_logistic"),
    "cifar10-small": lambda: ResnetVaeConfig(channels=32, z_channels=8, levels=(3, 3)),
    "cifar10-mixture": _cifar10_mixture,
    "cifar10-medium": lambda: ResnetVaeConfig(channels=96, z_channels=24, levels=(12,)),
    "cifar10-paper": lambda: ResnetVaeConfig(),
}


def preset_names() -> tuple[str, ...]:
    """Give the names that `preset` knows."""
    return tuple(PRESETS)


def preset(name: str) -> ModelConfig:
    """Give the named architecture; raises `ConfigError` listing the names for an unknown one."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()


__all__ = [
    "BINARY_LIKELIHOODS",
    "LIKELIHOODS",
    "MODELS",
    "PRESETS",
    "ConfigError",
    "ConvIafPosterior",
    "ConvVaeConfig",
    "CouplingPosterior",
    "CouplingPrior",
    "DiagonalPosterior",
    "Direction",
    "FlatPosterior",
    "Gain",
    "Head",
    "IafPosterior",
    "LikelihoodKind",
    "LinearIafPosterior",
    "MapPosterior",
    "ModelConfig",
    "PlanarPosterior",
    "PosteriorConfig",
    "PriorConfig",
    "ResnetVaeConfig",
    "ScaleKind",
    "StandardNormalPrior",
    "config_from_dict",
    "construct",
    "preset",
    "preset_names",
    "require",
]
