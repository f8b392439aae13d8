"""From the ladder's last maps to the likelihood's parameters: ELU and a transposed convolution."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ResnetVaeConfig
from model.densities import at_least_float32
from model.ladder import INIT_SCALE
from model.layers import ConvTranspose, Foldable

# The logistic starts nine levels wide: as wide as early errors, and narrow enough for later ones.
START_LOG_SCALE = -3.3
# The middle of the lowest and of the highest bin: no mean lies beyond them.
CLIP = 0.5 - 1 / 512


def clipped(mean: Tensor) -> Tensor:
    """Hold means inside the pixel range, [-1/2 + 1/512, 1/2 - 1/512]."""
    return mean.clamp(-CLIP, CLIP)


class PixelHead(Foldable):
    """`[B, h, H/2, W/2] -> [B, P, H, W]`: 5x5, stride 2, in float32 also where all else is not.

    Rounded to bfloat16, a pixel's mean would be off by half a level.
    """

    def __init__(self, conv: ConvTranspose) -> None:
        super().__init__()
        self.conv: nn.Module = conv

    def forward(self, h: Tensor) -> Tensor:
        """Give the likelihood's parameters."""
        with torch.autocast(h.device.type, enabled=False):
            return self.params(self.conv(F.elu(at_least_float32(h))))

    def params(self, maps: Tensor) -> Tensor:
        """Turn the convolution's maps into parameters; here they are the parameters."""
        return maps

    def folded(self) -> nn.Module:
        """See the base class; what is folded already stays."""
        if not isinstance(self.conv, ConvTranspose):
            return self
        rest = copy.deepcopy(self)
        rest.conv = nn.Identity()
        return _PlainHead(self.conv.folded(), rest)


class _PlainHead(nn.Module):
    def __init__(self, conv: nn.Module, head: PixelHead) -> None:
        super().__init__()
        self.conv = conv
        self.head = head

    def forward(self, h: Tensor) -> Tensor:
        return self.head.params(self.conv(F.elu(h)))


class SharedScaleHead(PixelHead):
    """Locations from the maps; log-scales are learned numbers, `[1 or C, 1, 1]`."""

    def __init__(self, conv: ConvTranspose, scales: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(conv)
        self.image_shape = image_shape
        self.log_scale = nn.Parameter(torch.full((scales, 1, 1), START_LOG_SCALE))

    def params(self, maps: Tensor) -> Tensor:
        """See the base class."""
        shape = (maps.shape[0], *self.image_shape)
        return torch.cat([clipped(maps), self.log_scale.expand(shape)], dim=1)


class PixelScaleHead(PixelHead):
    """Locations and log-scales of every subpixel from the maps."""

    def params(self, maps: Tensor) -> Tensor:
        """See the base class."""
        mean, log_scale = maps.chunk(2, dim=1)
        return torch.cat([clipped(mean), log_scale + START_LOG_SCALE], dim=1)


def build_head(config: ResnetVaeConfig, parameter_channels: int) -> PixelHead:
    """The head that `config`'s likelihood and `scale` ask for."""
    colours, height, width = config.image_shape
    shared = config.likelihood == "discretized_logistic" and config.scale != "pixel"

    conv = ConvTranspose(
        config.channels,
        colours if shared else parameter_channels,
        output_padding=(1 - height % 2, 1 - width % 2),
        kernel_size=5,
        init_scale=INIT_SCALE,
        gain=config.gain,
    )
    if shared:
        return SharedScaleHead(conv, 1 if config.scale == "scalar" else colours, config.image_shape)
    return PixelScaleHead(conv) if config.likelihood == "discretized_logistic" else PixelHead(conv)
