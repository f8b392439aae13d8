"""Masks as connectivity: the product of all masks says who can reach whom."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.flows.masks import conv_made_masks, conv_mask, hidden_degrees, made_masks


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 5, 32])
@pytest.mark.parametrize("hidden", [(), (3,), (40,), (40, 64), (40, 64, 33)])
def test_paths_exist_exactly_where_the_order_allows(
    dim: int, hidden: tuple[int, ...], reverse: bool
) -> None:
    masks = made_masks(dim, hidden, reverse=reverse)
    paths = torch.eye(dim)
    for mask in masks:
        paths = mask @ paths
    allowed = torch.ones(dim, dim).tril(-1)
    allowed = allowed.T if reverse else allowed
    assert not paths[allowed == 0].any()
    if min(hidden, default=dim) >= dim:
        assert (paths[allowed == 1] > 0).all()


def test_shapes_are_out_by_in() -> None:
    assert [tuple(m.shape) for m in made_masks(4, (6, 7))] == [(6, 4), (7, 6), (4, 7)]


@pytest.mark.parametrize(("width", "dim"), [(320, 32), (5, 5), (7, 3), (2, 9), (1, 1)])
def test_hidden_degrees_are_spread_evenly(width: int, dim: int) -> None:
    degrees = hidden_degrees(width, dim)
    assert degrees.min() == 0
    assert degrees.max() <= dim - 1
    counts = torch.bincount(degrees, minlength=dim)
    assert counts.max() - counts.min() <= 1


def connectivity(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The convolution by `mask` as a matrix over flattened maps, `[out H W, in H W]`."""
    size = mask.shape[1] * height * width
    basis = torch.eye(size).view(size, mask.shape[1], height, width)
    return F.conv2d(basis, mask, padding=1).flatten(1).T


def raster_positions(channels: int, height: int, width: int, reverse: bool) -> torch.Tensor:
    """The place of every element of flattened maps `[C, H, W]` in pixel-by-pixel order."""
    place = torch.arange(channels * height * width).view(height, width, channels)
    place = place.permute(2, 0, 1).flatten()
    return place.max() - place if reverse else place


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("hidden", [(), (3,), (7,), (12, 12), (7, 7), (2, 5), (8, 5, 9)])
def test_conv_paths_follow_the_raster_and_then_the_channels(
    channels: int, hidden: tuple[int, ...], reverse: bool
) -> None:
    height, width = 4, 5
    paths = torch.eye(channels * height * width)
    for mask in conv_made_masks(channels, hidden, reverse=reverse):
        paths = (connectivity(mask, height, width) @ paths).clamp_max(1)
    place = raster_positions(channels, height, width, reverse)
    earlier = place[None, :] < place[:, None]  # [to, from]
    assert not paths[~earlier].any()
    if min(hidden, default=channels) < channels:
        return  # too few maps to carry every dependence
    reached = paths.view(channels, height * width, channels, height * width)
    # Inside a pixel, and from a pixel's neighbours in the order, nothing allowed is missing.
    order = torch.arange(channels).flip(0) if reverse else torch.arange(channels)
    inside = reached.diagonal(dim1=1, dim2=3)  # [to, from, pixel]
    assert (
        inside[order][:, order]
        .movedim(2, 0)
        .bool()
        .equal(torch.ones(channels, channels).tril(-1).bool().expand(height * width, -1, -1))
    )
    pixel, step = width + 2, -1 if reverse else 1
    for neighbour in (pixel - step, pixel - step * width, pixel - step * (width - 1)):
        if 0 <= neighbour < height * width:
            assert reached[:, pixel, :, neighbour].all()


def test_a_conv_mask_opens_the_taps_before_the_centre() -> None:
    centre = torch.tensor([[0.0, 1.0]])
    forward, backward = conv_mask(centre), conv_mask(centre, reverse=True)
    assert forward.shape == (1, 2, 3, 3)
    assert forward[0, 0].tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert forward[0, 1].tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]
    assert backward[0, 0].tolist() == [[0, 0, 0], [0, 0, 1], [1, 1, 1]]


def test_channel_blocks_are_those_of_equal_division() -> None:
    """With 6 maps for 3 latent channels, maps 2 g and 2 g + 1 stand beside channel g."""
    into, out = (mask[:, :, 1, 1] for mask in conv_made_masks(3, (6,)))
    block = torch.arange(6) // 2
    assert into.equal((torch.arange(3)[None, :] <= block[:, None]).float())
    assert out.equal((block[None, :] < torch.arange(3)[:, None]).float())
