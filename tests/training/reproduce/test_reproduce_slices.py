"""How the rows of a reproduction share the time, as pure functions of where they stand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import ConfigError
from training.config import run_preset
from training.reproduce.plan import Plan, Slice, Standing, water_level

MINUTES = st.lists(st.floats(0, 100), min_size=1, max_size=8)


def follow(plan, standings, *, stop_after=math.inf, done_after=None):
    """Train as the plan says, a minute taking a minute; gives the minutes of every row."""
    rows = {standing.key: standing for standing in standings}
    used, slices = 0.0, []
    while len(slices) < stop_after:
        piece = plan.next_slice(list(rows.values()), used)
        if piece is None:
            break
        row = rows[piece.key]
        left = math.inf if done_after is None else done_after[piece.key] - row.minutes
        taken = min(left, math.inf if piece.minutes is None else piece.minutes)
        rows[piece.key] = replace(row, minutes=row.minutes + taken, done=taken == left)
        used += taken
        slices.append(piece)
    return {key: standing.minutes for key, standing in rows.items()}, slices


@given(MINUTES, st.floats(0, 1000))
def test_the_budget_fills_the_lowest_to_one_level(minutes, budget):
    level = water_level(minutes, budget)
    assert math.fsum(max(0.0, level - m) for m in minutes) == pytest.approx(budget, abs=1e-6)


def test_a_budget_brings_rows_to_equal_minutes():
    rows = [Standing("a", 0), Standing("b", 7), Standing("c", 0)]
    minutes, _ = follow(Plan(budget_minutes=11, slice_minutes=2), rows)
    assert minutes == pytest.approx({"a": 6 - 0.5, "b": 7, "c": 6 - 0.5})
    minutes, _ = follow(Plan(budget_minutes=20, slice_minutes=3), rows)
    assert minutes == pytest.approx({"a": 9, "b": 9, "c": 9})


@given(st.integers(0, 40), st.floats(0.5, 7))
def test_wherever_it_stops_rows_are_within_a_slice_of_each_other(stop_after, slice_minutes):
    plan = Plan(row_minutes=30, slice_minutes=slice_minutes)
    rows = [Standing(key) for key in "abcd"]
    minutes, slices = follow(plan, rows, stop_after=stop_after)
    assert max(minutes.values()) - min(minutes.values()) <= slice_minutes + 1e-9
    assert all(piece.minutes <= slice_minutes for piece in slices)
    rest, _ = follow(plan, [Standing(key, value) for key, value in minutes.items()])
    assert list(rest.values()) == pytest.approx([30] * 4, abs=0.005)


def test_row_minutes_are_reached_in_any_number_of_budgets():
    plan = Plan(row_minutes=5, budget_minutes=4, slice_minutes=10)
    minutes = {"a": 0.0, "b": 0.0, "c": 0.0}
    for _ in range(3):
        before = minutes
        minutes, _ = follow(plan, [Standing(key, value) for key, value in minutes.items()])
        assert sum(minutes.values()) - sum(before.values()) == pytest.approx(4)
        assert max(minutes.values()) == pytest.approx(min(minutes.values()))
    minutes, _ = follow(plan, [Standing(key, value) for key, value in minutes.items()])
    assert minutes == pytest.approx({"a": 5, "b": 5, "c": 5})
    assert not plan.remaining([Standing(key, value) for key, value in minutes.items()])


def test_what_a_finished_row_leaves_the_others_get():
    plan = Plan(epochs=3, budget_minutes=12, slice_minutes=1)
    rows = [Standing(key) for key in "abc"]
    minutes, _ = follow(plan, rows, done_after={"a": 2, "b": 100, "c": 100})
    assert minutes == pytest.approx({"a": 2, "b": 5, "c": 5})


def test_the_last_row_runs_to_its_end_where_nothing_limits_it():
    plan = Plan(epochs=3)
    assert plan.next_slice([Standing("a", 3), Standing("b", 1, done=True)], 0) == Slice("a", None)
    assert plan.next_slice([Standing("a", 3), Standing("b", 1)], 0) == Slice("b", 10)
    assert plan.next_slice([Standing("a", 3, done=True)], 0) is None


def test_an_empty_budget_trains_nothing():
    assert Plan(budget_minutes=0).next_slice([Standing("a")], 0) is None
    assert Plan(budget_minutes=5).next_slice([Standing("a")], 5) is None


def test_a_plan_says_how_long_a_run_is():
    preset = run_preset("mnist")
    assert Plan().configured(preset) == preset
    assert Plan(epochs=7).configured(preset).train.epochs == 7
    assert Plan(epochs=7).configured(preset).optim == preset.optim
    by_minutes = Plan(row_minutes=1).configured(preset)
    assert by_minutes.optim.schedule == "constant"  # a falling one needs to know the last step
    assert by_minutes.model == preset.model


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epochs": 3, "row_minutes": 4}, "give one of them"),
        ({"epochs": 0}, "--epochs"),
        ({"row_minutes": 0}, "--row-minutes"),
        ({"row_minutes": math.inf}, "--row-minutes"),
        ({"row_minutes": math.nan}, "--row-minutes"),
        ({"budget_minutes": -1}, "--budget-minutes"),
        ({"budget_minutes": math.nan}, "--budget-minutes"),
        ({"slice_minutes": 0}, "--slice-minutes"),
    ],
)
def test_contradictions_are_refused_by_name(options, named):
    with pytest.raises(ConfigError, match=named):
        Plan(**options)


def test_a_plan_says_in_words_how_long():
    assert "2 minutes" in Plan(row_minutes=2.0).describe()
    assert "3 epochs" in Plan(epochs=3).describe()
    assert "preset" in Plan().describe()
