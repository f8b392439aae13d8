"""What batches cost, averaged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.scheduler.scheduler import CostModel


def learn(price, *, batches=500, accidents=0.0, seed=0):
    """A model that has seen batches whose rows and images cost `price` each."""
    costs, rng = CostModel(), np.random.default_rng(seed)
    for _ in range(batches):
        rows = int(rng.integers(1, 33))
        images = -(-rows // int(rng.integers(1, 17)))
        seconds = price * (rows + images)
        costs.add("f", rows, images, seconds * (50.0 if rng.random() < accidents else 1.0))
    return costs


def test_nothing_is_known_at_first():
    assert CostModel().seconds("f", 10, 8) == 0.0


def test_rows_and_images_count_alike():
    costs = learn(0.0005)
    assert costs.seconds("f", 32, 2) == pytest.approx(0.0005 * 34)
    assert costs.seconds("f", 640, 640) == pytest.approx(0.0005 * 1280)
    assert costs.seconds("g", 1, 1) == 0.0


def test_accidents_are_not_learnt():
    """A batch in fifty takes fifty times as long, as when a machine sleeps."""
    assert learn(0.0005, accidents=0.02).seconds("f", 32, 4) == pytest.approx(0.018, rel=0.25)


def test_a_change_of_pace_is_learnt():
    costs = learn(0.0005)
    for _ in range(100):
        costs.add("f", 32, 32, 10 * 0.0005 * 64)
    assert costs.seconds("f", 32, 32) == pytest.approx(10 * 0.0005 * 64, rel=0.2)


@settings(max_examples=50)
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
        assert 0.0 <= costs.seconds("f", 100, 10) < float("inf")


def test_what_no_tick_of_the_clock_saw_has_a_cost():
    """Windows' clock ticks 64 times a second: nothing is divided by what it saw of a batch."""
    costs = CostModel()
    costs.add("f", 8, 8, 0.0)
    assert costs.each["f"] > 0
    costs.add("f", 8, 8, 0.1)
    assert costs.each["f"] > 1e-6
