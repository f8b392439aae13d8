"""Costs fitted to batches whose true price is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.scheduler.cost import CostModel

PRICE = st.floats(0.0, 0.01)


def learn(price, *, batches=500, ragged=True, noise=0.0, accidents=0.0, seed=0):
    """A model that has seen batches at ``price = (row, image, constant)``."""
    costs, rng = CostModel(), np.random.default_rng(seed)
    for _ in range(batches):
        rows = int(rng.integers(1, 33))
        images = -(-rows // int(rng.integers(1, 17))) if ragged else rows
        seconds = price[0] * rows + price[1] * images + price[2]
        seconds *= 1.0 + noise * abs(rng.standard_normal())
        costs.add("f", rows, images, seconds * (50.0 if rng.random() < accidents else 1.0))
    return costs


def test_nothing_is_known_at_first():
    assert CostModel().seconds("f", 10, 8) == 0.0


@settings(max_examples=15, deadline=None)
@given(PRICE, PRICE, PRICE)
def test_row_image_and_constant_are_told_apart(row, image, constant):
    costs = learn((row + 1e-5, image, constant))
    for rows, images, batches in ((32, 2, 1), (32, 32, 1), (640, 40, 20)):
        expected = (row + 1e-5) * rows + image * images + constant * batches
        assert costs.seconds("f", rows, images, batches) == pytest.approx(expected, rel=0.05)


def test_accidents_are_not_learnt():
    """A batch in fifty takes fifty times as long, as when a machine sleeps."""
    costs = learn((0.0005, 0.0003, 0.002), accidents=0.02, noise=0.1)
    expected = 1.08 * (0.0005 * 32 + 0.0003 * 4 + 0.002)
    assert costs.seconds("f", 32, 4) == pytest.approx(expected, rel=0.25)


def test_a_change_of_pace_is_learnt():
    costs = learn((0.0005, 0.0, 0.002))
    for _ in range(600):
        costs.add("f", 32, 32, 10 * (0.0005 * 32 + 0.002))
    assert costs.seconds("f", 32, 32) == pytest.approx(10 * (0.0005 * 32 + 0.002), rel=0.2)


def test_batches_of_one_size_are_priced_by_the_row():
    costs = CostModel()
    for _ in range(40):
        costs.add("g", 8, 8, 0.4)
    assert costs.seconds("g", 16, 16, 2) == pytest.approx(0.8)
    assert costs.seconds("g", 1, 1) == pytest.approx(0.05)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 64), st.integers(1, 64), st.floats(0.0, 1e3)),
        min_size=1,
        max_size=80,
    )
)
def test_whatever_was_seen_costs_are_finite_and_not_negative(batches):
    costs = CostModel()
    for rows, images, seconds in batches:
        costs.add("f", rows, min(rows, images), seconds)
        assert 0.0 <= costs.seconds("f", 100, 10, 4) < float("inf")
