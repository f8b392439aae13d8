"""Masks that make a network autoregressive (MADE: Germain et al. 2015, arXiv:1502.03509).

Every unit has a degree; a unit may read another only where the degrees allow it. Inputs have
degrees 1..D in the chosen order. Hidden units have degrees 0..D-1: those of degree 0 read no
latent at all, only the context, so that even the first element's transformation depends on x.
"""

from __future__ import annotations

import torch
from torch import Tensor


def input_degrees(dim: int, *, reverse: bool = False) -> Tensor:
    """Give the position, 1..dim, of each latent in the autoregressive order, `[dim]`."""
    degrees = torch.arange(1, dim + 1)
    return degrees.flip(0) if reverse else degrees


def hidden_degrees(width: int, dim: int) -> Tensor:
    """Spread `width` hidden units evenly over the degrees 0..dim-1, `[width]`.

    Even spacing, not random draws: the same network needs no stored seed, and no degree is
    left without a unit while width >= dim.
    """
    return torch.div(torch.arange(width) * dim, max(width, 1), rounding_mode="floor")


def hidden_mask(degrees_in: Tensor, degrees_out: Tensor) -> Tensor:
    """Mask of a layer into hidden units: 1 where degree_out >= degree_in, `[out, in]`."""
    return (degrees_out[:, None] >= degrees_in[None, :]).float()


def output_mask(degrees_in: Tensor, degrees_out: Tensor) -> Tensor:
    """Mask of the heads: 1 where degree_out > degree_in, strictly, `[out, in]`."""
    return (degrees_out[:, None] > degrees_in[None, :]).float()


def made_masks(dim: int, hidden: tuple[int, ...], *, reverse: bool = False) -> list[Tensor]:
    """Masks of a MADE from `dim` inputs through `hidden` layers to `dim` outputs.

    Returns `len(hidden) + 1` tensors `[out, in]`; the last belongs to the heads. With
    `hidden=()` the heads read the inputs directly: a linear autoregressive network.
    """
    order = input_degrees(dim, reverse=reverse)
    masks: list[Tensor] = []
    degrees = order
    for width in hidden:
        nxt = hidden_degrees(width, dim)
        masks.append(hidden_mask(degrees, nxt))
        degrees = nxt
    masks.append(output_mask(degrees, order))
    return masks


def conv_mask(channel_mask: Tensor, *, reverse: bool = False) -> Tensor:
    """Mask of a 3x3 convolution over raster-ordered pixels, `[out, in] -> [out, in, 3, 3]`.

    Taps on earlier pixels (the row above, and to the left) are open, taps on later ones shut;
    the centre tap, the pixel itself, has `channel_mask`. `reverse` turns the raster round.
    """
    raster = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mask = (raster.flip(0, 1) if reverse else raster).expand(*channel_mask.shape, 3, 3).clone()
    mask[:, :, 1, 1] = channel_mask
    return mask


def conv_made_masks(
    z_channels: int, hidden: tuple[int, ...], *, reverse: bool = False
) -> list[Tensor]:
    """Masks of a stack of 3x3 convolutions, autoregressive in pixels and then in channels.

    Returns `len(hidden) + 1` tensors `[out, in, 3, 3]`; the last belongs to the heads. Hidden maps
    are dealt to the latent channels in proportion, whether or not one number divides the other:
    map k of K has the degree floor(k C / K) + 1, and in its own pixel reads the latent channels up
    to that degree. The heads read strictly lower degrees there, so the first channel reads
    earlier pixels only. `reverse` turns round the raster and the order of the channels.
    """
    order = input_degrees(z_channels, reverse=reverse)
    masks: list[Tensor] = []
    degrees = order
    for width in hidden:
        nxt = hidden_degrees(width, z_channels) + 1
        masks.append(conv_mask(hidden_mask(degrees, nxt), reverse=reverse))
        degrees = nxt
    masks.append(conv_mask(output_mask(degrees, order), reverse=reverse))
    return masks
