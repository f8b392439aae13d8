"""Threads that die are replaced, and a run that does not come back is noticed."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import threading

import pytest

from service.errors import DeviceFault, EngineFailure
from service.scheduler import crew
from service.scheduler.workers import Runner


def kill(others):
    """Raise SystemExit in an engine's thread that is none of `others`, wherever it is."""
    for thread in threading.enumerate():
        if thread.name.startswith("engine-") and thread not in others:
            raised = ctypes.c_long(thread.ident), ctypes.py_object(SystemExit)
            assert ctypes.pythonapi.PyThreadState_SetAsyncExc(*raised) == 1
            return thread
    raise AssertionError("no thread of an engine has been started")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_killed_thread_is_replaced(plain, caplog):
    others = threading.enumerate()  # among them the engines of other tests' servers

    async def main():
        async with plain.Bench() as bench:
            await bench.submit([1])
            thread = kill(others)
            outcome = (await asyncio.gather(bench.submit([2]), return_exceptions=True))[0]
            if isinstance(outcome, EngineFailure):  # it struck while this one was in hand
                outcome = await bench.submit([2])
            assert outcome.arrays["y"].tolist() == [4]
            await asyncio.to_thread(thread.join, 5)
            for i in range(20):
                assert (await bench.submit([i])).arrays["y"].tolist() == [2 * i]
            assert bench.scheduler.healthy
            assert not thread.is_alive()

    with caplog.at_level(logging.ERROR, logger="service.scheduler.crew"):
        plain.run(main())
    assert "another takes its place" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_batch_whose_thread_dies_is_answered(plain, monkeypatch):
    def die(runner, batch):
        raise SystemExit

    async def main():
        async with plain.Bench() as bench:
            with monkeypatch.context() as patch:
                patch.setattr(Runner, "compute", die)
                with pytest.raises(EngineFailure, match="its thread died"):
                    await bench.submit([1])
            assert (await bench.submit([1])).arrays["y"].tolist() == [2]

    plain.run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_where_no_thread_can_be_started_it_is_tried_again(plain, monkeypatch):
    """The system refuses for a while to replace a thread that died."""
    start, refusals = crew._Thread.start, [1, 1]

    def refuse(thread):
        if refusals:
            refusals.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    def die(runner, batch):
        raise SystemExit

    monkeypatch.setattr(crew, "REPLACE_SECONDS", 0.05)

    async def main():
        async with plain.Bench() as bench:
            monkeypatch.setattr(crew._Thread, "start", refuse)
            with monkeypatch.context() as patch:
                patch.setattr(Runner, "compute", die)
                with pytest.raises(EngineFailure, match="its thread died"):
                    await bench.submit([1])
            waiting = [bench.submit([i], caller=str(i)) for i in range(20)]
            answers = await asyncio.gather(*waiting)  # whoever comes meanwhile waits
            assert [answer.arrays["y"].tolist() for answer in answers] == [
                [2 * i] for i in range(20)
            ]
            assert not refusals

    plain.run(main())


def test_a_run_that_does_not_come_back_is_noticed(plain, caplog):
    """Its callers are answered, liveness fails, and the process can still be stopped."""

    async def main():
        bench = plain.Bench(hang_seconds=0.05)
        await bench.scheduler.start()
        holder = await bench.hold()
        waiting = bench.submit([1])
        with pytest.raises(DeviceFault, match="has not come back for"):
            await holder
        with pytest.raises(DeviceFault):
            await waiting
        assert not bench.scheduler.healthy
        with pytest.raises(DeviceFault):
            await bench.submit([2])
        bench.engine.gate.set()
        await bench.scheduler.stop(1.0)

    plain.run(main())
    assert "liveness fails" in caplog.text


def test_runs_within_the_limit_are_left_alone(plain):
    async def main():
        async with plain.Bench(plain.FakeEngine(seconds=0.01), hang_seconds=0.5) as bench:
            await bench.submit(range(100))
            assert bench.scheduler.healthy

    plain.run(main())
