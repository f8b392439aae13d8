"""From the ladder's last maps to the likelihood's parameters: ELU and one convolution."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ResnetVaeConfig
from model.densities import at_least_float32
from model.ladder import INIT_SCALE
from model.layers import Conv, ConvTranspose, Foldable

# The logistic starts nine levels wide: as wide as early errors, and narrow enough for later ones.
START_LOG_SCALE = -3.3
# The middle of the lowest and of the highest bin: no mean lies beyond them.
CLIP = 0.5 - 1 / 512


def clipped(mean: Tensor) -> Tensor:
    """Hold means inside the pixel range, [-1/2 + 1/512, 1/2 - 1/512]."""
    return mean.clamp(-CLIP, CLIP)


class PixelHead(Foldable):
    """`[B, h, H/2, W/2] -> [B, P, H, W]`, in float32 also where all else is not.

    Rounded to bfloat16, a pixel's mean would be off by half a level.
    """

    def __init__(self, conv: Foldable) -> None:
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
        if not isinstance(self.conv, Foldable):
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


class ShuffledConv(Foldable):
    """A 1x1 convolution to four times the maps, of which each makes 2x2 pixels, cut to `size`.

    Sub-pixel convolution (Shi et al. 2016, arXiv:1609.05158): 4 products for each pair of maps and
    input pixel, where a transposed 5x5 convolution has 25.
    """

    def __init__(self, conv: Conv, size: tuple[int, int]) -> None:
        super().__init__()
        self.conv = conv
        self.size = size

    def forward(self, h: Tensor) -> Tensor:
        """Map `[B, h, ceil(H / 2), ceil(W / 2)] -> [B, P, H, W]`."""
        return _shuffled(self.conv(h), self.size)

    def folded(self) -> nn.Module:
        """See the base class."""
        return _PlainShuffledConv(self.conv.folded(), self.size)


class _PlainShuffledConv(nn.Module):
    def __init__(self, conv: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.conv = conv
        self.size = size

    def forward(self, h: Tensor) -> Tensor:
        return _shuffled(self.conv(h), self.size)


def _shuffled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    pixels = F.pixel_shuffle(maps, 2)
    return pixels if pixels.shape[2:] == size else pixels[:, :, : size[0], : size[1]]


class SharedScaleHead(PixelHead):
    """Locations from the maps; log-scales are learned numbers, `[1 or C, 1, 1]`."""

    def __init__(self, conv: Foldable, scales: int, image_shape: tuple[int, int, int]) -> None:
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
    colours = config.image_shape[0]
    shared = config.likelihood == "discretized_logistic" and config.scale != "pixel"
    conv = _upsampling(config, colours if shared else parameter_channels)
    if shared:
        return SharedScaleHead(conv, 1 if config.scale == "scalar" else colours, config.image_shape)
    return PixelScaleHead(conv) if config.likelihood == "discretized_logistic" else PixelHead(conv)


def _upsampling(config: ResnetVaeConfig, maps: int) -> Foldable:
    """`[B, h, ., .]` at half the image's size to so many maps at the image's."""
    _, height, width = config.image_shape
    if config.head == "shuffle":
        conv = Conv(
            config.channels, 4 * maps, kernel_size=1, init_scale=INIT_SCALE, gain=config.gain
        )
        return ShuffledConv(conv, (height, width))
    return ConvTranspose(
        config.channels,
        maps,
        output_padding=(1 - height % 2, 1 - width % 2),
        kernel_size=5,
        init_scale=INIT_SCALE,
        gain=config.gain,
    )
