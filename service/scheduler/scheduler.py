"""Requests in, batches out: one bounded queue, as many batches in flight as the engine likes.

There is no timer. A batch is formed the moment a worker is free: an idle service answers at once,
and while workers are busy rows collect and the next batches are fuller. Everything that decides
runs on the event loop; worker threads only assemble, run and cut one batch, and report once. A
small job that is alone in the service is computed on the event loop itself, without queue or
thread.

A fault of a run costs the requests that it cannot answer. A fault of the device, a run that does
not come back, or a fault of the queue itself ends the service: liveness fails.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
from collections.abc import Mapping
from typing import Protocol

from service.engine.arrays import Arrays
from service.errors import (
    DeadlineExceeded,
    DeviceFault,
    IafvaeError,
    InvalidInput,
    Overloaded,
    ShuttingDown,
)
from service.scheduler.batching import Batcher
from service.scheduler.jobs import Batch, Job, Piece
from service.scheduler.queue import FairQueue
from service.scheduler.work import Work
from service.scheduler.workers import BatchEngine, CostModel, Runner, WorkerPool, as_error

__all__ = ["Scheduler", "SchedulerObserver"]

logger = logging.getLogger(__name__)

# Batches of this many rows already have nearly all that batching gains on a CPU, so work is spread
# over idle workers down to it, and small requests do not wait for more.
SPREAD_ROWS = 8
LEAST_WAIT_SECONDS = 0.1


class SchedulerObserver(Protocol):
    """Who counts what the scheduler does; called on the event loop."""

    def batch(self, operation: str, rows: int, padded: int, seconds: float) -> None:
        """A batch of `rows` rows was computed, with `padded` more for nothing."""

    def dropped(self, operation: str, rows: int, reason: str) -> None:
        """`rows` rows will not be computed: "cancelled", "expired", "failed" or "shutdown"."""

    def retried(self, operation: str, runs: int) -> None:
        """A batch failed and was run `runs` times more, in halves."""


class _Nobody:
    """Counts nothing."""

    def batch(self, *_: object) -> None: ...
    def dropped(self, *_: object) -> None: ...
    def retried(self, *_: object) -> None: ...


class Scheduler:
    """Batches works onto an engine.

    batchers: how each operation's rows become a batch; max_batch_rows, max_batch_bytes: of one
    batch; max_queue_rows: that may wait; workers: runs of the engine at once; prefetch: batches
    that are assembled while others run (keeps a GPU busy; costs fairness); hang_seconds: a batch
    that takes longer is a fault of the device; direct_seconds: a job that is alone in the service
    and expected to take no longer is computed on the event loop.
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
        hang_seconds: float = math.inf,
        direct_seconds: float = 0.0,
        observer: SchedulerObserver | None = None,
    ) -> None:
        self._capacity = {
            name: max(1, min(max_batch_rows, max_batch_bytes // batcher.row_bytes))
            for name, batcher in batchers.items()
        }
        self._workers, self._in_flight_limit = workers, workers + prefetch
        self._hang_seconds, self._direct_seconds = hang_seconds, direct_seconds
        self._observer: SchedulerObserver = observer or _Nobody()
        self._runner = Runner(engine, batchers, workers if prefetch else None)
        # A GPU is as quick with many rows.
        self._queue = FairQueue(max_queue_rows, 0 if prefetch else SPREAD_ROWS)
        # An autoscaler finds the gauge of each operation before anything has waited.
        self._queue.rows_by_operation |= dict.fromkeys(batchers, 0)
        self._cost = CostModel()
        self._jobs: set[Job] = set()  # that somebody awaits
        self._idle = asyncio.Event()
        self._flying: set[Batch] = set()
        self._pump_scheduled = False
        self._lone: Job | None = (
            None  # came when there was no other, in this turn of the event loop
        )
        self._pool: WorkerPool | None = None
        self._watching: asyncio.TimerHandle | None = None
        self.accepting = False
        self.healthy = True

    async def start(self) -> None:
        """Start the worker threads; works are accepted from here on."""
        self._pool = WorkerPool(self._runner, self._in_flight_limit, self._finished)
        self.accepting = True
        if math.isfinite(self._hang_seconds):
            self._watch()

    async def stop(self, drain_seconds: float) -> None:
        """Accept nothing more, give what waits `drain_seconds`, fail the rest, end the threads."""
        self.accepting = False
        try:
            async with asyncio.timeout(drain_seconds):
                while self._jobs:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            stopping = ShuttingDown("the service is stopping: send the request again")
            self._fail_all(stopping, "shutdown")
        if self._watching is not None:
            self._watching.cancel()
        if self._pool is not None:
            await self._pool.stop()

    async def submit(self, work: Work, *, caller: str = "", deadline: float | None = None) -> Job:
        """The job of `work`, with the answer in its `arrays`.

        caller: works of one caller wait in one line, callers take turns; deadline: on the clock of
        `time.monotonic`. Cancelling the awaiting task drops the rows that are not computed yet.
        Raises Overloaded, DeadlineExceeded, ShuttingDown, EngineFailure or DeviceFault.
        """
        job = Job(work, caller)
        self._admit(job, deadline)
        self._jobs.add(job)
        try:
            if len(self._jobs) == 1 and not self._flying and self._is_quick(job):
                await asyncio.sleep(0)  # whoever else is ready in this turn shares the batch
                if len(self._jobs) == 1:
                    self._compute_here(job)
                    return job
            await self._compute_in_turn(job, deadline)
            return job
        except IafvaeError:
            raise  # whoever failed the job has dropped it
        except BaseException:
            self._drop(job, "cancelled")
            raise
        finally:
            self._forget(job)

    @property
    def queued_rows(self) -> int:
        """Rows that wait."""
        return self._queue.rows

    @property
    def queued_rows_by_operation(self) -> Mapping[str, int]:
        """Rows that wait, of each operation that was ever met."""
        return self._queue.rows_by_operation

    def _admit(self, job: Job, deadline: float | None) -> None:
        if job.rows < 1 or job.operation not in self._capacity:
            raise InvalidInput(f"no batch can be made of {job.rows} rows of {job.operation!r}")
        if not self.healthy:
            raise DeviceFault("the device failed: this process is about to be replaced")
        if not self.accepting:
            raise ShuttingDown("the service is starting or stopping: send the request again")
        if deadline is not None and deadline <= job.submitted:
            raise DeadlineExceeded("the deadline had passed before the work was queued")
        if self._queue.rows:
            refusal = self._queue.refusal(job.caller, job.rows)
            if refusal is not None:
                raise Overloaded(f"{refusal}: send the request again later", self._wait_seconds())

    def _wait_seconds(self) -> float:
        """How long what waits and what runs will keep the workers busy, by what batches cost."""
        work = sum(batch.expected_seconds for batch in self._flying)
        for operation, rows, images in self._queue.waiting():
            work += self._cost.seconds(operation, rows, images)
        return max(LEAST_WAIT_SECONDS, work / self._workers)

    def _is_quick(self, job: Job) -> bool:
        """Whether nobody loses anything while the event loop computes `job`."""
        known = self._cost.each.get(job.operation)
        if known is None or job.rows > self._capacity[job.operation]:
            return False
        return known * (job.rows + job.images) <= 2.0 * self._direct_seconds

    def _compute_here(self, job: Job) -> None:
        batch = Batch(job.operation, [(job, 0, job.rows)])
        self._runner.compute(batch)
        if batch.fault is not None:
            self._fail_device(batch.fault)
        (_, result), *_ = batch.results
        self._account(batch)
        if isinstance(result, IafvaeError):
            raise result
        job.add(0, job.rows, result, batch)

    async def _compute_in_turn(self, job: Job, deadline: float | None) -> None:
        """Wait in the queue, and for the workers."""
        loop = asyncio.get_running_loop()
        if job.future is not None:  # it failed before it waited
            await job.future
            return
        job.future = loop.create_future()
        timer = None if deadline is None else loop.call_at(deadline, self._expire, job)
        try:
            if len(self._jobs) == 1 and not self._flying:
                self._lone = job
                loop.call_soon(self._spread)
            else:
                self._push(job)
            await job.future
        finally:
            if timer is not None:
                timer.cancel()

    def _push(self, job: Job) -> None:
        """Let `job` wait. Whoever else is ready in this turn of the event loop shares the batch."""
        if self._lone is not None:
            lone, self._lone = self._lone, None
            self._push(lone)
        self._queue.push(job)
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _spread(self) -> None:
        """Hand a job that is still alone to the idle workers, without queue or charge."""
        job, self._lone = self._lone, None
        if job is None or job.gone:
            return
        assert self._pool is not None  # noqa: S101 - works are accepted since it started
        rows = max(SPREAD_ROWS, -(-job.rows // self._workers))
        if rows > self._capacity[job.operation]:
            self._push(job)
            return
        each = self._cost.seconds(job.operation, job.rows, job.images) / job.rows
        for start in range(0, job.rows, rows):
            stop = min(start + rows, job.rows)
            batch = Batch(
                job.operation, [(job, start, stop)], expected_seconds=each * (stop - start)
            )
            self._flying.add(batch)
            self._pool.give(batch)

    def _pump(self) -> None:
        """Hand batches to free workers."""
        self._pump_scheduled = False
        if self._pool is None:
            return
        try:
            while self._pool.free:
                taken = self._queue.take(self._room)
                if taken is None:
                    break
                self._hand(*taken)
        except Exception as error:
            logger.exception("no batch could be formed")
            self._fail_device(DeviceFault(f"no batch could be formed ({error})"))

    def _hand(self, operation: str, pieces: list[Piece]) -> None:
        assert self._pool is not None  # noqa: S101 - `_pump` has looked
        batch = Batch(operation, pieces, queued=True)
        rows, images = 0, 0.0
        for job, start, stop in pieces:
            rows += stop - start
            images += (stop - start) * job.images / job.rows
        batch.expected_seconds = self._cost.seconds(operation, rows, images)
        self._queue.charge(operation, batch.expected_seconds)
        self._flying.add(batch)
        self._pool.give(batch)

    def _room(self, operation: str) -> int:
        """Rows of the next batch: what there is is spread over the workers that are idle."""
        limit = self._capacity[operation]
        free = self._workers - len(self._flying)
        if free <= 1:
            return limit
        spread = math.ceil(self._queue.rows_by_operation[operation] / free)
        return min(limit, max(SPREAD_ROWS, spread))

    def _finished(self, batch: Batch) -> None:
        """A worker's report; runs on the event loop."""
        self._flying.discard(batch)
        if batch.fault is not None:
            self._fail_device(batch.fault)
        if self._queue.rows:
            self._pump()  # the worker goes on while answers are delivered
        for piece, result in batch.results:
            self._deliver(piece, result, batch)
        # After the callers' next step, which is to send their answers.
        asyncio.get_running_loop().call_soon(self._account, batch)

    def _deliver(self, piece: Piece, result: Arrays | IafvaeError, batch: Batch) -> None:
        """Rows of a job, or why there are none. A fault in here is that job's alone."""
        job, start, stop = piece
        if job.future is None or job.future.done():
            return
        try:
            if isinstance(result, IafvaeError):
                self._fail(job, result, "failed")
            elif job.add(start, stop, result, batch):
                job.future.set_result(None)
        except Exception as error:
            logger.exception("an answer of %s could not be put together", job.operation)
            self._fail(job, as_error(job.operation, error), "failed")

    def _account(self, batch: Batch) -> None:
        """Learn what the batch cost, and tell who counts."""
        operation = batch.operation
        if batch.rows:
            self._observer.batch(operation, batch.rows, batch.padded_rows, batch.seconds)
        for reason, rows in batch.skipped.items():
            self._observer.dropped(operation, rows, reason)
        if batch.runs > 1:
            self._observer.retried(operation, batch.runs - 1)
        if batch.queued:
            self._queue.charge(operation, batch.seconds - batch.expected_seconds)
        if batch.runs == 1 and batch.fault is None:  # halves would teach a wrong cost
            self._cost.add(operation, batch.rows, batch.images, batch.seconds)

    def _expire(self, job: Job) -> None:
        """The deadline of `job` has passed."""
        error = DeadlineExceeded("the deadline passed before all rows were computed")
        self._fail(job, error, "expired")

    def _fail(self, job: Job, error: IafvaeError, reason: str) -> None:
        """Answer `job` with `error`, and drop its rows for `reason`."""
        if job.future is None:
            job.future = asyncio.get_running_loop().create_future()
        if not job.future.done():
            # A traceback grows on a shared exception, so every job has its own.
            job.future.set_exception(copy.copy(error).with_traceback(None))
        self._drop(job, reason)

    def _fail_all(self, error: IafvaeError, reason: str) -> None:
        for job in list(self._jobs):
            self._fail(job, error, reason)

    def _drop(self, job: Job, reason: str) -> None:
        """What is left of `job` will not be computed."""
        self._forget(job)
        if job.gone:
            return
        job.leave(reason)
        if left := self._queue.discard(job):
            self._observer.dropped(job.operation, left, reason)

    def _forget(self, job: Job) -> None:
        self._jobs.discard(job)
        if not self._jobs:
            self._idle.set()

    def _watch(self) -> None:
        """Look for a batch that does not come back: its thread is lost, and the device in doubt."""
        loop = asyncio.get_running_loop()
        self._watching = loop.call_later(self._hang_seconds / 4, self._watch)
        batch = self._pool.overdue(self._hang_seconds) if self._pool is not None else None
        if batch is not None and self.healthy:
            limit = self._hang_seconds
            self._fail_device(
                DeviceFault(f"a batch of {batch.operation} has not come back for {limit:g} s")
            )

    def _fail_device(self, fault: DeviceFault) -> None:
        if self.healthy:
            logger.critical("the device failed, liveness fails from here on: %s", fault)
        self.healthy = False
        self._fail_all(fault, "failed")
