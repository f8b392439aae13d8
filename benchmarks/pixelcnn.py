"""A gated PixelCNN, the autoregressive model that `synthesis.py` compares with.

van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders",
arXiv:1606.05328: a vertical stack sees the rows above, a horizontal stack the pixels to the left
and, of the pixel itself, the colours before; R, then G, then B. Every layer is a masked
convolution with the gate tanh(a) * sigmoid(b). Colours have a 256-way softmax each, binary images
a logit. `benchmarks.pixelcnn_sampling` draws from it.
"""

from bisect import bisect_left
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class PixelCnnConfig:
    """`width` maps for each colour in both stacks; `layers` after the first, of odd `kernel`."""

    image_shape: tuple[int, int, int]  # C, H, W
    levels: int = 256  # 2: binary pixels
    width: int = 40
    layers: int = 12
    first_kernel: int = 7
    kernel: int = 3

    @property
    def outputs(self) -> int:
        """Numbers that describe one subpixel's distribution: a logit, or one for each level."""
        return 1 if self.levels == 2 else self.levels


def colour_mask(
    colours: int, per_in: int, per_out: int, *, strict: bool, halves: int = 1
) -> Tensor:
    """Which input maps an output map may read at its own pixel, `[out, in]` of 0 and 1.

    Maps come in `colours` groups of `per_in` or `per_out`, the outputs `halves` times over (the
    two halves of a gate). Group c reads groups up to c, or below c where `strict`.
    """
    group_in = torch.arange(colours).repeat_interleave(per_in)
    group_out = torch.arange(colours).repeat_interleave(per_out).repeat(halves)
    allowed = group_out[:, None] > group_in if strict else group_out[:, None] >= group_in
    return allowed.float()


class MaskedConv(nn.Conv2d):
    """A convolution whose weight is multiplied by a fixed mask, `[out, in, kh, kw]`."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        out_channels, in_channels, *kernel = mask.shape
        super().__init__(in_channels, out_channels, (kernel[0], kernel[1]))
        self.register_buffer("mask", mask, persistent=False)

    def effective(self) -> Tensor:
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in, H, W]`; the caller has padded."""
        return F.conv2d(x, self.effective(), self.bias)


def gate(a: Tensor) -> Tensor:
    """tanh of the first half of axis 1 times the sigmoid of the second."""
    first, second = a.chunk(2, dim=1)
    return torch.tanh(first) * torch.sigmoid(second)


class GatedLayer(nn.Module):
    """One layer of both stacks: `(v, h) -> (v', h')`, `[B, maps, H, W]` each.

    The vertical stack at row r has seen rows below r alone, so that the horizontal stack reads it
    at its own pixel. The `first` layer reads the image: its vertical part leaves out row r itself,
    its horizontal part the pixel's own colour.
    """

    def __init__(self, colours: int, per_in: int, width: int, kernel: int, *, first: bool) -> None:
        super().__init__()
        maps_in, maps = colours * per_in, colours * width
        self.reach = kernel // 2
        self.first = first
        rows = self.reach if first else self.reach + 1
        self.vertical = nn.Conv2d(maps_in, 2 * maps, (rows, kernel))
        centre = colour_mask(colours, per_in, width, strict=first, halves=2)
        taps = torch.ones(2 * maps, maps_in, 1, self.reach + 1)
        taps[:, :, 0, -1] = centre
        self.horizontal = MaskedConv(taps)
        self.across = nn.Conv2d(2 * maps, 2 * maps, 1)
        self.residual = MaskedConv(_pointwise(colours, width, width))

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        sides = (self.reach, self.reach)
        above = F.pad(v, (*sides, self.reach, -1 if self.first else 0))
        a_v = self.vertical(above)
        a_h = self.horizontal(F.pad(h, (self.reach, 0))) + self.across(a_v)
        out = self.residual(gate(a_h))
        return gate(a_v), out if self.first else out + h


def _pointwise(colours: int, per_in: int, per_out: int) -> Tensor:
    return colour_mask(colours, per_in, per_out, strict=False)[:, :, None, None]


class PixelCnn(nn.Module):
    """p(image) = product over pixels in raster order, and over R, G, B within each."""

    def __init__(self, config: PixelCnnConfig) -> None:
        super().__init__()
        self.config = config
        colours, width = config.image_shape[0], config.width
        first = GatedLayer(colours, 1, width, config.first_kernel, first=True)
        others = (
            GatedLayer(colours, width, width, config.kernel, first=False)
            for _ in range(config.layers)
        )
        self.layers = nn.ModuleList([first, *others])
        self.hidden = MaskedConv(_pointwise(colours, width, width))
        self.head = MaskedConv(_pointwise(colours, width, config.outputs))

    def network_input(self, x: Tensor) -> Tensor:
        """Levels `[..]` as numbers of the weights' type in -1/2 .. 1/2."""
        return x.to(self.head.weight.dtype) / (self.config.levels - 1) - 0.5

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, C, outputs, H, W]` of every subpixel given those before it.

        `x [B, C, H, W]` holds levels, 0 .. levels - 1.
        """
        v = h = self.network_input(x)
        for layer in self.layers:
            v, h = layer(v, h)
        logits: Tensor = self.head(F.relu(self.hidden(F.relu(h))))
        return logits.reshape(len(x), self.config.image_shape[0], -1, *logits.shape[2:])


def draw(logits: Tensor, u: Tensor) -> Tensor:
    """Invert the cumulative distribution: levels `[B]` from logits `[B, outputs]`, `u [B]`.

    One logit: 1 where u < sigmoid(logit). Sums are taken in float64.
    """
    if logits.shape[1] == 1:
        return (u < torch.sigmoid(logits[:, 0].double())).long()
    cumulative = torch.softmax(logits.double(), dim=1).cumsum(dim=1)
    level = (cumulative <= u[:, None]).sum(dim=1)
    return level.clamp_max(logits.shape[1] - 1)


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def of_size(
    parameters: int, image_shape: tuple[int, int, int], levels: int, layers: int = 12
) -> PixelCnnConfig:
    """The width at which the number of parameters comes closest to `parameters`."""

    def count(width: int) -> int:
        config = PixelCnnConfig(image_shape=image_shape, levels=levels, width=width, layers=layers)
        with torch.device("meta"):
            return parameter_count(PixelCnn(config))

    widths = range(1, 4096)
    above = bisect_left(widths, parameters, key=count)
    near = widths[max(0, above - 1) : above + 1]
    width = min(near, key=lambda w: abs(count(w) - parameters))
    return PixelCnnConfig(image_shape=image_shape, levels=levels, width=width, layers=layers)
