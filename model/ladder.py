"""One stochastic layer of a ladder: the way up, the way down, and the posterior between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import ResnetVaeConfig
from model.contract import Inference
from model.densities import at_least_float32, bounded_gaussian
from model.flows.flow import build_conv_flow, conv_context_channels
from model.flows.prior import Prior
from model.ladder_layers import Double, PartedConv, Parts, Residual, Subsample
from model.layers import Conv, ConvTranspose

# What every convolution's maps start with, as in the authors' code: posterior and prior begin close
# to each other, and residual branches far below what they are added to.
INIT_SCALE = 0.1


@dataclass(frozen=True)
class LayerSpec:
    """Where a layer stands: `z` has `size`; the maps below it have `outer`, twice as large where
    the layer is the first of its level."""

    name: str
    size: tuple[int, int]
    outer: tuple[int, int]
    top: bool

    @property
    def strided(self) -> bool:
        """Whether the layer halves the maps on the way up and doubles them on the way down."""
        return self.size != self.outer


def layer_specs(config: ResnetVaeConfig) -> tuple[LayerSpec, ...]:
    """The layers from the top, "z20" say, down to "z1"."""
    size = _halved(config.image_shape[1:])
    specs: list[LayerSpec] = []
    for level, layers in enumerate(config.levels):
        outer, size = size, _halved(size) if level > 0 else size
        for _ in range(layers):
            top = len(specs) + 1 == config.depth
            specs.append(LayerSpec(f"z{len(specs) + 1}", size, outer, top))
            outer = size
    return tuple(reversed(specs))


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def posterior_maps(config: ResnetVaeConfig) -> int:
    """How many maps a layer's posterior takes: means, log-scales and the flow's context."""
    z, h = config.z_channels, config.channels
    return 2 * z + conv_context_channels(config.posterior, z, h)


def _parted(
    config: ResnetVaeConfig, widths: dict[str, int], *, stride: int = 1, reads_data: bool = True
) -> PartedConv:
    conv = Conv(
        config.channels,
        sum(widths.values()),
        stride=stride,
        init_scale=INIT_SCALE if reads_data else None,
        gain=config.gain,
    )
    return PartedConv(conv, widths)


class UpLayer(nn.Module):
    """The way up: what the image says of z, and the maps for the layer above.

    `parts(h)` has "posterior", the maps of `posterior_maps`, and "state", hidden maps which
    `residual` turns into the next h, together with z where `joins_z`. The top layer has
    neither a state nor a residual: nobody would read them.
    """

    def __init__(self, spec: LayerSpec, config: ResnetVaeConfig, *, joins_z: bool) -> None:
        super().__init__()
        h = config.channels
        widths = {"posterior": posterior_maps(config)}
        if not spec.top:
            widths["state"] = h
            inputs = (config.z_channels, h) if joins_z else (h,)
            resample = Subsample() if spec.strided else nn.Identity()
            conv = Conv(sum(inputs), h, init_scale=INIT_SCALE, gain=config.gain)
            self.residual = Residual(conv, inputs, resample, config.residual_scale)
        self.parts: nn.Module = _parted(config, widths, stride=2 if spec.strided else 1)


class DownLayer(nn.Module):
    """The way down: p(z | what is above), and the maps for the layer below.

    `parts(h)` has "prior" (means and log-scales), "state" (hidden maps) and, where inference
    is bidirectional, "posterior", to be added to the way up's; `residual(h, z, state)` is the
    next h.
    """

    def __init__(self, spec: LayerSpec, config: ResnetVaeConfig, *, bidirectional: bool) -> None:
        super().__init__()
        z, h = config.z_channels, config.channels
        widths = {"prior": 2 * z, "state": h}
        if bidirectional:
            widths["posterior"] = posterior_maps(config)
        self.parts: nn.Module = _parted(config, widths, reads_data=not spec.top)
        conv: Conv | ConvTranspose = Conv(z + h, h, init_scale=INIT_SCALE, gain=config.gain)
        resample: nn.Module = nn.Identity()
        if spec.strided:
            odd = (spec.outer[0] % 2, spec.outer[1] % 2)
            padding = (1 - odd[0], 1 - odd[1])
            conv = ConvTranspose(
                z + h, h, output_padding=padding, init_scale=INIT_SCALE, gain=config.gain
            )
            resample = Double(spec.outer)
        self.residual: nn.Module = Residual(conv, (z, h), resample, config.residual_scale)


def prior_of(parts: Parts) -> tuple[Tensor, Tensor]:
    """Mean and log-scale of p(z | what is above), `[B or 1, z, H, W]` each, in float32."""
    return _halves(at_least_float32(parts["prior"]))


def _halves(maps: Tensor) -> tuple[Tensor, Tensor]:
    half = maps.shape[1] // 2
    return bounded_gaussian(maps[:, :half], maps[:, half:])


@dataclass(frozen=True)
class Draw:
    """A sample from a layer's posterior and what its density is made of.

    `z`, `eps` and `log_scale` (of z_0 = mean + exp(log_scale) eps) are `[B, z, H, W]`; `log_det`
    is the flow's, `[B, F]`.
    """

    z: Tensor
    eps: Tensor
    log_scale: Tensor
    log_det: Tensor


@dataclass(frozen=True)
class LayerInference:
    """One layer's part of an `Inference`: `z` and `prior_eps` `[B, D_l]`, `kl [B, F]`."""

    z: Tensor
    prior_eps: Tensor
    kl: Tensor


