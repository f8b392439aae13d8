"""Requests in, batches out: one bounded queue, as many batches in flight as the engine likes.

There is no timer. A batch is formed the moment a worker is free: an idle service answers at once,
and while workers are busy rows collect and the next batches are fuller. Everything that decides
runs on the event loop; worker threads only assemble, run and cut one batch, and report once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from service.batch import Arrays
from service.batching import Batcher, join_parts
from service.cost import CostModel
from service.errors import (
    DeadlineExceeded,
    DeviceFault,
    EngineFailure,
    IafvaeError,
    InvalidInput,
    Overloaded,
    ShuttingDown,
)
from service.fairness import FairQueue, Span
from service.observer import Guarded, SchedulerObserver
from service.worker import Batch, BatchEngine, Job, Outcome, Worker
from service.works import Work

__all__ = ["BatchResult", "Scheduler", "SchedulerObserver"]

logger = logging.getLogger(__name__)

# Batches of this many rows already have nearly all that batching gains on a CPU, so work is spread
# over idle workers down to it.
SPREAD_ROWS = 8
JOIN_SECONDS = 5.0


@dataclass(frozen=True)
class BatchResult:
    """All rows of one work.

    queue_seconds: until its first batch began; compute_seconds: of all batches it was in, each in
    whole; batch_rows: rows of the largest of them.
    """

    arrays: Arrays
    queue_seconds: float
    compute_seconds: float
    batch_rows: int


class Scheduler:
    """Batches works onto an engine.

    batchers: how each operation's rows become a batch; max_batch_rows, max_batch_bytes: of one
    batch; max_queue_rows: that may wait; workers: batches computed at once; prefetch: batches
    that wait, formed, for a worker (keeps a GPU busy; costs fairness).
    """

    def __init__(
        self,
        engine: BatchEngine,
        batchers: Mapping[str, Batcher],
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        workers: int = 1,
        prefetch: int = 0,
        max_batch_bytes: int = 256 << 20,
        observer: SchedulerObserver | None = None,
    ) -> None:
        self._engine, self._batchers = engine, batchers
        self._capacity = {
            name: max(1, min(max_batch_rows, max_batch_bytes // batcher.row_bytes))
            for name, batcher in batchers.items()
        }
        self._max_queue_rows = max_queue_rows
        self._workers, self._in_flight_limit = workers, workers + prefetch
        self._observer = Guarded(observer)
        self._queue: FairQueue[Job] = FairQueue()
        self._cost = CostModel()
        self._jobs: set[Job] = set()
        self._in_flight = 0
        self._pump_scheduled = False
        self._inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = asyncio.Event()
        self.accepting = False
        self.healthy = True

    async def start(self) -> None:
        """Start the worker threads; works are accepted from here on."""
        worker = Worker(
            self._engine, self._batchers, self._inbox, asyncio.get_running_loop(), self._finished
        )
        self._threads = [
            threading.Thread(target=worker.loop, name=f"engine-{i}", daemon=True)
            for i in range(self._workers)
        ]
        for thread in self._threads:
            thread.start()
        self._idle.set()
        self.accepting = True

    async def stop(self, drain_seconds: float) -> None:
        """Accept nothing more, give what waits `drain_seconds`, fail the rest, end the threads."""
        self.accepting = False
        try:
            async with asyncio.timeout(drain_seconds):
                await self._idle.wait()
        except TimeoutError:
            self._fail_all(
                ShuttingDown("the service is stopping: send the request again"), "shutdown"
            )
        for _ in self._threads:
            self._inbox.put(None)
        threads, self._threads = self._threads, []
        for thread in threads:
            await asyncio.to_thread(thread.join, JOIN_SECONDS)

    async def submit(
        self, work: Work, *, caller: str = "", deadline: float | None = None
    ) -> BatchResult:
        """Compute all rows of `work`.

        caller: works of one caller wait in one line, callers take turns; deadline: on the clock of
        `time.monotonic`. Cancelling the awaiting task drops the rows that are not computed yet.
        Raises Overloaded, DeadlineExceeded, ShuttingDown, EngineFailure or DeviceFault.
        """
        now = time.monotonic()
        self._admit(work, now, deadline)
        loop = asyncio.get_running_loop()
        job = Job(work, caller, loop.create_future(), now)
        timer = None
        if deadline is not None:
            timer = loop.call_later(deadline - now, self._expire, job)
        self._jobs.add(job)
        self._idle.clear()
        self._queue.push(job)
        if not self._pump_scheduled:
            # Whoever else is ready in this turn of the event loop shares the batch.
            self._pump_scheduled = True
            loop.call_soon(self._pump)
        try:
            result: BatchResult = await job.future
        except asyncio.CancelledError:
            self._drop(job, "cancelled")
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return result

    @property
    def queued_rows(self) -> int:
        """Rows that wait."""
        return self._queue.rows

    def _admit(self, work: Work, now: float, deadline: float | None) -> None:
        if work.rows < 1 or work.operation not in self._batchers:
            raise InvalidInput(f"no batch can be made of {work.rows} rows of {work.operation!r}")
        if not self.healthy:
            raise DeviceFault("the device failed: this process is about to be replaced")
        if not self.accepting:
            raise ShuttingDown("the service is starting or stopping: send the request again")
        if deadline is not None and deadline <= now:
            raise DeadlineExceeded("the deadline had passed before the work was queued")
        waiting = self._queue.rows
        # An empty queue takes any request: its rows are made batch by batch.
        if waiting and waiting + work.rows > self._max_queue_rows:
            raise Overloaded(
                f"{waiting} rows wait and {work.rows} more would exceed {self._max_queue_rows}:"
                " send the request again later",
                retry_after_seconds=self._wait_seconds(),
            )

    def _wait_seconds(self) -> float:
        """How long what waits will keep the workers busy, by what batches have cost so far."""
        work = sum(
            self._cost.seconds(operation, rows, self._capacity[operation])
            for operation, rows in self._queue.rows_by_operation.items()
        )
        return max(0.1, work / self._workers)

    def _pump(self) -> None:
        """Hand batches to free workers."""
        self._pump_scheduled = False
        while self._in_flight < self._in_flight_limit:
            taken = self._queue.take(self._room)
            if taken is None:
                break
            self._in_flight += 1
            self._inbox.put(Batch(*taken))
        self._observer.queue(self._queue.rows_by_operation)

    def _room(self, operation: str) -> int:
        """Rows of the next batch: what there is is spread over the workers that are idle."""
        limit = self._capacity[operation]
        free = self._workers - self._in_flight
        if free <= 1:
            return limit
        spread = math.ceil(self._queue.rows_by_operation[operation] / free)
        return min(limit, max(SPREAD_ROWS, spread))

    def _finished(self, batch: Batch, outcome: Outcome) -> None:
        """A worker's report; runs on the event loop."""
        self._in_flight -= 1
        if isinstance(outcome.fault, DeviceFault):
            self._fail_device(outcome.fault)
        self._pump()  # the worker goes on while answers are delivered
        for span, result in outcome.results:
            try:
                self._deliver(span, result, outcome)
            except Exception as error:  # a fault in one delivery is that request's alone
                logger.exception("an answer of %s could not be put together", batch.operation)
                self._fail(span.job, EngineFailure(f"{batch.operation} failed: {error}"), "failed")
        if outcome.rows:
            self._cost.add(batch.operation, outcome.rows, outcome.seconds)
            self._observer.batch(
                batch.operation, outcome.rows, outcome.padded_rows, outcome.seconds
            )
        if outcome.skipped_rows:
            self._observer.dropped(batch.operation, outcome.skipped_rows, "cancelled")
        self._observer.queue(self._queue.rows_by_operation)

    def _deliver(self, span: Span[Job], result: Arrays | IafvaeError, outcome: Outcome) -> None:
        job = span.job
        if job.future.done():
            return
        if isinstance(result, IafvaeError):
            self._fail(job, result, "failed")
            return
        job.add(span, result, outcome)
        if job.done == job.rows:
            arrays = join_parts(job.parts)
            self._jobs.discard(job)
            job.future.set_result(
                BatchResult(
                    arrays, job.began - job.submitted, job.compute_seconds, job.largest_batch
                )
            )
            self._settle()

    def _expire(self, job: Job) -> None:
        error = DeadlineExceeded("the deadline passed before all rows were computed")
        self._fail(job, error, "expired")

    def _fail(self, job: Job, error: IafvaeError, reason: str) -> None:
        if not job.future.done():
            # A traceback grows on a shared exception, so every job has its own.
            job.future.set_exception(type(error)(str(error)))
        self._drop(job, reason)

    def _drop(self, job: Job, reason: str) -> None:
        left = self._queue.discard(job)
        job.release()
        self._jobs.discard(job)
        if left:
            self._observer.dropped(job.operation, left, reason)
            self._observer.queue(self._queue.rows_by_operation)
        self._settle()

    def _fail_device(self, fault: DeviceFault) -> None:
        if self.healthy:
            logger.critical("the device failed, liveness fails from here on: %s", fault)
        self.healthy = False
        self._fail_all(fault, "failed")

    def _fail_all(self, error: IafvaeError, reason: str) -> None:
        for job in list(self._jobs):
            self._fail(job, error, reason)

    def _settle(self) -> None:
        if not self._jobs:
            self._idle.set()
