"""The queue by itself: every row leaves once, callers share."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.scheduler.queue import FairQueue


@dataclass(eq=False)
class Queued:
    operation: str
    caller: str
    rows: int
    images: int = 1
    taken: int = 0

    @property
    def samples(self):
        return self.rows // self.images

    @property
    def holder(self):
        return self.caller.partition("/")[0]


def rows_of(pieces):
    return sum(stop - start for _, start, stop in pieces)


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.sampled_from(["x", "x/1", "y/1", "y/2", "z"]),
            st.integers(1, 30),
        )
    ),
    st.integers(1, 12),
    st.sets(st.integers(0, 20)),
    st.integers(0, 8),
)
def test_every_row_leaves_the_queue_once_and_in_order(jobs, capacity, discarded, quick):
    queue = FairQueue(1000, quick)
    made = [Queued(*job) for job in jobs]
    for job in made:
        queue.push(job)
    gone = discarded & set(range(len(made)))
    for i in gone:
        assert queue.discard(made[i]) == made[i].rows
    seen = {id(job): 0 for job in made}
    while (taken := queue.take(lambda operation: capacity)) is not None:
        operation, pieces = taken
        assert rows_of(pieces) <= capacity
        assert len({id(job) for job, _, _ in pieces}) == len(pieces)
        for job, start, stop in pieces:
            assert job.operation == operation
            assert start == seen[id(job)]
            assert stop > start
            seen[id(job)] = stop
    expected = {id(job): 0 if i in gone else job.rows for i, job in enumerate(made)}
    assert seen == expected
    assert queue.rows == 0


@pytest.mark.parametrize("rows", [1, 20])
def test_where_more_wait_than_a_batch_has_rows_they_have_it_in_turn(rows):
    queue = FairQueue(1000)
    for caller in "abcdef":
        for _ in range(20 // rows):
            queue.push(Queued("x", caller, rows))
    had = Counter[str]()
    for _ in range(6):
        taken = queue.take(lambda operation: 4)
        assert taken is not None
        for job, start, stop in taken[1]:
            had[job.caller] += stop - start
    assert had == dict.fromkeys("abcdef", 4)


def test_a_batch_is_shared_equally_and_the_rest_goes_to_who_can_use_it():
    queue = FairQueue(1000)
    for caller, rows in (("huge", 500), ("large", 40), ("small", 1)):
        queue.push(Queued("f", caller, rows))
    _, pieces = queue.take(lambda operation: 30)
    got = {job.caller: stop - start for job, start, stop in pieces}
    assert got["small"] == 1
    assert got["large"] >= 10
    assert sum(got.values()) == 30


def test_many_connections_of_one_holder_have_one_share():
    queue = FairQueue(10_000)
    for connection in range(64):
        queue.push(Queued("f", f"flood/{connection}", 100, images=100))
    queue.push(Queued("f", "polite/1", 2000, images=2000))
    got = Counter()
    for _ in range(32):
        _, pieces = queue.take(lambda operation: 64)
        rows = {job.caller: stop - start for job, start, stop in pieces}
        assert rows["polite/1"] == 32
        got.update(rows)
    assert set(got.values()) == {32 * 32, 16}, "a holder's connections take turns among themselves"
    assert queue.refusal("flood", 3_500) is not None, "what all of its connections hold counts"
    assert queue.refusal("somebody", 3_500) is None


def test_a_small_job_does_not_wait_for_what_fills_its_batch():
    queue = FairQueue(1000, 8)
    queue.push(Queued("f", "huge", 500))
    assert rows_of(queue.take(lambda operation: 32)[1]) == 32
    queue.push(Queued("f", "small", 1))
    _, pieces = queue.take(lambda operation: 32)
    assert {job.caller: stop - start for job, start, stop in pieces} == {"huge": 8, "small": 1}
    assert queue.rows == 500 - 32 - 8


def test_no_flood_of_small_jobs_stops_one_that_goes_on():
    queue = FairQueue(10_000, 8)
    huge = Queued("f", "huge", 100)
    queue.push(huge)
    for turn in range(100):
        for i in range(20):
            queue.push(Queued("f", f"{turn}-{i}", 1))
        queue.take(lambda operation: 32)
        if huge.taken == huge.rows:
            break
    assert turn < 50, "it has a quarter of its share at least, which is twelve rows here"


def test_jobs_that_all_go_on_fill_their_batches():
    queue = FairQueue(1000, 8)
    for caller in "abcd":
        queue.push(Queued("f", caller, 64))
    for _ in range(8):
        _, pieces = queue.take(lambda operation: 32)
        assert rows_of(pieces) == 32
    assert queue.rows == 0


def test_an_operation_that_was_away_does_not_catch_up():
    """It has no claim to what others had meanwhile: from now on they share."""
    queue = FairQueue(10_000)
    queue.push(Queued("f", "a", 500))
    for _ in range(20):
        assert queue.take(lambda operation: 5)[0] == "f"
        queue.charge("f", 1.0)
    queue.push(Queued("g", "b", 500))
    order = []
    for _ in range(10):
        operation, _ = queue.take(lambda operation: 5)
        queue.charge(operation, 1.0)
        order.append(operation)
    assert order.count("g") in {5, 6}


@pytest.mark.parametrize(("first", "late"), [("a", "b"), ("lab/1", "lab/2")])
def test_who_comes_late_does_not_catch_up(first, late):
    """Neither a holder nor a connection has a claim to what others had before it came."""
    queue = FairQueue(100_000)
    queue.push(Queued("f", first, 5000, images=5000))
    for _ in range(50):
        queue.take(lambda operation: 32)
    queue.push(Queued("f", late, 5000, images=5000))
    got = Counter()
    for _ in range(10):
        _, pieces = queue.take(lambda operation: 32)
        got.update({job.caller: stop - start for job, start, stop in pieces})
    assert sum(got.values()) == 320
    assert abs(got[first] - got[late]) <= 2 * 16


def test_operations_of_unknown_cost_take_turns():
    queue = FairQueue(1000)
    for operation in "fgh":
        queue.push(Queued(operation, "a", 10))
    order = [queue.take(lambda operation: 5)[0] for _ in range(6)]
    assert sorted(order[:3]) == sorted(order[3:]) == ["f", "g", "h"]


def test_images_are_counted_with_their_rows():
    queue = FairQueue(1000)
    queue.push(Queued("score", "a", 64, images=4))
    queue.push(Queued("score", "b", 10, images=10))
    assert list(queue.waiting()) == [("score", 74, 14.0)]
    _, pieces = queue.take(lambda operation: 20)
    assert {job.caller: stop - start for job, start, stop in pieces} == {"a": 10, "b": 10}
    assert list(queue.waiting()) == [("score", 54, 4 - 10 / 16)]


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60)), min_size=1))
def test_the_queue_is_never_above_its_capacity_and_has_room_for_newcomers(requests):
    """A caller that waits holds at most as much as was free; one that does not, what there is."""
    queue = FairQueue(100)
    held = dict.fromkeys("abc", 0)
    for caller, rows in requests:
        free = 100 - sum(held.values())
        refused = queue.refusal(caller, rows) is not None
        fits = rows <= free and (not held[caller] or held[caller] + rows <= free)
        assert refused != (fits or free == 100)
        if not refused:
            queue.push(Queued("f", caller, rows))
            held[caller] += rows
        assert queue.rows == sum(held.values()) <= 100


def test_a_queue_keeps_no_shells():
    queue = FairQueue(100)
    jobs = [Queued("f", str(i), 2) for i in range(5)]
    for job in jobs:
        queue.push(job)
    for job in jobs:
        assert queue.discard(job) == 2
        assert queue.discard(job) == 0
    assert queue.rows == 0
    assert not queue._lines["f"].members
    assert queue.take(lambda operation: 8) is None


def cuts(queue, capacity):
    """Of each batch, caller -> the rows of its piece."""
    while (taken := queue.take(lambda operation: capacity)) is not None:
        yield {job.caller: (start, stop) for job, start, stop in taken[1]}


def test_images_stay_whole_where_there_is_room():
    """What is computed once for an image is not computed in every batch."""
    queue = FairQueue(10_000)
    for caller in "abcdefgh":
        queue.push(Queued("f", caller, 16))
    assert list(cuts(queue, 40)) == [
        {"a": (0, 16), "b": (0, 16), "c": (0, 8)},
        {"d": (0, 16), "e": (0, 16), "f": (0, 8)},
        {"c": (8, 16), "f": (8, 16), "g": (0, 16), "h": (0, 8)},
        {"h": (8, 16)},
    ]


def test_shares_are_of_whole_images_and_what_room_is_left_is_filled():
    """Of 38 rows each has 19: a has an image of 16 and four rows more, b six of 3."""
    queue = FairQueue(10_000)
    queue.push(Queued("f", "a", 64, images=4))
    queue.push(Queued("f", "b", 30, images=10))
    assert next(cuts(queue, 38)) == {"a": (0, 20), "b": (0, 18)}


def test_who_asks_for_little_is_in_the_batch_beside_large_images():
    queue = FairQueue(10_000)
    for caller in "abc":
        queue.push(Queued("f", caller, 1000))
    queue.push(Queued("f", "small", 1))
    assert next(cuts(queue, 40)) == {"small": (0, 1), "a": (0, 16), "b": (0, 16), "c": (0, 7)}


def test_large_images_go_on_beside_a_flood_of_small_ones():
    queue = FairQueue(10_000)
    queue.push(Queued("f", "large", 1000))
    for caller in range(60):
        queue.push(Queued("f", f"{caller}", 20, images=20))
    pieces = [batch.get("large", (0, 0)) for batch in itertools.islice(cuts(queue, 64), 16)]
    assert sum(stop - start for start, stop in pieces) >= 16 * 64 // 61, "an equal share"


def test_jobs_end_one_after_another_and_not_all_at_last():
    """Four of 64 rows, cut into pieces that are worth their while: an equal share at any time."""
    queue = FairQueue(1000)
    for caller in "abcd":
        queue.push(Queued("f", caller, 64, images=64))
    pieces = list(cuts(queue, 32))
    assert [set(batch) for batch in pieces] == [{"a", "b"}, {"c", "d"}] * 4
    assert all(stop - start == 16 for batch in pieces for start, stop in batch.values())


@settings(max_examples=200)
@given(st.lists(st.integers(1, 400), min_size=2, max_size=24), st.integers(8, 64))
def test_who_waits_longer_is_never_passed_by_more_than_two_pieces(sizes, capacity):
    """At any time nobody who still waits has had much less than anybody else."""
    queue = FairQueue(10_000)
    jobs = [Queued("f", str(i), rows, images=rows) for i, rows in enumerate(sizes)]
    for job in jobs:
        queue.push(job)
    while queue.take(lambda operation: capacity) is not None:
        waiting = [job.taken for job in jobs if job.taken < job.rows]
        if waiting:
            assert max(job.taken for job in jobs) <= min(waiting) + 2 * 16 + capacity // len(sizes)


def test_small_jobs_end_beside_whole_images():
    """What goes on gives up most of its rows, but no half of an image."""
    queue = FairQueue(1000, 8)
    queue.push(Queued("f", "huge", 400, images=100))
    queue.push(Queued("f", "small", 1))
    assert next(cuts(queue, 32)) == {"huge": (0, 8), "small": (0, 1)}


def test_what_goes_on_gives_up_no_more_than_the_small_ones_gain():
    """A batch of eight rows is as quick as one of fewer: nobody is helped by less."""
    queue = FairQueue(1000, 8)
    for caller in "ab":
        queue.push(Queued("f", caller, 400, images=400))
    queue.push(Queued("f", "small", 1))
    _, pieces = queue.take(lambda operation: 21)
    assert rows_of(pieces) == 8
    assert {job.caller for job, _, _ in pieces} == {"a", "b", "small"}


def test_batches_after_a_small_job_leave_room_for_the_next_one():
    """It may come while a batch is computed, and waits for the end of that."""
    queue = FairQueue(10_000, 8)
    queue.push(Queued("f", "huge", 2000, images=2000))
    alone = next(cuts(queue, 32))
    assert alone == {"huge": (0, 32)}
    queue.push(Queued("f", "small", 1))
    batches = list(itertools.islice(cuts(queue, 32), 18))
    rows = [stop - start for batch in batches for start, stop in [batch["huge"]]]
    assert "small" in batches[0]
    assert rows == [8] * 16 + [32] * 2


def test_an_image_that_was_cut_is_ended_before_the_next_begins():
    """Else every later piece would have parts of two images, each of them computed twice."""
    queue = FairQueue(1000)
    for caller in "ab":
        queue.push(Queued("f", caller, 64, images=4))
    first, second, *_ = cuts(queue, 24)
    assert first == {"a": (0, 16), "b": (0, 8)}
    assert second == {"b": (8, 16), "a": (16, 32)}


def test_a_holder_whose_rows_have_left_has_none():
    """It may have all that is free again, and nothing is kept of it."""
    queue = FairQueue(100)
    queue.push(Queued("f", "a/1", 10))
    assert queue.refusal("a", 81) is not None
    queue.take(lambda operation: 10)
    assert queue.refusal("a", 100) is None
    assert not queue._rows_by_holder
