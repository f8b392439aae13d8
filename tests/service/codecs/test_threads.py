"""Threads that callers get in turn."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing

import pytest

from service.codecs.pool import Threads


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


def test_callers_have_turns():
    """One with many jobs holds another up for the one that is being done."""
    go, served = threading.Event(), []

    async def work():
        with closing(Threads(1)) as threads:

            def ask(caller, job):
                return asyncio.ensure_future(threads.run(job, caller=caller))

            jobs = [ask("many", lambda: go.wait(30))]
            jobs += [ask(one, lambda one=one: served.append(one)) for one in "aaaab"]
            await asyncio.sleep(0)
            go.set()
            await asyncio.gather(*jobs)

    run(work())
    assert served == list("abaaa")


def test_work_that_nobody_waits_for_keeps_its_thread():
    """Or many requests of short deadlines would fill the threads' own queue, before which nobody
    has a turn."""
    go, begun, served = threading.Event(), threading.Event(), []

    def long():
        begun.set()
        go.wait(30)
        served.append("long")

    async def work():
        with closing(Threads(1)) as threads:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await threads.run(long, caller="a")
            assert begun.is_set()
            waiting = [
                asyncio.ensure_future(threads.run(lambda: served.append("a"), caller="a"))
                for _ in range(3)
            ]
            await asyncio.sleep(0.05)
            assert threads._executor._work_queue.empty()
            waiting[0].cancel()
            go.set()
            await asyncio.gather(*waiting[1:])

    run(work())
    assert served == ["long", "a", "a"]


def test_errors_are_raised_and_free_the_thread():
    async def work():
        with closing(Threads(1)) as threads:
            for _ in range(2):
                with pytest.raises(ZeroDivisionError):
                    await threads.run(lambda: 1 // 0, caller="a")
            return await threads.run(lambda: 5, caller="b")

    assert run(work()) == 5
