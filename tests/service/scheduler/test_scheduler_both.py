"""Two works of one request: computed at once, let in together, and gone together."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from service.errors import DeadlineExceeded, EngineFailure, Overloaded


def both(plain, bench, first, second, **options):
    works = plain.Rows(list(first)), plain.Rows(list(second), "other")
    return asyncio.ensure_future(bench.scheduler.submit_both(*works, **options))


async def nothing_left(bench, rows=0):
    await asyncio.sleep(0.01)
    assert bench.scheduler.queued_rows == rows
    bench.engine.gate.set()
    await bench.submit([1])


@pytest.mark.parametrize("workers", [1, 2])
def test_both_are_answered(plain, workers):
    async def main():
        async with plain.Bench(workers=workers) as bench:
            for _ in range(3):
                first, second = await both(plain, bench, range(20), [7, 8])
                assert first.arrays["y"].tolist() == list(range(0, 40, 2))
                assert second.arrays["y"].tolist() == [14, 16]

    plain.run(main())


def test_they_run_side_by_side(plain):
    async def main():
        async with plain.Bench(plain.FakeEngine(seconds=0.05), workers=2) as bench:
            await both(plain, bench, [1], [2])
            assert bench.engine.most_running == 2

    plain.run(main())


def test_alone_and_quick_they_need_no_thread(plain):
    async def main():
        async with plain.Bench(direct_seconds=10.0, workers=2) as bench:
            await both(plain, bench, [1], [2])  # what they cost is not known yet
            bench.engine.threads.clear()
            first, second = await both(plain, bench, [1], [2])
            assert (first.arrays["y"].tolist(), second.arrays["y"].tolist()) == ([2], [4])
            assert bench.engine.threads == {threading.current_thread().name}

    plain.run(main())


def test_alone_they_wait_in_no_line(plain):
    async def main():
        async with plain.Bench(workers=2) as bench:
            pushed = []
            bench.scheduler._queue.push = pushed.append
            await both(plain, bench, range(8), [2])
        assert not pushed

    plain.run(main())


@pytest.mark.parametrize("sizes", [(6, 1), (1, 6), (3, 3)])
def test_refused_together(plain, sizes):
    async def main():
        async with plain.Bench() as bench:
            holder = await bench.hold()
            waits = bench.submit(range(95), caller="a")
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await both(plain, bench, *map(range, sizes), caller="b")
            await nothing_left(bench, rows=95)
            await asyncio.gather(holder, waits)
            assert not bench.counts.drops
            assert "b" not in bench.counts.rows, "who is refused pays nothing"
            assert "other" not in bench.engine.operations

    plain.run(main())


def test_an_empty_queue_takes_both_however_large(plain):
    async def main():
        async with plain.Bench() as bench:
            await bench.hold()
            large = both(plain, bench, range(150), range(90))
            await asyncio.sleep(0.01)
            assert bench.scheduler.queued_rows == 240
            bench.engine.gate.set()
            assert len((await large)[1].arrays["y"]) == 90

    plain.run(main())


def test_when_one_fails_the_other_is_dropped(plain):
    async def main():
        engine = plain.FakeEngine(fail_on={50: ValueError("bad")}, seconds=0.01)
        async with plain.Bench(engine) as bench:
            with pytest.raises(EngineFailure):
                await both(plain, bench, [50], range(80))
            await nothing_left(bench)
            assert bench.counts.drops["cancelled"] > 0

    plain.run(main())


def test_a_deadline_ends_both(plain):
    async def main():
        async with plain.Bench() as bench:
            await bench.hold()
            with pytest.raises(DeadlineExceeded):
                await both(plain, bench, range(5), range(3), deadline=time.monotonic() + 0.02)
            await nothing_left(bench)
            assert bench.counts.drops["expired"] + bench.counts.drops["cancelled"] == 8
            assert "other" not in bench.engine.operations

    plain.run(main())


def test_who_goes_takes_both_along(plain):
    async def main():
        async with plain.Bench() as bench:
            await bench.hold()
            gone = both(plain, bench, range(5), range(3))
            await asyncio.sleep(0.01)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            await nothing_left(bench)
            assert bench.counts.drops == {"cancelled": 8}

    plain.run(main())
