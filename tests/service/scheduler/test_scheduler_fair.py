"""Who is served when: callers in turn, operations by what they cost, and room for newcomers."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from service.errors import Overloaded
from service.scheduler.work import Job


def test_a_huge_request_shares_every_batch_with_small_ones(plain):
    async def main():
        async with plain.Bench(max_queue_rows=10_000) as bench:
            await bench.hold()
            huge = bench.submit(range(1000, 2000), caller="huge")
            small = [bench.submit([i], caller=f"small {i}") for i in range(3)]
            await asyncio.sleep(0.01)
            bench.engine.gate.set()
            await asyncio.gather(*small)
            assert not huge.done()
            await huge
        assert {0, 1, 2} <= set(bench.engine.batches[1])

    plain.run(main())


def test_a_flood_of_one_caller_does_not_hold_up_another(plain):
    async def main():
        async with plain.Bench() as bench:
            await bench.hold()
            flood = [bench.submit([i], caller="flood") for i in range(100, 150)]
            single = bench.submit([7], caller="single")
            await asyncio.sleep(0.01)
            bench.engine.gate.set()
            await asyncio.gather(single, *flood)
        assert 7 in bench.engine.batches[1]

    plain.run(main())


def test_operations_take_turns(plain):
    async def main():
        async with plain.Bench() as bench:
            await bench.hold()
            first = bench.submit(range(100, 130), caller="a")
            other = bench.submit([5], caller="b", operation="other")
            await asyncio.sleep(0.01)
            bench.engine.gate.set()
            await asyncio.gather(first, other)
        assert [5] in bench.engine.batches[1:3]

    plain.run(main())


@pytest.fixture
def clock(plain, monkeypatch):
    """The workers' clock, which the engine advances."""
    made = plain.Clock()
    monkeypatch.setattr("service.scheduler.workers.time", made)
    return made


def test_the_time_in_the_queue_ends_where_the_first_batch_begins(plain, clock, monkeypatch):
    monkeypatch.setattr("service.scheduler.work.time", clock)

    async def main():
        engine = plain.FakeEngine(seconds=0.25, clock=clock)
        async with plain.Bench(engine) as bench:
            holder = await bench.hold()
            waiting = bench.submit(range(20))  # three batches
            await asyncio.sleep(0.01)
            clock.sleep(0.5)
            bench.engine.gate.set()
            result = await waiting
            assert result.queue_seconds == pytest.approx(0.75)  # with the holder's batch
            assert result.compute_seconds == pytest.approx(0.75)
            assert (await holder).queue_seconds == 0.0

    plain.run(main())


def test_of_batches_that_end_out_of_order_the_first_counts(plain):
    job = Job(plain.Rows(list(range(16))))
    part = {"y": np.zeros(8)}
    job.add(8, 16, part, began=job.submitted + 2.0, seconds=1.0)
    job.add(0, 8, part, began=job.submitted + 1.0, seconds=2.5)
    assert job.queue_seconds == pytest.approx(1.0)
    assert job.compute_seconds == 3.5


def test_a_dear_operation_gets_no_more_time_than_a_cheap_one(plain, clock):
    """Batches of "double" take four times as long: "other" has four batches for each of them."""

    async def main():
        engine = plain.FakeEngine(seconds={"double": 0.02, "other": 0.005}, clock=clock)
        async with plain.Bench(engine, max_queue_rows=10_000) as bench:
            for operation in ("double", "other"):
                await bench.submit(range(8), operation=operation)  # costs are known from here on
            await bench.hold()
            dear = bench.submit(range(80), caller="a")
            cheap = bench.submit(range(320), caller="b", operation="other")
            await asyncio.sleep(0.01)
            bench.engine.gate.set()
            await asyncio.gather(dear, cheap)
        order = engine.operations[3:]
        assert order.count("double") == 10
        for count in range(1, 10):
            begun = order[: 5 * count]
            assert abs(begun.count("other") - 4 * begun.count("double")) <= 5

    plain.run(main())


def test_a_full_queue_refuses_and_says_when_to_come_back(plain):
    async def main():
        async with plain.Bench(max_queue_rows=10, engine=plain.FakeEngine(seconds=0.02)) as bench:
            await bench.submit(range(4))  # a cost is known from here on
            await bench.hold()
            waiting = bench.submit(range(8), caller="a")
            await asyncio.sleep(0.01)
            with pytest.raises(Overloaded) as caught:
                await bench.submit(range(3), caller="b")
            assert 0.0 < caught.value.retry_after_seconds < 60.0
            fits = bench.submit(range(2), caller="c")
            await asyncio.sleep(0)
            bench.engine.gate.set()
            await asyncio.gather(waiting, fits)

    plain.run(main())


@pytest.mark.parametrize("workers", [1, 2])
def test_the_time_to_come_back_is_what_the_queue_will_cost(plain, clock, workers):
    async def main():
        engine = plain.FakeEngine(seconds=0.05, clock=clock)
        async with plain.Bench(engine, max_queue_rows=80, workers=workers) as bench:
            for _ in range(3):
                await bench.submit(range(8))
            held = [await bench.hold() for _ in range(workers)]
            waiting = bench.submit(range(80))
            await asyncio.sleep(0.01)
            with pytest.raises(Overloaded) as caught:
                await bench.submit([1], caller="b")
            # Ten batches of 50 ms, and a row that runs on each worker.
            whole = 0.5 + workers * 0.05 / 8
            assert caught.value.retry_after_seconds == pytest.approx(whole / workers)
            bench.engine.gate.set()
            await asyncio.gather(waiting, *held)

    plain.run(main())


def test_a_flood_leaves_room_for_others(plain):
    """One caller alone fills half of the queue; whoever comes later is let in."""

    async def main():
        async with plain.Bench(max_queue_rows=100) as bench:
            await bench.hold()
            flood = [bench.submit([i], caller="flood") for i in range(300)]
            await asyncio.sleep(0.01)
            assert bench.queued_rows == 50
            others = [bench.submit(range(5), caller=f"other {i}") for i in range(5)]
            await asyncio.sleep(0.01)
            assert not any(task.done() for task in others)
            bench.engine.gate.set()
            assert all(len(r.arrays["y"]) == 5 for r in await asyncio.gather(*others))
            outcomes = await asyncio.gather(*flood, return_exceptions=True)
            refused = [o for o in outcomes if isinstance(o, Overloaded)]
            assert len(refused) == 250
            assert "of this caller wait" in str(refused[0])

    plain.run(main())
