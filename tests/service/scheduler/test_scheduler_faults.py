"""What fails costs its own request: bad rows, and a fault planted in every stage."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import DeviceFault, EngineFailure, IafvaeError, ShuttingDown
from service.scheduler.queue import FairQueue
from service.scheduler.scheduler import CostModel, Scheduler
from service.scheduler.work import Job
from service.scheduler.workers import Batch, Runner


@settings(max_examples=15)
@given(st.sets(st.integers(0, 7), max_size=8))
def test_a_bad_row_fails_alone(plain, bad):
    engine = plain.FakeEngine(fail_on={value: EngineFailure(f"row {value}") for value in bad})

    async def main():
        async with plain.Bench(engine) as bench:
            tasks = [bench.submit([i], caller=str(i)) for i in range(8)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for i, result in enumerate(results):
                if i in bad:
                    assert isinstance(result, EngineFailure)
                else:
                    assert result.arrays["y"].tolist() == [2 * i]
            assert bench.scheduler.healthy
            assert (await bench.submit([20])).arrays["y"].tolist() == [40]
        # A batch of eight falls into 1 + 2 + 4 + 8 parts at most; one sound batch is run once.
        assert bench.counts.retries["double"] == len(bench.engine.batches) - 2
        assert bool(bad) == bool(bench.counts.retries)

    plain.run(main())


@pytest.mark.parametrize(
    "error", [ValueError("odd"), MemoryError(), SystemExit(1), KeyboardInterrupt()]
)
def test_whatever_a_run_raises_costs_its_own_request_only(plain, error):
    async def main():
        async with plain.Bench(plain.FakeEngine(fail_on={3: error})) as bench:
            with pytest.raises(EngineFailure, match="double failed"):
                await bench.submit([3])
            assert (await bench.submit([1])).arrays["y"].tolist() == [2]

    plain.run(main())


def test_a_bad_row_costs_its_request_and_no_neighbour(plain):
    """An answer is whole or none: the other rows of the bad row's own request go with it."""

    async def main():
        async with plain.Bench(plain.FakeEngine(fail_on={11: ValueError("bad")})) as bench:
            holder = await bench.hold()
            requests = [bench.submit(range(a, a + 2), caller=str(a)) for a in (0, 10, 20, 30)]
            await asyncio.sleep(0.01)
            bench.engine.gate.set()
            results = await asyncio.gather(holder, *requests, return_exceptions=True)
            assert [isinstance(r, EngineFailure) for r in results] == [False, False, True] + [
                False
            ] * 2
            assert results[-1].arrays["y"].tolist() == [60, 62]

    plain.run(main())


def test_a_fault_of_the_device_is_not_retried(plain):
    async def main():
        fault = DeviceFault("gone")
        async with plain.Bench(plain.FakeEngine(fail_on={3: fault})) as bench:
            tasks = [bench.submit([i], caller=str(i)) for i in range(20)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(r, DeviceFault) for r in results)
            assert not bench.scheduler.healthy
            with pytest.raises(DeviceFault):
                await bench.submit([1])
        assert len(bench.engine.batches) == 1

    plain.run(main())


def test_a_failed_piece_fails_its_request_and_drops_the_rest(plain):
    async def main():
        async with plain.Bench(
            plain.FakeEngine(fail_on={9: ValueError("bad")}, seconds=0.005)
        ) as bench:
            with pytest.raises(EngineFailure):
                await bench.submit(range(1000))
            await bench.submit([1])
        assert bench.counts.drops["failed"] > 900

    plain.run(main())


def fail_once(monkeypatch, owner, name, error=None):
    """The next call of a method fails."""
    whole, left = getattr(owner, name), [error or RuntimeError("planted")]

    def method(*arguments, **options):
        if left:
            raise left.pop()
        return whole(*arguments, **options)

    monkeypatch.setattr(owner, name, method)
    return left


