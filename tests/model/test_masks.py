"""Masks as connectivity: the product of all masks says who can reach whom."""

from __future__ import annotations

import pytest
import torch

from model.masks import hidden_degrees, made_masks


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
