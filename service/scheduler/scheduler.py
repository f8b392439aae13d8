"""Requests in, batches out: one bounded queue, as many batches in flight as the engine likes.

There is no timer. A worker that is free takes the next batch itself, at the moment at which it can
begin: an idle service answers at once, and while workers are busy rows collect and the next
batches are fuller. (Batches that the event loop formed and handed over were smaller, since rows
come meanwhile, and a worker stood idle until the loop had time for it.) All else that decides runs
on the event loop. A small job that is alone in the service is computed on the
event loop itself, without queue or thread.

A fault of a run costs the requests that it cannot answer. A fault of the device, a run that does
not come back, or a fault of the queue itself ends the service: liveness fails.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from service.errors import (
    DeadlineExceeded,
    DeviceFault,
    IafvaeError,
    InvalidInput,
    Overloaded,
    ShuttingDown,
)
from service.scheduler.batching import Batcher
from service.scheduler.queue import FairQueue
from service.scheduler.work import Job, Work
from service.scheduler.workers import Batch, Runner, WorkerPool, as_error

if TYPE_CHECKING:
    from service.engine.base import EngineBase

__all__ = ["CostModel", "Scheduler", "SchedulerObserver"]

logger = logging.getLogger(__name__)

# Batches of this many rows already have nearly all that batching gains on a CPU, so work is spread
# over idle workers down to it, and small requests do not wait for more.
SPREAD_ROWS = 8
# A batch cannot be interrupted: who comes meanwhile waits for it. An image costs least in batches
# of 16 to 48, so that longer ones gain nothing but our own time for a batch.
BATCH_SECONDS = 0.016
LEAST_WAIT_SECONDS = 0.1
WEIGHT = 0.05  # of a new batch in the average cost
# A batch that took so many times what was expected (the machine was busy, or asleep) counts as this
# many times: costs that really have risen are learnt in a few batches, accidents are not.
SURPRISE = 3.0
SHORTEST_SECONDS = 1e-6  # of a row: clocks that tick seldom (Windows') see none at all
EXPIRED = DeadlineExceeded("the deadline passed before all rows were computed")


class SchedulerObserver(Protocol):
    """Who counts what the scheduler does; called on the event loop."""

    def taken(self, caller: str, rows: int) -> None:
        """`rows` rows of `caller` will be computed."""

    def batch(self, operation: str, rows: int, padded: int, seconds: float) -> None:
        """A batch of `rows` rows was computed, with `padded` more for nothing."""

    def dropped(self, operation: str, rows: int, reason: str) -> None:
        """`rows` rows will not be computed: "cancelled", "expired", "failed" or "shutdown"."""

    def retried(self, operation: str, runs: int) -> None:
        """A batch failed and was run `runs` times more, in halves."""


class _Nobody:
    """Counts nothing."""

    def taken(self, *_: object) -> None: ...
    def batch(self, *_: object) -> None: ...
    def dropped(self, *_: object) -> None: ...
    def retried(self, *_: object) -> None: ...


class CostModel:
    """Seconds that rows of an operation take one worker.

    In ``score`` the bottom-up network runs once an image and the top-down network once a row, and
    they cost about the same: a batch is half of each. Elsewhere rows are images. `each` has the
    seconds of one row that is an image, where they are known.
    """

    def __init__(self) -> None:
        self.each: dict[str, float] = {}

    def add(self, operation: str, rows: int, images: float, seconds: float) -> None:
        """Learn from one batch."""
        each = max(SHORTEST_SECONDS, 2.0 * seconds / (rows + images))
        known = self.each.get(operation)
        if known is not None:
            each = known + WEIGHT * (min(each, SURPRISE * known) - known)
        self.each[operation] = each

    def seconds(self, operation: str, rows: float, images: float) -> float:
        """What `rows` rows of `images` images will take; 0 while nothing is known."""
        return self.each.get(operation, 0.0) * (rows + images) / 2.0


class Scheduler:
    """Batches works onto an engine.

    batchers: how each operation's rows become a batch; max_batch_rows, max_batch_bytes: of one
    batch; max_queue_rows: that may wait; workers: runs of the engine at once; prefetch: batches
    that are assembled while others run (keeps a GPU busy; costs fairness); hang_seconds: a batch
    that takes longer is a fault of the device; direct_seconds: a job that is alone in the service
    and expected to take no longer is computed on the event loop. jobs: that somebody awaits.
    """

    def __init__(
        self,
        engine: EngineBase,
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
        self._workers, self._threads = workers, workers + prefetch
        self._prefetches = prefetch > 0
        self._hang_seconds, self._direct_seconds = hang_seconds, direct_seconds
        self._observer: SchedulerObserver = observer or _Nobody()
        self._runner = Runner(engine, batchers, workers if prefetch else None)
        # A GPU is as quick with many rows.
        self._queue = FairQueue(max_queue_rows, 0 if prefetch else SPREAD_ROWS)
        # An autoscaler finds the gauge of each operation before anything has waited.
        self._queue.rows_by_operation |= dict.fromkeys(batchers, 0)
        self._cost = CostModel()
        self.jobs: set[Job] = set()
        self._idle = asyncio.Event()
        self._lock = threading.Lock()  # of the queue, and of the four that follow
        self._flying: set[Batch] = set()  # that the workers have, or the loop has yet to report
        self._busy = 0  # threads that compute, or are about to
        self._resting = 0  # threads that must be woken: less than 0 where more was given than rest
        self._broken = False  # nothing more is taken
        self._wake_scheduled = False
        # Came when there was no other, in this turn of the event loop.
        self._lone: Job | None = None
        self._pool: WorkerPool
        self._loop: asyncio.AbstractEventLoop
        self._watching: asyncio.TimerHandle | None = None
        self._late: set[Batch] = set()
        self.accepting = False
        self.healthy = True

    async def start(self) -> None:
        """Start the worker threads; works are accepted from here on."""
        self._loop = asyncio.get_running_loop()
        self._pool = WorkerPool(self._runner, self._threads, self._take, self._finished)
        self.accepting = True
        if math.isfinite(self._hang_seconds):
            self._watch()

    async def stop(self, drain_seconds: float) -> bool:
        """Accept nothing more, give what waits `drain_seconds`, fail the rest, end the threads.

        Whether all of them have ended: if not, one hangs in the engine, which is to be left alone.
        """
        self.accepting = False
        try:
            async with asyncio.timeout(drain_seconds):
                while self.jobs:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            stopping = ShuttingDown("the service is stopping: send the request again")
            self._fail_all(stopping, "shutdown")
        if self._watching is not None:
            self._watching.cancel()
        return not hasattr(self, "_pool") or await self._pool.stop()

    async def submit(self, work: Work, *, caller: str = "", deadline: float | None = None) -> Job:
        """The job of `work`, with the answer in its `arrays`.

        caller: works of one caller wait in one line, callers take turns (`FairQueue`); deadline:
        on the clock of `time.monotonic`. Cancelling the awaiting task drops the rows that are not
        computed yet.
        Raises Overloaded, DeadlineExceeded, ShuttingDown, EngineFailure or DeviceFault.
        """
        job = Job(work, caller)
        self._admit(job, deadline)
        self.jobs.add(job)
        try:
            is_quick = self._is_quick(job)
            if is_quick:
                await asyncio.sleep(0)  # whoever else is ready in this turn shares the batch
            if is_quick and self._is_alone():
                batch = Batch(job.operation, [(job, 0, job.rows)])
                self._runner.compute(batch)
                self._finished(batch)
            else:
                loop = asyncio.get_running_loop()
                if deadline is not None:
                    job.expiry = loop.call_at(deadline, self._fail, job, EXPIRED, "expired")
                if self._is_alone():
                    self._lone = job
                    loop.call_soon(self._spread)
                else:
                    self._push(job)
            await job.future
        except BaseException:
            self._drop(job, "cancelled")  # whoever failed it has dropped it
            raise
        finally:
            if job.expiry is not None:
                job.expiry.cancel()
            self._forget(job)
        return job

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
        with self._lock:
            # Where nobody waits any request may: its rows are made batch by batch.
            why = self._queue.refusal(job.holder, job.rows) if self._queue.rows else None
            wait = self._wait_seconds() if why else 0.0
        if why:
            raise Overloaded(f"{why}: send the request again later", wait)
        self._observer.taken(job.caller, job.rows)
        job.future = asyncio.get_running_loop().create_future()

    def _wait_seconds(self) -> float:
        """How long what waits and what runs will keep the workers busy, by what batches cost."""
        work = sum(batch.expected_seconds for batch in self._flying)
        for operation, rows, images in self._queue.waiting():
            work += self._cost.seconds(operation, rows, images)
        return max(LEAST_WAIT_SECONDS, work / self._workers)

    def _is_alone(self) -> bool:
        """Whether one job waits and nothing runs."""
        return len(self.jobs) == 1 and not self._flying

    def _is_quick(self, job: Job) -> bool:
        """Whether nobody loses anything while the event loop computes `job`, which is alone."""
        known = self._cost.each.get(job.operation)
        if known is None or len(self.jobs) > 1 or self._flying:
            return False
        if job.rows > self._capacity[job.operation]:
            return False
        return known * (job.rows + job.images) / 2.0 <= self._direct_seconds

    def _push(self, job: Job) -> None:
        """Let `job` wait. Whoever else is ready in this turn of the event loop shares the batch."""
        if self._lone is not None:
            lone, self._lone = self._lone, None
            self._push(lone)
        if job.gone:
            return
        with self._lock:
            self._queue.push(job)
            wake = self._resting > 0 and not self._wake_scheduled
        if wake:
            self._wake_scheduled = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _spread(self) -> None:
        """Hand a job that is still alone to the idle workers, without queue or charge."""
        job, self._lone = self._lone, None
        if job is None or job.gone:
            return
        try:
            rows = max(SPREAD_ROWS, -(-job.rows // self._workers))
            if job.images >= self._workers:
                rows += -rows % job.samples  # whole images
            if rows > self._limit(job.operation):
                self._push(job)
                return
            each = self._cost.seconds(job.operation, job.rows, job.images) / job.rows
            for start in range(0, job.rows, rows):
                stop = min(start + rows, job.rows)
                expected = each * (stop - start)
                batch = Batch(job.operation, [(job, start, stop)], expected_seconds=expected)
                with self._lock:
                    self._flying.add(batch)
                    self._busy += 1
                    self._resting -= 1
                self._pool.wake(batch)
        except Exception as error:  # nobody else would end the wait
            logger.exception("a job of %s could not be divided", job.operation)
            self._fail(job, as_error(job.operation, error), "failed")

    def _wake(self) -> None:
        """Wake as many threads as there are batches for."""
        self._wake_scheduled = False
        with self._lock:
            batches = 0  # each is of one operation
            for rows in self._queue.rows_by_operation.values():
                batches += -(-rows // SPREAD_ROWS)
            count = max(0, min(self._resting, batches))
            self._resting -= count
        for _ in range(count):
            self._pool.wake(None)

    def _take(self, done: Batch | None) -> Batch | None:
        """The next batch for a thread that has computed `done`; in that thread."""
        with self._lock:
            if done is not None:
                self._busy -= 1
                self._broken |= done.fault is not None  # the event loop hears of it in a moment
            batch = None
            try:
                if not self._broken:
                    batch = self._formed()
            except Exception as error:
                logger.exception("no batch could be formed")
                self._broken = True
                fault = DeviceFault(f"no batch could be formed ({error})")
                self._loop.call_soon_threadsafe(self._fail_device, fault)
            if batch is None:
                self._resting += 1
            else:
                self._flying.add(batch)
                self._busy += 1
            return batch

    def _formed(self) -> Batch | None:
        taken = self._queue.take(self._room)
        if taken is None:
            return None
        operation, pieces = taken
        batch = Batch(operation, pieces, queued=True)
        rows, images = 0, 0.0
        for job, start, stop in pieces:
            rows += stop - start
            images += (stop - start) / job.samples
        batch.expected_seconds = self._cost.seconds(operation, rows, images)
        self._queue.charge(operation, batch.expected_seconds)
        return batch

    def _room(self, operation: str) -> int:
        """Rows of the next batch: what there is is spread over the workers that are idle."""
        limit = self._limit(operation)
        free = self._workers - self._busy
        if free <= 1:
            return limit
        spread = math.ceil(self._queue.rows_by_operation[operation] / free)
        return min(limit, max(SPREAD_ROWS, spread))

    def _limit(self, operation: str) -> int:
        """Rows of a batch: on a CPU no more than nearly all gain, where they take long."""
        limit, each = self._capacity[operation], self._cost.each.get(operation)
        if self._prefetches or each is None:
            return limit
        return min(limit, max(SPREAD_ROWS, int(BATCH_SECONDS / each)))

    def _finished(self, batch: Batch) -> None:
        """A worker's report; runs on the event loop."""
        with self._lock:
            self._flying.discard(batch)
        if batch.fault is not None:
            self._fail_device(batch.fault)
        for (job, start, stop), result in batch.results:
            if job.future.done():
                continue
            try:
                if isinstance(result, IafvaeError):
                    self._fail(job, result, "failed")
                elif job.add(start, stop, result, began=batch.began, seconds=batch.seconds):
                    job.future.set_result(None)
            except Exception as error:  # it is that job's alone
                logger.exception("an answer of %s could not be put together", job.operation)
                self._fail(job, as_error(job.operation, error), "failed")
        # After the callers' next step, which is to send their answers.
        asyncio.get_running_loop().call_soon(self._account, batch)

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
            with self._lock:
                self._queue.charge(operation, batch.seconds - batch.expected_seconds)
        if batch.runs == 1 and batch.images:  # failed runs and halves would teach a wrong cost
            self._cost.add(operation, batch.rows, batch.images, batch.seconds)

    def _fail(self, job: Job, error: IafvaeError, reason: str) -> None:
        """Answer `job` with `error`, and drop its rows for `reason`."""
        if not job.future.done():
            # A traceback grows on a shared exception, so every job has its own.
            job.future.set_exception(copy.copy(error).with_traceback(None))
            job.future.exception()  # seen: a caller who goes in this moment will not look
        self._drop(job, reason)

    def _fail_all(self, error: IafvaeError, reason: str) -> None:
        for job in list(self.jobs):
            self._fail(job, error, reason)

    def _drop(self, job: Job, reason: str) -> None:
        """What is left of `job` will not be computed."""
        self._forget(job)
        if job.gone:
            return
        job.leave(reason)
        with self._lock:
            left = self._queue.discard(job)
        if left:
            self._observer.dropped(job.operation, left, reason)

    def _forget(self, job: Job) -> None:
        self.jobs.discard(job)
        if not self.jobs:
            self._idle.set()

    def _watch(self) -> None:
        """Look for a batch that does not come back: its thread is lost, and the device in doubt."""
        loop = asyncio.get_running_loop()
        self._watching = loop.call_later(self._hang_seconds / 4, self._watch)
        limit = self._hang_seconds
        with self._lock:
            late = {batch for batch in self._flying if time.monotonic() - batch.made > limit}
        # Late at two looks: after a pause of the whole process (`docker pause`) the first one comes
        # before any thread has had a moment.
        lost, self._late = late & self._late, late
        if lost and self.healthy:
            what = next(iter(lost)).operation
            self._fail_device(DeviceFault(f"a batch of {what} has not come back for {limit:g} s"))

    def _fail_device(self, fault: DeviceFault) -> None:
        if self.healthy:
            logger.critical("the device failed, liveness fails from here on: %s", fault)
        self.healthy = False
        self._fail_all(fault, "failed")
