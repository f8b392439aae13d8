"""The paper's CIFAR-10 model (Appendix C): a ladder of stochastic layers in a ResNet.

`ResnetVae` is what both directions of inference share, the generative model: from a learned top
state down, each layer gives its prior, takes its z and changes the maps h for the layer below;
what is left at the bottom is turned into the likelihood's parameters. `BidirectionalVae` infers
the layers from the top down, each from what the image says of it, gathered on one way up, and
from the layers above it (C.1, C.2); `model.bottom_up` infers on the way up itself.

h is float32 also under autocast: some tens of small steps are added up in it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Self, cast

import torch
from torch import Tensor, nn

from model.config import ResnetVaeConfig
from model.contract import DensityModel, Features, Inference, LatentGroup, LatentLayout
from model.densities import at_least_float32, build_likelihood
from model.flows.prior import Prior, StandardNormal, build_prior
from model.heads import build_head
from model.ladder import (
    INIT_SCALE,
    DownLayer,
    LayerInference,
    LayerPosterior,
    LayerSpec,
    UpLayer,
    joined,
    layer_specs,
    prior_of,
)
from model.ladder_layers import ConstantParts, PlainResidual
from model.layers import Conv


class ResnetVae(DensityModel):
    """p(x, z) of the ladder, and what inference in either direction needs."""

    config: ResnetVaeConfig

    def __init__(self, config: ResnetVaeConfig, *, bidirectional: bool) -> None:
        specs = layer_specs(config)
        groups = tuple(LatentGroup(spec.name, config.z_channels, *spec.size) for spec in specs)
        likelihood = build_likelihood(
            config.likelihood, config.image_shape, mixtures=config.mixtures
        )
        super().__init__(config, LatentLayout(groups), likelihood)
        self.specs = specs
        self.stem = Conv(
            config.image_shape[0],
            config.channels,
            kernel_size=5,
            stride=2,
            init_scale=INIT_SCALE,
            gain=config.gain,
        )
        self.up = nn.ModuleDict(
            {spec.name: UpLayer(spec, config, joins_z=not bidirectional) for spec in specs}
        )
        self.posterior = nn.ModuleDict({spec.name: LayerPosterior(config) for spec in specs})
        # Near zero, where training starts best; at zero the layer that reads it would not move.
        self.top = nn.Parameter(0.01 * torch.randn(config.channels))
        self.down = nn.ModuleDict(
            {spec.name: DownLayer(spec, config, bidirectional=bidirectional) for spec in specs}
        )
        self.prior = build_prior(config.prior, groups[0].size)
        self.gaussian = StandardNormal()
        self.head = build_head(config, likelihood.parameter_channels)

    @abstractmethod
    def infer(self, features: Features, eps: Tensor) -> Inference:
        """See `DensityModel`."""

    def generate(self, eps: Tensor, temperature: Tensor) -> Tensor:
        """See `DensityModel`."""
        h = self._top_state()
        warmth = temperature.unsqueeze(2).unsqueeze(3)  # [B, G, 1, 1]
        for group, (spec, eps_l) in enumerate(self._groups(eps)):
            layer = self._down(spec)
            parts = layer.parts(h)
            mean, log_scale = prior_of(parts)
            warm = warmth[:, group : group + 1] * eps_l
            z = mean + torch.exp(log_scale) * self._prior(spec)(warm)
            h = layer.residual(h, z, parts["state"])
        params: Tensor = self.head(h)
        return params

    def decode(self, z: Tensor) -> Tensor:
        """See `DensityModel`; each layer's z is taken as it is, whatever its prior says."""
        h = self._top_state()
        for spec, z_l in self._groups(z):
            layer = self._down(spec)
            h = layer.residual(h, z_l, layer.parts(h)["state"])
        params: Tensor = self.head(h)
        return params

    def group_kl(self, kl: Tensor) -> Tensor:
        """Add the parts of each layer, which stand side by side: `[B, F] -> [B, G]`."""
        layers = len(self.specs)
        if kl.shape[1] == layers:
            return kl
        if self.prior.elementwise:
            return kl.view(-1, layers, kl.shape[1] // layers).sum(dim=2)
        each = (kl.shape[1] - 1) // (layers - 1)  # a flow's density has one part
        below = kl[:, 1:].view(-1, layers - 1, each).sum(dim=2)
        return torch.cat([kl[:, :1], below], dim=1)

    def fold(self) -> Self:
        """See `DensityModel`; what the top state alone determines becomes a constant."""
        folded = super().fold()
        layer = folded._down(self.specs[0])
        if isinstance(layer.parts, ConstantParts):  # folded already
            return folded
        with torch.no_grad():
            h = folded._top_state()
            parts = layer.parts(h)
            layer.parts = ConstantParts(parts)
            residual = cast("PlainResidual", layer.residual)
            layer.residual = residual.with_constants(h, parts["state"])
        return folded

    def _top_state(self) -> Tensor:
        """The maps above the top layer, one vector everywhere, `[1, h, H, W]`."""
        return self.top.view(1, -1, 1, 1).expand(1, -1, *self.specs[0].size)

    def _prior(self, spec: LayerSpec) -> Prior:
        return self.prior if spec.top else self.gaussian

    def _up(self, spec: LayerSpec) -> UpLayer:
        return cast("UpLayer", self.up[spec.name])

    def _posterior(self, spec: LayerSpec) -> LayerPosterior:
        return cast("LayerPosterior", self.posterior[spec.name])

    def _down(self, spec: LayerSpec) -> DownLayer:
        return cast("DownLayer", self.down[spec.name])

    def _groups(self, flat: Tensor) -> Iterator[tuple[LayerSpec, Tensor]]:
        """Cut `[B, D]` into each layer's `[B, z, H, W]`, from the top down."""
        sizes = [group.size for group in self.layout.groups]
        for spec, values in zip(self.specs, torch.split(flat, sizes, dim=1), strict=True):
            yield spec, values.view(-1, self.config.z_channels, *spec.size)

    def _stem_maps(self, x: Tensor) -> Tensor:
        return at_least_float32(self.stem(self.likelihood.network_input(x)))

    def _top_standardised(self, z: Tensor) -> Tensor:
        """(z - mean) / scale of the top layer's Gaussian, `[B, D_top]`."""
        mean, log_scale = prior_of(self._down(self.specs[0]).parts(self._top_state()))
        return ((z - mean) * torch.exp(-log_scale)).flatten(1)


class BidirectionalVae(ResnetVae):
    """Inference from the top down, z_L first, with what one way up gathered from the image."""

    def __init__(self, config: ResnetVaeConfig) -> None:
        super().__init__(config, bidirectional=True)

    def bottom_up(self, x: Tensor) -> Features:
        """Give every layer's share in its posterior, from the top down, `[B, ., H, W]` each."""
        h = self._stem_maps(x)
        features: list[Tensor] = []
        for spec in reversed(self.specs):
            layer = self._up(spec)
            parts = layer.parts(h)
            features.append(parts["posterior"])
            if not spec.top:
                h = layer.residual(h, parts["state"])
        return tuple(reversed(features))

    def prior_data(self, features: Features, eps: Tensor) -> Tensor:
        """See `DensityModel`; nothing below the top layer is computed."""
        spec, eps_l = next(self._groups(eps))
        parts = self._down(spec).parts(self._top_state())
        return self._top_standardised(
            self._posterior(spec)(features[0] + parts["posterior"], eps_l).z
        )

    def infer(self, features: Features, eps: Tensor) -> Inference:
        """See `DensityModel`: posterior maps of both ways are added, means and log-scales too."""
        h = self._top_state()
        layers: list[LayerInference] = []
        for (spec, eps_l), shares in zip(self._groups(eps), features, strict=True):
            layer, posterior = self._down(spec), self._posterior(spec)
            parts = layer.parts(h)
            draw = posterior(shares + parts["posterior"], eps_l)
            layers.append(posterior.against_prior(draw, *prior_of(parts), self._prior(spec)))
            h = layer.residual(h, draw.z, parts["state"])
        return joined(layers, self.head(h))
