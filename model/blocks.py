"""Residual blocks of weight-normalised convolutions that keep, halve or double an image's size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import Conv, ConvTranspose


class ResidualBlock(nn.Module):
    """`skip(x) + second(elu(first(elu(x))))`: a pre-activation residual unit (He et al. 2016).

    Where the size or the number of maps changes, `first` and `skip` are both strided or
    transposed convolutions (paper, Appendix B); else `skip` is None, the identity.
    `activate_input` is False for the block that reads the image itself.
    """

    def __init__(
        self,
        first: nn.Module,
        second: nn.Module,
        skip: nn.Module | None,
        *,
        activate_input: bool = True,
    ) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.skip = skip
        self.activate_input = activate_input

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W] -> [B, C', H', W']`."""
        a = F.elu(x) if self.activate_input else x
        shortcut = x if self.skip is None else self.skip(a)
        out: Tensor = shortcut + self.second(F.elu(self.first(a)))
        return out


# The branch starts small, so that a fresh block is close to its shortcut.
BRANCH_INIT_SCALE = 0.1


def same_block(channels: int) -> ResidualBlock:
    """A block that keeps maps and size."""
    second = Conv(channels, channels, init_scale=BRANCH_INIT_SCALE)
    return ResidualBlock(Conv(channels, channels), second, None)


def down_block(in_channels: int, out_channels: int, *, first_layer: bool = False) -> ResidualBlock:
    """A block of stride 2: H' = ceil(H / 2)."""
    return ResidualBlock(
        Conv(in_channels, out_channels, stride=2),
        Conv(out_channels, out_channels, init_scale=BRANCH_INIT_SCALE),
        Conv(in_channels, out_channels, stride=2),
        activate_input=not first_layer,
    )


def up_block(in_channels: int, out_channels: int, output_padding: tuple[int, int]) -> ResidualBlock:
    """A block of stride 1/2, the mirror of `down_block`."""
    inner = max(in_channels, out_channels)  # the last block's output is one map: keep its inside
    return ResidualBlock(
        ConvTranspose(in_channels, inner, output_padding=output_padding),
        Conv(inner, out_channels, init_scale=BRANCH_INIT_SCALE),
        ConvTranspose(in_channels, out_channels, output_padding=output_padding),
    )
