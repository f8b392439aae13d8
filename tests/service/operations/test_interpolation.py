"""Great circles: equal steps of the angle on the sphere, straight lines where there is none; and
rows of noise that come out the same in whatever parts a batch asks for them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle import LatentGroup, LatentSpec
from service.operations import latents
from service.scheduler.work import positions


def great_circle(ends, n):
    return latents.great_circle(ends, n)(0, n)


@settings(max_examples=50)
@given(st.integers(0, 1000), st.integers(2, 30))
def test_great_circles(seed, n):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 20))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    way = great_circle(np.stack((a, b)).astype(np.float32), n).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(way, axis=1), 1.0, atol=1e-5)
    angles = np.arccos(np.clip((way[:-1] * way[1:]).sum(axis=1), -1, 1))
    np.testing.assert_allclose(angles, np.arccos(a @ b) / (n - 1), atol=1e-3)


@pytest.mark.parametrize(
    "ends",
    [np.zeros((2, 3)), [[1, 0, 0], [2, 0, 0]], [[1, 0, 0], [-1, 0, 0]], [[0, 0, 0], [1, 1, 1]]],
)
def test_great_circles_that_are_none_are_straight(ends):
    ends = np.array(ends, dtype=np.float32)
    expected = np.linspace(ends[0], ends[1], 5)
    np.testing.assert_allclose(great_circle(ends, 5), expected, atol=1e-6)


@pytest.mark.parametrize("resample", [[], ["a"], ["b"], ["c"], ["a", "c"], ["a", "b", "c"]])
def test_rows_of_edited_noise_are_the_same_in_parts(resample):
    sizes = {"a": 1, "b": 2, "c": 3}
    groups = tuple(LatentGroup(name=k, channels=n, height=1, width=1) for k, n in sizes.items())
    prior_eps = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
    latent = LatentSpec(dim=6, groups=groups)
    rows = latents.edited(prior_eps, 7, positions(5), latent, resample)
    parts = [rows(first, last) for first, last in ((0, 2), (2, 3), (3, 7))]
    assert np.array_equal(np.concatenate(parts), rows(0, 7))
    kept = [name not in resample for name in "abbccc"]
    assert (rows(0, 7) == prior_eps).all(axis=0).tolist() == kept


def test_points_of_a_way_are_the_same_in_parts():
    ends = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    points = latents.great_circle(ends, 7)
    parts = [points(first, last) for first, last in ((0, 2), (2, 3), (3, 7))]
    assert np.array_equal(np.concatenate(parts), points(0, 7))
    assert np.array_equal(points(0, 7)[[0, -1]], ends)