STAGES = {
    "queueing": (FairQueue, "push"),
    "pushing": (Scheduler, "_push"),
    "computing": (Runner, "_attempt"),
    "collecting": (Job, "add"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_in_a_stage_costs_its_own_request(plain, monkeypatch, stage):
    async def main():
        async with plain.Bench() as bench:
            holder = await bench.hold()
            with monkeypatch.context() as patch:
                left = fail_once(patch, *STAGES[stage])
                failing = bench.submit([3])
                await asyncio.sleep(0.01)
                if not left:
                    assert isinstance(failing.exception(), RuntimeError | IafvaeError)
                bench.engine.gate.set()
                results = await asyncio.gather(holder, failing, return_exceptions=True)
                assert not left
            assert sum(isinstance(r, RuntimeError | IafvaeError) for r in results) == 1
            assert (await bench.submit([2])).arrays["y"].tolist() == [4]
            assert bench.scheduler.healthy
            assert bench.queued_rows == 0
            await asyncio.wait_for(bench.scheduler.stop(5.0), 5.0)

    plain.run(main())


BROKEN = {
    "forming": (FairQueue, "take"),
    "sizing": (Scheduler, "_room"),
    "pricing": (CostModel, "seconds"),
    "charging": (FairQueue, "charge"),
    "handing out": (Batch, "__init__"),
}


@pytest.mark.parametrize("stage", BROKEN)
def test_a_fault_of_the_queue_ends_the_service(plain, monkeypatch, stage):
    """Rows may be lost in it, and nobody could tell: what waits is failed, and liveness with it."""

    async def main():
        async with plain.Bench() as bench:
            holder = await bench.hold()
            waiting = [bench.submit([i], caller=str(i)) for i in range(3)]
            await asyncio.sleep(0.01)
            left = fail_once(monkeypatch, *BROKEN[stage])
            bench.engine.gate.set()
            results = await asyncio.gather(holder, *waiting, return_exceptions=True)
            assert not left
            assert all(isinstance(result, DeviceFault) for result in results[1:])
            assert not bench.scheduler.healthy
            with pytest.raises(DeviceFault):
                await bench.submit([2])

    plain.run(main())


@pytest.mark.parametrize("stage", ["assemble", "split"])
def test_a_fault_beside_the_run_costs_its_own_request(plain, monkeypatch, stage):
    """Assembling or cutting fails for one request's rows: the others are cut from halves."""
    whole = getattr(plain.PlainBatcher, stage)

    def method(self, pieces, *arguments):
        if any(13 in work.values for work, _, _ in pieces):
            raise RuntimeError("planted")
        return whole(self, pieces, *arguments)

    monkeypatch.setattr(plain.PlainBatcher, stage, method)

    async def main():
        async with plain.Bench() as bench:
            tasks = [bench.submit([i], caller=str(i)) for i in range(10, 16)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(r, EngineFailure) for r in results] == [
                i == 13 for i in range(10, 16)
            ]

    plain.run(main())


def test_answers_that_cannot_be_delivered_harm_no_neighbour(plain, monkeypatch):
    async def main():
        async with plain.Bench() as bench:
            fail_once(monkeypatch, Job, "add")
            tasks = [bench.submit([i], caller=str(i)) for i in range(4)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert sum(isinstance(r, EngineFailure) for r in results) == 1
            assert sum(not isinstance(r, Exception) for r in results) == 3

    plain.run(main())


def test_a_batcher_that_returns_too_little_fails_its_batch_alone(plain, monkeypatch):
    async def main():
        async with plain.Bench() as bench:
            with monkeypatch.context() as patch:
                patch.setattr(plain.PlainBatcher, "split", lambda self, pieces, outputs: [])
                with pytest.raises(EngineFailure):
                    await bench.submit([1])
            assert (await bench.submit([1])).arrays["y"].tolist() == [2]

    plain.run(main())


def test_a_failing_count_of_padding_harms_nobody(plain, monkeypatch):
    async def main():
        async with plain.Bench() as bench:
            with monkeypatch.context() as patch:
                patch.setattr(plain.FakeEngine, "padded_rows", lambda self, rows: 1 / 0)
                assert (await bench.submit([3])).arrays["y"].tolist() == [6]
            assert (await bench.submit([1])).arrays["y"].tolist() == [2]

    plain.run(main())


def test_a_fault_of_the_device_met_on_the_event_loop_is_told_once(plain, caplog):
    """The caller gets it; nobody is told that nobody looked."""

    async def main():
        engine = plain.FakeEngine(fail_on={3: DeviceFault("gone")})
        async with plain.Bench(engine, direct_seconds=10.0) as bench:
            await bench.submit([1])  # what it costs is known from here on
            with pytest.raises(DeviceFault):
                await bench.submit([3])
            assert threading.current_thread().name in engine.threads
        gc.collect()

    plain.run(main())
    assert "never retrieved" not in caplog.text


def test_what_fails_teaches_no_cost(plain):
    """Neither a run that failed, quickly or late, nor one whose halves were tried again."""

    async def main():
        engine = plain.FakeEngine(fail_on={3: ValueError("bad")})
        async with plain.Bench(engine) as bench:
            cost = bench.scheduler._cost
            with pytest.raises(EngineFailure):
                await bench.submit([3])
            await asyncio.gather(
                *(bench.submit([i], caller=str(i)) for i in (2, 3)), return_exceptions=True
            )
            await asyncio.sleep(0)
            assert cost.each == {}
            await bench.submit([1])
            await asyncio.sleep(0)
            assert cost.each.keys() == {"double"}

    plain.run(main())


def test_rows_of_halves_are_counted_once(plain):
    engine = plain.FakeEngine(fail_on={3: ValueError("bad")})
    runner = Runner(engine, {"double": plain.PlainBatcher()}, None)
    jobs = [Job(plain.Rows([value])) for value in range(8)]
    batch = Batch("double", [(job, 0, 1) for job in jobs])
    runner.compute(batch)
    assert (batch.rows, batch.images) == (8, 7), "all were tried, one was not computed"


def test_an_idle_thread_keeps_no_batch(plain):
    async def main():
        async with plain.Bench() as bench:
            job = await bench.submit([1])
            answer = weakref.ref(job.arrays["y"])
            del job
            while answer() is not None:
                await asyncio.sleep(0.01)
                gc.collect()

    plain.run(main())


def test_stopping_says_whether_a_thread_is_stuck(plain, monkeypatch):
    monkeypatch.setattr("service.scheduler.workers.JOIN_SECONDS", 0.05)

    async def main():
        bench = plain.Bench()
        await bench.scheduler.start()
        holder = await bench.hold()
        assert not await bench.scheduler.stop(0.0)
        bench.engine.gate.set()
        assert isinstance((await asyncio.gather(holder, return_exceptions=True))[0], ShuttingDown)
        monkeypatch.setattr("service.scheduler.workers.JOIN_SECONDS", 5.0)
        assert await bench.scheduler.stop(0.0)

    plain.run(main())


def test_a_job_that_cannot_be_divided_fails_and_does_not_wait_for_ever(plain, monkeypatch):
    async def main():
        async with plain.Bench(workers=2) as bench:
            left = fail_once(monkeypatch, Scheduler, "_limit")
            with pytest.raises(EngineFailure, match="planted"):
                await asyncio.wait_for(bench.submit(range(40)), 5)
            assert not left
            assert (await bench.submit([2])).arrays["y"].tolist() == [4]

    plain.run(main())


def test_a_pause_of_the_whole_process_loses_no_device(plain, monkeypatch):
    """`docker pause`: when it goes on, the watch is overdue and no thread has had a moment yet."""

    async def main():
        async with plain.Bench(hang_seconds=0.4) as bench:
            holder = await bench.hold()
            monkeypatch.setattr("service.scheduler.scheduler.time", clock := plain.Clock())
            clock.now = time.monotonic() + 1000  # hang_seconds and more have passed
            bench.scheduler._watch()
            assert bench.scheduler.healthy
            bench.engine.gate.set()
            assert (await holder).arrays["y"].tolist() == [-2]
            bench.scheduler._watch()
            assert bench.scheduler.healthy
            holder = await bench.hold()
            clock.now += 1000
            bench.scheduler._watch()
            bench.scheduler._watch()
            assert not bench.scheduler.healthy
            with pytest.raises(DeviceFault):
                await holder
            bench.engine.gate.set()

    plain.run(main())
