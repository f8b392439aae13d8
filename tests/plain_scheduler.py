"""A scheduler on an engine made of plain functions, which can be held and fails as it is told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from service.scheduler.scheduler import Scheduler


@dataclass
class Rows:
    """A work whose answer is twice its values."""

    values: list[int]
    operation: str = "double"
    samples: int = 1

    @property
    def rows(self):
        return len(self.values)


class PlainBatcher:
    row_bytes = 8

    def graph(self, operation, pieces):
        return operation

    def assemble(self, pieces):
        return {"x": np.concatenate([work.values[a:b] for work, a, b in pieces])}

    def split(self, pieces, outputs):
        ends = np.cumsum([b - a for _, a, b in pieces])[:-1]
        return [{"y": part} for part in np.split(outputs["y"], ends)]


class Clock:
    """Stands for the module `time` in the workers: time passes where the engine says so."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@dataclass
class FakeEngine:
    """Doubles; remembers batches; can be held, and fails on values it is told to.

    seconds: that a batch takes, one number or one for each operation; `clock` if it only seems to.
    """

    fail_on: dict[int, BaseException] = field(default_factory=dict)
    batches: list[list[int]] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)
    started: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    seconds: float | dict[str, float] = 0.0
    clock: Clock | None = None
    running: int = 0
    most_running: int = 0

    def __post_init__(self):
        self.gate.set()

    def run(self, operation, arrays):
        values = arrays["x"].tolist()
        self.batches.append(values)
        self.operations.append(operation)
        self.threads.add(threading.current_thread().name)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            self.started.release()
            assert self.gate.wait(10)
            sleep = time.sleep if self.clock is None else self.clock.sleep
            sleep(self.seconds[operation] if isinstance(self.seconds, dict) else self.seconds)
            for value in values:
                if value in self.fail_on:
                    raise self.fail_on[value]
        finally:
            self.running -= 1
        return {"y": 2 * arrays["x"]}

    def padded_rows(self, rows):
        return -rows % 4


class Counts:
    """An observer."""

    def __init__(self):
        self.batches, self.drops = [], Counter()
        self.retries, self.rows = Counter(), Counter()

    def taken(self, caller, rows):
        self.rows[caller] += rows

    def batch(self, operation, rows, padded, seconds):
        self.batches.append((operation, rows, padded))

    def dropped(self, operation, rows, reason):
        self.drops[reason] += rows

    def retried(self, operation, runs):
        self.retries[operation] += runs


class Bench:
    """A started scheduler with its engine and counts."""

    def __init__(self, engine=None, *, observer=None, **limits):
        self.engine = engine or FakeEngine()
        self.counts = observer or Counts()
        usual = {"max_batch_rows": 8, "max_queue_rows": 100, "workers": 1}
        self.batchers = {name: PlainBatcher() for name in ("double", "other")}
        self.scheduler = Scheduler(
            self.engine, self.batchers, **{**usual, **limits}, observer=self.counts
        )

    async def __aenter__(self):
        await self.scheduler.start()
        return self

    async def __aexit__(self, *error):
        self.engine.gate.set()
        await self.scheduler.stop(5.0)

    @property
    def queued_rows(self):
        return sum(self.scheduler.queued_rows_by_operation.values())

    def submit(self, values, *, operation="double", samples=1, **options):
        work = Rows(list(values), operation, samples)
        return asyncio.ensure_future(self.scheduler.submit(work, **options))

    async def hold(self):
        """Occupy one worker until the gate opens."""
        self.engine.gate.clear()
        batches = self.engine.batches
        before = sum(-1 in batch for batch in batches)
        holder = self.submit([-1], caller="holder")
        while sum(-1 in batch for batch in batches) == before:  # other batches have started, too
            await asyncio.to_thread(self.engine.started.acquire)
        return holder


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))
