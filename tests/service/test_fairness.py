"""The queue by itself: every row leaves once, callers share; and the costs fitted to batches."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.cost import CostModel
from service.fairness import FairQueue


@dataclass
class Queued:
    operation: str
    caller: str
    rows: int
    taken: int = 0
    gone: bool = False


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(1, 30))),
    st.integers(1, 12),
    st.sets(st.integers(0, 20)),
)
def test_every_row_leaves_the_queue_once_and_in_order(jobs, capacity, discarded):
    queue = FairQueue()
    made = [Queued(*job) for job in jobs]
    for job in made:
        queue.push(job)
    for i in discarded & set(range(len(made))):
        assert queue.discard(made[i]) == made[i].rows
    seen = {id(job): 0 for job in made}
    while (taken := queue.take(lambda operation: capacity)) is not None:
        operation, spans = taken
        assert sum(span.rows for span in spans) <= capacity
        assert len({id(span.job) for span in spans}) == len(spans)
        for span in spans:
            assert span.job.operation == operation
            assert span.start == seen[id(span.job)]
            seen[id(span.job)] = span.stop
    expected = {id(job): 0 if job.gone else job.rows for job in made}
    assert seen == expected
    assert queue.rows == 0


def test_a_batch_is_shared_equally_and_the_rest_goes_to_who_can_use_it():
    queue = FairQueue()
    for caller, rows in (("huge", 500), ("large", 40), ("small", 1)):
        queue.push(Queued("f", caller, rows))
    _, spans = queue.take(lambda operation: 30)
    got = {span.job.caller: span.rows for span in spans}
    assert got["small"] == 1
    assert got["large"] >= 10
    assert sum(got.values()) == 30


def test_costs_are_fitted():
    costs = CostModel()
    assert costs.seconds("f", 10, 8) == 0.0
    for rows in (1, 8, 4, 2, 8, 1) * 5:
        costs.add("f", rows, 0.01 + 0.002 * rows)
    assert costs.seconds("f", 16, 8) == pytest.approx(2 * 0.01 + 16 * 0.002, rel=1e-3)
    for _ in range(3):
        costs.add("g", 8, 0.4)
    assert costs.seconds("g", 16, 8) == pytest.approx(0.8)
