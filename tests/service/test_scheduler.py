"""The scheduler on an engine made of plain functions: what is batched, dropped, retried, and
when.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import (
    DeadlineExceeded,
    DeviceFault,
    EngineFailure,
    InvalidInput,
    Overloaded,
    ShuttingDown,
)
from service.scheduler import Scheduler


@dataclass
class Rows:
    """A work whose answer is twice its values."""

    values: list[int]
    operation: str = "double"

    @property
    def rows(self):
        return len(self.values)


class PlainBatcher:
    row_bytes = 8

    def assemble(self, pieces):
        return {"x": np.concatenate([work.values[a:b] for work, a, b in pieces])}

    def split(self, pieces, outputs):
        ends = np.cumsum([b - a for _, a, b in pieces])[:-1]
        return [{"y": part} for part in np.split(outputs["y"], ends)]


@dataclass
class FakeEngine:
    """Doubles; remembers batches; can be held, and fails on values it is told to."""

    fail_on: dict[int, BaseException] = field(default_factory=dict)
    batches: list[list[int]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    started: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    seconds: float = 0.0

    def __post_init__(self):
        self.gate.set()

    def run(self, operation, arrays):
        values = arrays["x"].tolist()
        self.batches.append(values)
        self.started.release()
        assert self.gate.wait(10)
        time.sleep(self.seconds)
        for value in values:
            if value in self.fail_on:
                raise self.fail_on[value]
        return {"y": 2 * arrays["x"]}

    def padded_rows(self, rows):
        return -rows % 4


class Counts:
    def __init__(self):
        self.batches, self.drops, self.queued = [], Counter(), []

    def batch(self, operation, rows, padded, seconds):
        self.batches.append((operation, rows, padded))

    def dropped(self, operation, rows, reason):
        self.drops[reason] += rows

    def queue(self, rows):
        self.queued.append(sum(rows.values()))


class Bench:
    """A started scheduler with its engine and counts."""

    def __init__(self, engine=None, *, observer=None, **limits):
        self.engine = engine or FakeEngine()
        self.counts = observer or Counts()
        usual = {"max_batch_rows": 8, "max_queue_rows": 100, "workers": 1}
        self.scheduler = Scheduler(
            self.engine,
            {name: PlainBatcher() for name in ("double", "other")},
            **{**usual, **limits},
            observer=self.counts,
        )

    async def __aenter__(self):
        await self.scheduler.start()
        return self

    async def __aexit__(self, *error):
        self.engine.gate.set()
        await self.scheduler.stop(5.0)

    def submit(self, values, **options):
        operation = options.pop("operation", "double")
        return asyncio.ensure_future(
            self.scheduler.submit(Rows(list(values), operation), **options)
        )

    async def hold(self):
        """Occupy the one worker until the gate opens."""
        self.engine.gate.clear()
        holder = self.submit([-1], caller="holder")
        await asyncio.to_thread(self.engine.started.acquire)
        return holder


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def test_one_request():
    async def main():
        async with Bench() as bench:
            result = await bench.submit([1, 2, 3])
            assert result.arrays["y"].tolist() == [2, 4, 6]
            assert result.batch_rows == 3
            assert result.queue_seconds >= 0.0
            assert result.compute_seconds > 0.0
        assert bench.counts.batches == [("double", 3, 1)]
        assert bench.counts.queued[-1] == 0

    run(main())


def test_requests_collect_while_the_worker_is_busy():
    async def main():
        async with Bench() as bench:
            holder = await bench.hold()
            tasks = [bench.submit([10 + i], caller=str(i)) for i in range(8)]
            await asyncio.sleep(0.01)
            assert bench.scheduler.queued_rows == 8
            bench.engine.gate.set()
            results = await asyncio.gather(holder, *tasks)
            assert [r.arrays["y"].tolist() for r in results[1:]] == [[20 + 2 * i] for i in range(8)]
        assert bench.engine.batches == [[-1], list(range(10, 18))]

    run(main())


def test_those_who_come_in_one_turn_of_the_loop_share_a_batch():
    async def main():
        async with Bench() as bench:
            await asyncio.gather(*(bench.submit([i], caller=str(i)) for i in range(5)))
        assert bench.engine.batches == [[0, 1, 2, 3, 4]]

    run(main())


def test_large_requests_are_split_and_put_together():
    async def main():
        async with Bench(workers=2) as bench:
            result = await bench.submit(range(100))
            assert result.arrays["y"].tolist() == list(range(0, 200, 2))
        assert max(map(len, bench.engine.batches)) == 8

    run(main())


def test_work_is_spread_over_idle_workers():
    async def main():
        async with Bench(workers=2, max_batch_rows=32) as bench:
            await bench.submit(range(32))
            await bench.submit(range(10))
        assert sorted(map(len, bench.engine.batches)) == [2, 8, 16, 16]

    run(main())


def test_batches_are_capped_in_bytes():
    async def main():
        async with Bench(max_batch_bytes=8 * 3) as bench:
            await bench.submit(range(7))
        assert list(map(len, bench.engine.batches)) == [3, 3, 1]

    run(main())


def test_a_huge_request_shares_every_batch_with_small_ones():
    async def main():
        async with Bench(max_queue_rows=10_000) as bench:
            await bench.hold()
            huge = bench.submit(range(1000, 2000), caller="huge")
            small = [bench.submit([i], caller=f"small {i}") for i in range(3)]
            await asyncio.sleep(0.01)
            bench.engine.gate.set()
            await asyncio.gather(*small)
            assert not huge.done()
            await huge
        assert {0, 1, 2} <= set(bench.engine.batches[1])

    run(main())


def test_a_flood_of_one_caller_does_not_hold_up_another():
    async def main():
        async with Bench() as bench:
            await bench.hold()
            flood = [bench.submit([i], caller="flood") for i in range(100, 150)]
            single = bench.submit([7], caller="single")
            await asyncio.sleep(0.01)
            bench.engine.gate.set()
            await asyncio.gather(single, *flood)
        assert 7 in bench.engine.batches[1]

    run(main())


def test_operations_take_turns():
    async def main():
        async with Bench() as bench:
            await bench.hold()
            first = bench.submit(range(100, 130), caller="a")
            other = bench.submit([5], caller="b", operation="other")
            await asyncio.sleep(0.01)
            bench.engine.gate.set()
            await asyncio.gather(first, other)
        assert [5] in bench.engine.batches[1:3]

    run(main())


def test_a_full_queue_refuses_and_says_when_to_come_back():
    async def main():
        async with Bench(max_queue_rows=10, engine=FakeEngine(seconds=0.02)) as bench:
            await bench.submit(range(4))  # a cost is known from here on
            await bench.hold()
            waiting = bench.submit(range(8))
            await asyncio.sleep(0.01)
            with pytest.raises(Overloaded) as caught:
                await bench.submit(range(3))
            assert 0.0 < caught.value.retry_after_seconds < 60.0
            fits = bench.submit(range(2))
            await asyncio.sleep(0)
            bench.engine.gate.set()
            await asyncio.gather(waiting, fits)

    run(main())


def test_what_could_never_be_computed_is_refused_at_once():
    async def main():
        async with Bench() as bench:
            with pytest.raises(InvalidInput):
                await bench.submit([])
            with pytest.raises(InvalidInput):
                await bench.submit([1], operation="unheard of")

    run(main())


def test_an_empty_queue_takes_what_is_larger_than_itself():
    async def main():
        async with Bench(max_queue_rows=10) as bench:
            assert (await bench.submit(range(50))).arrays["y"].shape == (50,)

    run(main())


def test_cancelled_rows_are_not_computed():
    async def main():
        async with Bench() as bench:
            holder = await bench.hold()
            gone = bench.submit(range(50, 70), caller="gone")
            await asyncio.sleep(0.01)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            assert bench.scheduler.queued_rows == 0
            bench.engine.gate.set()
            await holder
            await bench.submit([1])
        assert bench.engine.batches == [[-1], [1]]
        assert bench.counts.drops == {"cancelled": 20}

    run(main())


def test_cancelling_between_batches_drops_the_rest():
    async def main():
        async with Bench(engine=FakeEngine(seconds=0.01)) as bench:
            huge = bench.submit(range(1000))
            await asyncio.to_thread(bench.engine.started.acquire)
            huge.cancel()
            await asyncio.gather(huge, return_exceptions=True)
            await bench.submit([1])
        computed = sum(map(len, bench.engine.batches)) - 1
        assert computed <= 16
        assert computed + bench.counts.drops["cancelled"] == 1000

    run(main())


def test_batches_that_wait_formed_are_dropped_too():
    async def main():
        async with Bench(prefetch=1) as bench:
            holder = await bench.hold()
            gone = bench.submit(range(5))
            await asyncio.sleep(0.01)
            assert bench.scheduler.queued_rows == 0  # it is in the inbox of the worker
            gone.cancel()
            await asyncio.sleep(0.01)
            bench.engine.gate.set()
            await holder
        assert bench.engine.batches == [[-1]]
        assert bench.counts.drops == {"cancelled": 5}

    run(main())


def test_deadlines():
    async def main():
        async with Bench() as bench:
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

    run(main())


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(0, 7), max_size=8))
def test_a_bad_row_fails_alone(bad):
    engine = FakeEngine(fail_on={value: EngineFailure(f"row {value}") for value in bad})

    async def main():
        async with Bench(engine) as bench:
            tasks = [bench.submit([i], caller=str(i)) for i in range(8)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for i, result in enumerate(results):
                if i in bad:
                    assert isinstance(result, EngineFailure)
                else:
                    assert result.arrays["y"].tolist() == [2 * i]
            assert bench.scheduler.healthy
            assert (await bench.submit([20])).arrays["y"].tolist() == [40]

    run(main())


@pytest.mark.parametrize("error", [ValueError("odd"), SystemExit(1), KeyboardInterrupt()])
def test_whatever_a_run_raises_costs_its_own_request_only(error):
    async def main():
        async with Bench(FakeEngine(fail_on={3: error})) as bench:
            with pytest.raises(EngineFailure, match="double failed"):
                await bench.submit([3])
            assert (await bench.submit([1])).arrays["y"].tolist() == [2]

    run(main())


@pytest.mark.parametrize("fault", [DeviceFault("gone"), MemoryError()])
def test_a_fault_of_the_device_is_not_retried(fault):
    async def main():
        async with Bench(FakeEngine(fail_on={3: fault})) as bench:
            tasks = [bench.submit([i], caller=str(i)) for i in range(20)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(r, DeviceFault) for r in results)
            assert not bench.scheduler.healthy
            with pytest.raises(DeviceFault):
                await bench.submit([1])
        assert len(bench.engine.batches) == 1

    run(main())


def test_a_failed_piece_fails_its_request_and_drops_the_rest():
    async def main():
        async with Bench(FakeEngine(fail_on={9: ValueError("bad")}, seconds=0.005)) as bench:
            with pytest.raises(EngineFailure):
                await bench.submit(range(1000))
            await bench.submit([1])
        assert bench.counts.drops["failed"] > 900

    run(main())


def test_an_observer_that_fails_harms_nobody():
    class Broken:
        def batch(self, *arguments):
            raise RuntimeError("no")

        dropped = queue = batch

    async def main():
        async with Bench(observer=Broken()) as bench:
            assert (await bench.submit(range(20))).arrays["y"].shape == (20,)

    run(main())


def test_a_batcher_that_returns_too_little_fails_its_batch_alone(monkeypatch):
    async def main():
        async with Bench() as bench:
            with monkeypatch.context() as patch:
                patch.setattr(PlainBatcher, "split", lambda self, pieces, outputs: [])
                with pytest.raises(EngineFailure):
                    await bench.submit([1])
            assert (await bench.submit([1])).arrays["y"].tolist() == [2]

    run(main())


def test_a_worker_survives_what_it_cannot_know(monkeypatch):
    async def main():
        async with Bench() as bench:
            with monkeypatch.context() as patch:
                patch.setattr(FakeEngine, "padded_rows", lambda self, rows: 1 / 0)
                with pytest.raises(EngineFailure):
                    await bench.submit([1])
            assert (await bench.submit([1])).arrays["y"].tolist() == [2]

    run(main())


def test_stopping_drains_and_then_refuses():
    async def main():
        bench = Bench(FakeEngine(seconds=0.01))
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
        assert not bench.scheduler._threads

    run(main())


def test_stopping_does_not_wait_for_ever():
    async def main():
        async with Bench() as bench:
            await bench.hold()
            waiting = bench.submit(range(5))
            await asyncio.sleep(0.01)
            stopping = asyncio.ensure_future(bench.scheduler.stop(0.02))
            with pytest.raises(ShuttingDown):
                await waiting
            bench.engine.gate.set()
            await stopping
        assert bench.counts.drops["shutdown"] == 5

    run(main())
