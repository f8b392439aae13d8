"""The convolutions of a ladder's layers: one wide one in training, only what is needed in service.

While a model is trained, what reads the same maps is one convolution, and what is added is one
too. Folded, each is cut into the convolutions of its parts, so that an exported graph holds those
alone that its outputs depend on, and what is a constant is computed beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import Conv, ConvTranspose, Foldable

Parts = dict[str, Tensor]


class PartedConv(Foldable):
    """A convolution of `elu(h)` whose maps are several things, by name.

    `widths`: name -> number of maps, which `conv` gives side by side.
    """

    def __init__(self, conv: Conv, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.conv = conv
        self.widths = dict(widths)

    def forward(self, h: Tensor) -> Parts:
        """Map `[B, C, H, W]` to each part's `[B, width, H', W']`."""
        maps = self.conv(F.elu(h))
        return dict(zip(self.widths, maps.split(list(self.widths.values()), dim=1), strict=True))

    def folded(self) -> nn.Module:
        """See the base class."""
        sizes = list(self.widths.values())
        weights = torch.split(self.conv.weight(), sizes)
        biases = torch.split(self.conv.bias, sizes)
        pairs = zip(self.widths, zip(weights, biases, strict=True), strict=True)
        return _PlainParts({name: _like(self.conv, *pair) for name, pair in pairs})


class _PlainParts(nn.Module):
    """`PartedConv` folded: a convolution for each part."""

    def __init__(self, convs: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.convs = nn.ModuleDict(convs)

    def forward(self, h: Tensor) -> Parts:
        a = F.elu(h)
        return {name: conv(a) for name, conv in self.convs.items()}


class ConstantParts(nn.Module):
    """Parts that depend on no input: those at the top of a folded ladder."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.names = tuple(parts)
        for name, part in parts.items():
            self.register_buffer(name, part)

    def forward(self, h: Tensor) -> Parts:
        """Give the parts, `[1, width, H, W]` each, whatever `h` is."""
        del h
        return {name: getattr(self, name) for name in self.names}


class Residual(Foldable):
    """`resample(h) + scale * conv(elu(maps))`, the maps side by side in the order of `widths`."""

    def __init__(
        self, conv: Conv | ConvTranspose, widths: Sequence[int], resample: nn.Module, scale: float
    ) -> None:
        super().__init__()
        self.conv = conv
        self.widths = tuple(widths)
        self.resample = resample
        self.scale = scale

    def forward(self, h: Tensor, *maps: Tensor) -> Tensor:
        """Map h `[B or 1, C, H, W]` and maps `[B or 1, width, ., .]`; the sum has h's precision.

        The maps take the last one's precision: a sample in float32 meets activations in bfloat16.
        """
        rows = max(len(m) for m in maps)
        dtype = maps[-1].dtype
        joined = torch.cat([m.to(dtype).expand(rows, -1, -1, -1) for m in maps], dim=1)
        return torch.add(self.resample(h), self.conv(F.elu(joined)), alpha=self.scale)

    def folded(self) -> nn.Module:
        """See the base class."""
        weight, bias = self.scale * self.conv.weight(), self.scale * self.conv.bias
        weights = torch.split(weight, list(self.widths), dim=1 - self.conv.out_dim)
        biases = [None] * (len(weights) - 1) + [bias]
        convs = [_like(self.conv, w, b) for w, b in zip(weights, biases, strict=True)]
        if isinstance(self.conv, ConvTranspose):
            return _JoinedResidual(_like(self.conv, weight, bias), convs, self.resample)
        return PlainResidual(convs, self.resample)


class PlainResidual(nn.Module):
    """`Residual` folded: a convolution for each of the maps, the scale inside their weights."""

    def __init__(self, convs: Sequence[nn.Module], resample: nn.Module) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.resample = resample

    def forward(self, h: Tensor, *maps: Tensor) -> Tensor:
        """See `Residual`."""
        out: Tensor = self.resample(h)
        for conv, m in reversed(list(zip(self.convs, maps, strict=True))):
            out = out + conv(F.elu(m))
        return out

    def with_constants(self, h: Tensor, state: Tensor) -> nn.Module:
        """Give the same with h and the last of the maps fixed."""
        *convs, last = self.convs
        return _ConstantResidual(convs, self.resample(h) + last(F.elu(state)))


class _JoinedResidual(PlainResidual):
    """The same with a transposed convolution, which is one of all the maps side by side.

    Most of its time is the sum of what its kernel spreads, as large for few maps as for many.
    """

    def __init__(self, conv: nn.Module, convs: Sequence[nn.Module], resample: nn.Module) -> None:
        super().__init__(convs, resample)
        self.conv = conv

    def forward(self, h: Tensor, *maps: Tensor) -> Tensor:
        """See `Residual`; all maps have as many rows."""
        out: Tensor = self.resample(h) + self.conv(F.elu(torch.cat(maps, dim=1)))
        return out


class _ConstantResidual(nn.Module):
    def __init__(self, convs: Sequence[nn.Module], base: Tensor) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.register_buffer("base", base)
        self.base: Tensor

    def forward(self, h: Tensor, *maps: Tensor) -> Tensor:
        del h
        out = self.base
        for conv, m in zip(self.convs, maps[:-1], strict=True):
            out = out + conv(F.elu(m))
        return out


def _like(conv: Conv | ConvTranspose, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Give the plain layer with some of the weights `[out, in, k, k]` (transposed: in first)."""
    out_dim = conv.out_dim
    channels = (weight.shape[1 - out_dim], weight.shape[out_dim], weight.shape[2])
    plain: nn.Conv2d | nn.ConvTranspose2d
    if isinstance(conv, Conv):
        plain = nn.Conv2d(
            *channels, stride=conv.stride, padding=conv.padding, bias=bias is not None
        )
    else:
        plain = nn.ConvTranspose2d(
            *channels,
            stride=2,
            padding=conv.padding,
            output_padding=conv.output_padding,
            bias=bias is not None,
        )
    plain.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone())
    return plain


class Subsample(nn.Module):
    """Every second pixel of every second row: the nearest neighbour, H' = ceil(H / 2)."""

    def forward(self, h: Tensor) -> Tensor:
        """Map `[B, C, H, W] -> [B, C, H', W']`."""
        return h[:, :, ::2, ::2]


class Double(nn.Module):
    """Every pixel four times, cut to `size`, which is twice the input's or one less an axis."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, h: Tensor) -> Tensor:
        """Map `[B, C, H, W] -> [B, C, *size]`."""
        doubled = F.interpolate(h, scale_factor=2.0, mode="nearest")
        if doubled.shape[2:] == self.size:
            return doubled
        return doubled[:, :, : self.size[0], : self.size[1]]
