"""Autoregressive networks with a context: MADE over vectors, masked convolutions over maps.

Germain et al. 2015 (arXiv:1502.03509); the paper's Appendix C.3 for the convolutions.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Gain
from model.flows.masks import conv_made_masks, input_degrees, made_masks
from model.flows.updates import Heads, Update
from model.layers import Conv, Foldable, Linear


class AutoregressiveNet(nn.Module, ABC):
    """A network whose heads m and s, shaped as z, read only what precedes them in an order.

    The condition, the context's share, is added to the first hidden layer's pre-activation;
    without hidden layers the heads are linear in z, and it is added to them. `s` is None where
    the update has no scale.
    """

    hidden: nn.ModuleList
    m: nn.Module
    s: nn.Module | None

    @abstractmethod
    def condition(self, h: Tensor) -> Tensor:
        """Compute the context's share once for each image, however many z are then drawn."""

    @abstractmethod
    def ranks(self, z: Tensor) -> Tensor:
        """Give each element's rank 0, 1, ..., shaped as one z: its heads read only lower ranks."""

    def forward(self, z: Tensor, condition: Tensor) -> Heads:
        """Give the heads at z."""
        heads = (self.m,) if self.s is None else (self.m, self.s)
        if not self.hidden:
            shares = condition.chunk(len(heads), dim=1)
            return tuple(head(z) + share for head, share in zip(heads, shares, strict=True))
        a = _activations(self.hidden, z, condition)
        return tuple(head(a) for head in heads)


def _activations(hidden: nn.ModuleList, z: Tensor, condition: Tensor) -> Tensor:
    """What the last of the hidden layers, of which there is one at least, gives."""
    a = F.elu(hidden[0](z) + condition)
    for layer in hidden[1:]:
        a = F.elu(layer(a))
    return a


class Made(AutoregressiveNet):
    """MADE, `(z [B, D], context h [B, H]) -> m, s [B, D]`, through layers as wide as `hidden` says.

    m_i and s_i depend on the elements of z before i in the order, and on all of the context.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        hidden: tuple[int, ...],
        update: Update,
        *,
        reverse: bool,
    ) -> None:
        super().__init__()
        *hidden_masks, head_mask = made_masks(dim, hidden, reverse=reverse)
        sizes = (dim, *hidden)

        def head(bias_start: float | None) -> Linear:
            return Linear(
                sizes[-1], dim, mask=head_mask, init_scale=update.init_scale, bias_start=bias_start
            )

        self.reverse = reverse
        self.hidden = nn.ModuleList(
            Linear(sizes[i], sizes[i + 1], mask=mask) for i, mask in enumerate(hidden_masks)
        )
        # Added to the heads, the context is as small at the start as they are.
        self.context = (
            Linear(context_dim, hidden[0])
            if hidden
            else Linear(context_dim, update.heads * dim, init_scale=update.init_scale)
        )
        self.m = head(None)
        self.s = head(update.s_bias) if update.has_scale else None

    def condition(self, h: Tensor) -> Tensor:
        """Project the context: `[B, hidden[0]]`, or without hidden layers `[B, heads D]`."""
        c: Tensor = self.context(h)
        return c

    def ranks(self, z: Tensor) -> Tensor:
        """Give the position of each element in the order, 0 to D - 1."""
        return input_degrees(z.shape[1], reverse=self.reverse).to(z.device) - 1


class ConvMade(AutoregressiveNet, Foldable):
    """Masked 3x3 convolutions, `(z [B, C, H, W], context) -> m, s [B, C, H, W]`.

    Pixels are ordered as in a raster, and inside a pixel the latent channels one after another.
    `hidden_layers` layers have `channels` maps each. The context is added as it is, with no layer
    of its own: `[B, channels, H, W]`, or without hidden layers as many maps as all heads have.
    """

    def __init__(
        self,
        z_channels: int,
        channels: int,
        hidden_layers: int,
        update: Update,
        *,
        reverse: bool,
        gain: Gain = "linear",
    ) -> None:
        super().__init__()
        hidden = (channels,) * hidden_layers
        *hidden_masks, head_mask = conv_made_masks(z_channels, hidden, reverse=reverse)
        sizes = (z_channels, *hidden)

        def head(bias_start: float | None) -> Conv:
            return Conv(
                sizes[-1],
                z_channels,
                mask=head_mask,
                init_scale=update.init_scale,
                bias_start=bias_start,
                gain=gain,
            )

        self.reverse = reverse
        self.hidden = nn.ModuleList(
            Conv(sizes[i], sizes[i + 1], mask=mask, gain=gain)
            for i, mask in enumerate(hidden_masks)
        )
        self.m = head(None)
        self.s = head(update.s_bias) if update.has_scale else None

    def condition(self, h: Tensor) -> Tensor:
        """Give the context maps themselves: a convolution has made them already."""
        return h

    def ranks(self, z: Tensor) -> Tensor:
        """Rank the elements `[C, H, W]` by a wavefront: C (W + 2 (H - 1)) ranks, not C H W.

        A mask reaches one pixel to the left, or one row up and at most one pixel to the right,
        so what is in row i and column j depends only on pixels of a lower j + 2 i.
        """
        return _wavefront(z, reverse=self.reverse)

    def folded(self) -> nn.Module:
        """See `Foldable`: all heads become one convolution."""
        heads = [head.folded() for head in (self.m, self.s) if isinstance(head, Conv)]
        layers = [layer.folded() for layer in self.hidden if isinstance(layer, Conv)]
        return _PlainConvMade(layers, heads, reverse=self.reverse)


def _wavefront(z: Tensor, *, reverse: bool) -> Tensor:
    channels, height, width = z.shape[1:]
    front = torch.arange(width) + 2 * torch.arange(height)[:, None]  # [H, W]
    ranks = channels * front + torch.arange(channels)[:, None, None]
    return (ranks.flip(0, 1, 2) if reverse else ranks).to(z.device)


class _PlainConvMade(nn.Module):
    """`ConvMade` folded. A processor computes sixteen maps in the time of eight, so that the heads
    are one convolution with their maps side by side."""

    def __init__(
        self, hidden: Sequence[nn.Module], heads: Sequence[nn.Module], *, reverse: bool
    ) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(hidden)
        self.count = len(heads)
        self.joined = _side_by_side(heads)
        self.reverse = reverse

    def condition(self, h: Tensor) -> Tensor:
        """See `ConvMade`."""
        return h

    def ranks(self, z: Tensor) -> Tensor:
        """See `ConvMade`."""
        return _wavefront(z, reverse=self.reverse)

    def forward(self, z: Tensor, condition: Tensor) -> Heads:
        """See `AutoregressiveNet`."""
        if not self.hidden:
            maps = self.joined(z) + condition
        else:
            maps = self.joined(_activations(self.hidden, z, condition))
        heads: Heads = maps.chunk(self.count, dim=1)
        return heads


def _side_by_side(layers: Sequence[nn.Module]) -> nn.Module:
    """One convolution with the maps of several that differ in nothing but weights and biases."""
    joined = copy.deepcopy(layers[0])
    convs = [next(m for m in layer.modules() if isinstance(m, nn.Conv2d)) for layer in layers]
    conv = next(m for m in joined.modules() if isinstance(m, nn.Conv2d))
    conv.out_channels = sum(each.out_channels for each in convs)
    conv.weight = nn.Parameter(torch.cat([each.weight.detach() for each in convs]))
    biases = [each.bias.detach() for each in convs if each.bias is not None]
    conv.bias = nn.Parameter(torch.cat(biases))
    return joined