def joined(layers: Sequence[LayerInference], params: Tensor) -> Inference:
    """Put the layers' parts, from the top down, side by side."""
    return Inference(
        z=torch.cat([layer.z for layer in layers], dim=1),
        prior_eps=torch.cat([layer.prior_eps for layer in layers], dim=1),
        kl=torch.cat([layer.kl for layer in layers], dim=1),
        params=params,
    )


class LayerPosterior(nn.Module):
    """q(z | x, the latents above or below): a diagonal Gaussian and a flow (paper, C.3)."""

    def __init__(self, config: ResnetVaeConfig) -> None:
        super().__init__()
        self.gaussian = 2 * config.z_channels
        self.flow = build_conv_flow(
            config.posterior, config.z_channels, config.channels, gain=config.gain
        )

    def forward(self, maps: Tensor, eps: Tensor) -> Draw:
        """Draw z from maps `[B, posterior_maps, H, W]` and eps `[B, z, H, W]`."""
        mean, log_scale = _halves(at_least_float32(maps[:, : self.gaussian]))
        z_0 = mean + torch.exp(log_scale) * eps
        conditions = self.flow.condition(maps[:, self.gaussian :])
        z, log_det = self.flow(z_0, conditions)
        return Draw(z, eps, log_scale, log_det)

    def against_prior(
        self, draw: Draw, mean: Tensor, log_scale: Tensor, prior: Prior
    ) -> LayerInference:
        """Compare a draw with the prior: z = mean + exp(log_scale) f(prior_eps), f the flow of
        `prior`; mean and log_scale are `[B or 1, z, H, W]`.

        log q(z_0) = -log_scale_q - eps^2 / 2 and log p(z) = -log_scale_p - prior_eps^2 / 2 +
        log|det d prior_eps / d f|, both up to log(2 pi) / 2, which cancels.
        """
        standardised = (draw.z - mean) * torch.exp(-log_scale)
        prior_eps, prior_log_det = prior.inverse(standardised)
        squares = prior_eps * prior_eps - draw.eps * draw.eps
        terms = log_scale - draw.log_scale + 0.5 * squares
        kl = self.flow.sum_parts(terms) - draw.log_det
        if not prior.elementwise:
            kl = kl.sum(dim=1, keepdim=True) - prior_log_det
        return LayerInference(draw.z.flatten(1), prior_eps.flatten(1), kl)
