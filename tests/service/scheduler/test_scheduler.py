"""The scheduler on an engine made of plain functions: how rows become batches."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import pytest

from service.errors import InvalidInput
from service.scheduler.scheduler import BATCH_SECONDS, SPREAD_ROWS


def test_one_request(plain):
    async def main():
        async with plain.Bench() as bench:
            result = await bench.submit([1, 2, 3])
            assert result.arrays["y"].tolist() == [2, 4, 6]
            assert result.queue_seconds >= 0.0
            assert result.compute_seconds > 0.0
        assert bench.counts.batches == [("double", 3, 1)]
        assert bench.queued_rows == 0

    plain.run(main())


def test_requests_collect_while_the_worker_is_busy(plain):
    async def main():
        async with plain.Bench() as bench:
            holder = await bench.hold()
            tasks = [bench.submit([10 + i], caller=str(i)) for i in range(8)]
            await asyncio.sleep(0.01)
            assert bench.queued_rows == 8
            bench.engine.gate.set()
            results = await asyncio.gather(holder, *tasks)
            assert [r.arrays["y"].tolist() for r in results[1:]] == [[20 + 2 * i] for i in range(8)]
        assert bench.engine.batches == [[-1], list(range(10, 18))]

    plain.run(main())


def test_those_who_come_in_one_turn_of_the_loop_share_a_batch(plain):
    async def main():
        async with plain.Bench() as bench:
            await asyncio.gather(*(bench.submit([i], caller=str(i)) for i in range(5)))
        assert bench.engine.batches == [[0, 1, 2, 3, 4]]

    plain.run(main())


def test_large_requests_are_split_and_put_together(plain):
    async def main():
        async with plain.Bench(workers=2) as bench:
            result = await bench.submit(range(100))
            assert result.arrays["y"].tolist() == list(range(0, 200, 2))
        assert max(map(len, bench.engine.batches)) == 8

    plain.run(main())


def test_work_is_spread_over_idle_workers(plain):
    async def main():
        async with plain.Bench(workers=2, max_batch_rows=32) as bench:
            await bench.submit(range(32))
            await bench.submit(range(10))
        assert sorted(map(len, bench.engine.batches)) == [2, 8, 16, 16]

    plain.run(main())


def test_batches_are_capped_in_bytes(plain):
    async def main():
        async with plain.Bench(max_batch_bytes=8 * 3) as bench:
            await bench.submit(range(7))
        assert list(map(len, bench.engine.batches)) == [3, 3, 1]

    plain.run(main())


def test_what_could_never_be_computed_is_refused_at_once(plain):
    async def main():
        async with plain.Bench() as bench:
            with pytest.raises(InvalidInput):
                await bench.submit([])
            with pytest.raises(InvalidInput):
                await bench.submit([1], operation="unheard of")

    plain.run(main())


def test_an_empty_queue_takes_what_is_larger_than_itself(plain):
    async def main():
        async with plain.Bench(max_queue_rows=10) as bench:
            assert (await bench.submit(range(50))).arrays["y"].shape == (50,)

    plain.run(main())


def test_as_many_batches_run_at_once_as_there_are_workers(plain):
    async def main():
        engine = plain.FakeEngine(seconds=0.005)
        async with plain.Bench(engine, workers=3) as bench:
            await bench.submit(range(96))
        assert engine.most_running == 3
        assert len(engine.threads) == 3

    plain.run(main())


def test_one_batch_is_assembled_ahead_and_no_more(plain):
    """With prefetch, the batch that waits for the device is formed; the rest stays in the queue."""

    async def main():
        async with plain.Bench(prefetch=1) as bench:
            assembled = []
            batcher = bench.batchers["double"]
            whole = batcher.assemble
            batcher.assemble = lambda pieces: assembled.append(pieces) or whole(pieces)
            await bench.hold()
            work = bench.submit(range(40))
            await asyncio.sleep(0.05)
            assert len(assembled) == 2
            assert bench.queued_rows == 32
            bench.engine.gate.set()
            await work
        assert bench.engine.most_running == 1

    plain.run(main())


def test_a_small_batch_that_is_alone_needs_no_thread(plain):
    async def main():
        async with plain.Bench(direct_seconds=10.0, workers=2) as bench:
            engine, here = bench.engine, threading.current_thread().name
            await bench.submit([1])  # what it costs is not known yet
            assert here not in engine.threads
            engine.threads.clear()
            assert (await bench.submit([2])).arrays["y"].tolist() == [4]
            assert engine.threads == {here}
            engine.threads.clear()
            await asyncio.gather(bench.submit([1], caller="a"), bench.submit([2], caller="b"))
            assert here not in engine.threads, "somebody else would have waited"
            engine.threads.clear()
            await bench.submit(range(50))
            assert here not in engine.threads, "more than one batch"

    plain.run(main())


@pytest.mark.parametrize("seconds", [0.0, 1e-9])
def test_what_takes_long_is_not_computed_on_the_event_loop(plain, seconds):
    async def main():
        async with plain.Bench(direct_seconds=seconds) as bench:
            for _ in range(3):
                await bench.submit([1])
        assert threading.current_thread().name not in bench.engine.threads

    plain.run(main())


def test_those_who_come_in_one_turn_with_two_operations_have_a_worker_each(plain):
    async def main():
        engine = plain.FakeEngine()
        engine.gate.clear()
        async with plain.Bench(engine, workers=2) as bench:
            jobs = [bench.submit([1]), bench.submit([2], operation="other")]
            for _ in jobs:
                await asyncio.to_thread(engine.started.acquire, timeout=5)
            assert engine.running == 2
            engine.gate.set()
            await asyncio.gather(*jobs)

    plain.run(main())


def test_batches_of_a_slow_operation_are_small(plain, monkeypatch):
    """So that nobody waits long for the work of others."""
    clock = plain.Clock()
    monkeypatch.setattr("service.scheduler.workers.time", clock)

    async def main():
        engine = plain.FakeEngine(seconds=8 * BATCH_SECONDS, clock=clock)
        async with plain.Bench(engine, max_batch_rows=64, max_queue_rows=1000) as bench:
            for _ in range(20):
                await bench.submit(range(64))  # an eighth of these rows is what may be
            engine.batches.clear()
            await bench.submit(range(64))
        assert max(map(len, engine.batches)) <= 8 == SPREAD_ROWS

    plain.run(main())


def test_images_are_whole_in_the_pieces_of_one_that_is_alone(plain):
    async def main():
        async with plain.Bench(workers=3, max_batch_rows=64) as bench:
            await bench.submit(range(40), samples=10)
        assert sorted(map(len, bench.engine.batches)) == [20, 20]
        assert all(batch[0] % 10 == 0 for batch in bench.engine.batches)

    plain.run(main())


def test_nothing_of_a_job_is_kept_until_its_deadline(plain):
    async def main():
        async with plain.Bench() as bench:
            job = bench.submit([1], deadline=time.monotonic() + 1000)
            answer = weakref.ref((await job).arrays["y"])
            del job
            for _ in range(100):
                if answer() is None:
                    break
                await asyncio.sleep(0.01)
                gc.collect()
            assert answer() is None

    plain.run(main())
