"""Who does not wait to the end: callers that go, deadlines that pass, a service that stops."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from service.errors import DeadlineExceeded, ShuttingDown


def test_cancelled_rows_are_not_computed(plain):
    async def main():
        async with plain.Bench() as bench:
            holder = await bench.hold()
            gone = bench.submit(range(50, 70), caller="gone")
            await asyncio.sleep(0.01)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            assert bench.queued_rows == 0
            bench.engine.gate.set()
            await holder
            await bench.submit([1])
        assert bench.engine.batches == [[-1], [1]]
        assert bench.counts.drops == {"cancelled": 20}

    plain.run(main())


def test_cancelling_between_batches_drops_the_rest(plain):
    async def main():
        async with plain.Bench(engine=plain.FakeEngine(seconds=0.01)) as bench:
            huge = bench.submit(range(1000))
            await asyncio.to_thread(bench.engine.started.acquire)
            huge.cancel()
            await asyncio.gather(huge, return_exceptions=True)
            await bench.submit([1])
        computed = sum(map(len, bench.engine.batches)) - 1
        assert computed <= 16
        assert computed + bench.counts.drops["cancelled"] == 1000

    plain.run(main())


def test_batches_that_wait_formed_are_dropped_too(plain):
    """A second thread has assembled the batch and waits for the device: its caller goes."""

    async def main():
        async with plain.Bench(prefetch=1) as bench:
            holder = await bench.hold()
            gone = bench.submit(range(5))
            await asyncio.sleep(0.02)
            assert bench.queued_rows == 0
            gone.cancel()
            await asyncio.sleep(0.01)
            bench.engine.gate.set()
            await holder
            await bench.submit([1])
        assert bench.engine.batches == [[-1], [1]]
        assert bench.counts.drops == {"cancelled": 5}

    plain.run(main())


def test_rows_whose_deadline_passes_in_a_formed_batch_have_expired(plain):
    async def main():
        async with plain.Bench(prefetch=1) as bench:
            holder = await bench.hold()
            late = bench.submit(range(5), deadline=time.monotonic() + 0.03)
            with pytest.raises(DeadlineExceeded):
                await late
            assert bench.queued_rows == 0
            bench.engine.gate.set()
            await holder
            await bench.submit([1])
        assert bench.engine.batches == [[-1], [1]]
        assert bench.counts.drops == {"expired": 5}

    plain.run(main())


def test_who_leaves_is_not_tried_again_in_a_failing_batch(plain):
    """A batch fails while one of its callers goes: the halves are run without its rows."""
    left = threading.Event()

    async def main():
        engine = plain.FakeEngine(fail_on={1: ValueError("bad")})
        loop, run = asyncio.get_running_loop(), engine.run

        def leaving(operation, arrays):
            if len(engine.batches) == 1:
                loop.call_soon_threadsafe(tasks[1].cancel)
                assert left.wait(5)
            return run(operation, arrays)

        engine.run = leaving
        async with plain.Bench(engine) as bench:
            await bench.submit([0])
            tasks = [bench.submit([i], caller=str(i)) for i in (1, 2, 3)]
            tasks[1].add_done_callback(lambda task: left.set())
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert results[2].arrays["y"].tolist() == [6]
        assert engine.batches == [[0], [1, 2, 3], [1], [3]]

    plain.run(main())


def test_deadlines(plain):
    async def main():
        async with plain.Bench() as bench:
            holder = await bench.hold()
            late = bench.submit(range(5), deadline=time.monotonic() + 0.03)
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await late
            assert time.monotonic() - began < 1.0  # while the engine was still held
            with pytest.raises(DeadlineExceeded):
                await bench.submit([1], deadline=time.monotonic() - 1)
            bench.engine.gate.set()
            await holder
            await bench.submit([1], deadline=time.monotonic() + 5)
        assert bench.counts.drops == {"expired": 5}
        assert bench.engine.batches == [[-1], [1]]

    plain.run(main())


def engines():
    """All engines' threads; other tests' servers have some too."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("engine-")}


def test_stopping_drains_and_then_refuses(plain):
    others = engines()

    async def main():
        bench = plain.Bench(plain.FakeEngine(seconds=0.01))
        with pytest.raises(ShuttingDown):
            await bench.submit([1])
        await bench.scheduler.start()
        tasks = [bench.submit(range(20), caller=str(i)) for i in range(3)]
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(bench.scheduler.stop(10.0))
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await bench.submit([1])
        assert all(len(r.arrays["y"]) == 20 for r in await asyncio.gather(*tasks))
        await stopping
        assert engines() == others

    plain.run(main())


def test_stopping_does_not_wait_for_ever(plain):
    async def main():
        async with plain.Bench() as bench:
            await bench.hold()
            waiting = bench.submit(range(5))
            await asyncio.sleep(0.01)
            stopping = asyncio.ensure_future(bench.scheduler.stop(0.02))
            with pytest.raises(ShuttingDown):
                await waiting
            bench.engine.gate.set()
            await stopping
        assert bench.counts.drops["shutdown"] == 5

    plain.run(main())
