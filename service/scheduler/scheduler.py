"""Requests in, batches out: one bounded queue, as many batches in flight as the engine likes.

There is no timer. A batch is formed the moment a worker is free: an idle service answers at once,
and while workers are busy rows collect and the next batches are fuller. Everything that decides
runs on the event loop; worker threads only assemble, run and cut one batch, and report once.

Whatever stage an exception strikes (admission, forming, assembling, running, cutting, delivering,
counting), it costs the requests that were in hand there, and the service goes on. Only a fault of
the device, or a run that does not come back, ends it: liveness fails.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping

from service.errors import (
    DeadlineExceeded,
    DeviceFault,
    EngineFailure,
    IafvaeError,
    InvalidInput,
    Overloaded,
    ShuttingDown,
)
from service.scheduler.batching import Batcher
from service.scheduler.cost import CostModel
from service.scheduler.crew import Crew
from service.scheduler.jobs import BatchResult, Ledger, supervised
from service.scheduler.observer import Guarded, SchedulerObserver
from service.scheduler.queue import FairQueue, Span
from service.scheduler.work import Work
from service.scheduler.workers import Batch, BatchEngine, Job, Outcome, Runner, as_error

__all__ = ["BatchResult", "Scheduler", "SchedulerObserver"]

logger = logging.getLogger(__name__)

# Batches of this many rows already have nearly all that batching gains on a CPU, so work is spread
# over idle workers down to it, and small requests do not wait for more.
SPREAD_ROWS = 8
# Forming a batch may fail so often in a row before what waits is given up.
STUMBLES = 3
STUMBLE_SECONDS = 0.01
LEAST_WAIT_SECONDS = 0.1


class Scheduler:
    """Batches works onto an engine.

    batchers: how each operation's rows become a batch; max_batch_rows, max_batch_bytes: of one
    batch; max_queue_rows: that may wait; workers: runs of the engine at once; prefetch: batches
    that are assembled while others run (keeps a GPU busy; costs fairness); hang_seconds: a batch
    that takes longer is a fault of the device; direct_seconds: a batch that is alone in the service
    and expected to take no longer is computed on the event loop itself, which saves two changes of
    threads.
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
        self._batchers = batchers
        self._capacity = {
            name: max(1, min(max_batch_rows, max_batch_bytes // batcher.row_bytes))
            for name, batcher in batchers.items()
        }
        self._max_queue_rows = max_queue_rows
        self._workers, self._in_flight_limit = workers, workers + prefetch
        self._hang_seconds, self._direct_seconds = hang_seconds, direct_seconds
        self._observer = Guarded(observer)
        self._runner = Runner(engine, batchers, workers if prefetch else None)
        self._quick_rows = 0 if prefetch else SPREAD_ROWS  # a GPU is as quick with many rows
        self._queue: FairQueue[Job] = FairQueue(max_queue_rows, self._quick_rows)
        self._cost = CostModel()
        self._ledger = Ledger(self._discard, self._observer)
        self._flying: set[Batch] = set()
        self._pump_scheduled, self._stumbles = False, 0
        self._crew: Crew | None = None
        self._watching: asyncio.TimerHandle | None = None
        self.accepting = False
        self.healthy = True

    async def start(self) -> None:
        """Start the worker threads; works are accepted from here on."""
        events = asyncio.get_running_loop()
        self._crew = Crew(self._runner, self._in_flight_limit, events, self._finished, self._pump)
        self.accepting = True
        if math.isfinite(self._hang_seconds):
            self._watch()

    async def stop(self, drain_seconds: float) -> None:
        """Accept nothing more, give what waits `drain_seconds`, fail the rest, end the threads."""
        self.accepting = False
        try:
            async with asyncio.timeout(drain_seconds):
                await self._ledger.idle.wait()
        except TimeoutError:
            self._ledger.fail_all(
                ShuttingDown("the service is stopping: send the request again"), "shutdown"
            )
        if self._watching is not None:
            self._watching.cancel()
        if self._crew is not None:
            await self._crew.dismiss()

    async def submit(
        self, work: Work, *, caller: str = "", deadline: float | None = None
    ) -> BatchResult:
        """Compute all rows of `work`.

        caller: works of one caller wait in one line, callers take turns; deadline: on the clock of
        `time.monotonic`. Cancelling the awaiting task drops the rows that are not computed yet.
        Raises Overloaded, DeadlineExceeded, ShuttingDown, EngineFailure or DeviceFault.
        """
        now = time.monotonic()
        self._admit(work, caller, now, deadline)
        loop = asyncio.get_running_loop()
        job = Job(work, caller, loop.create_future(), now)
        timer = None
        if deadline is not None:
            timer = loop.call_later(deadline - now, self._ledger.expire, job)
        try:
            self._ledger.open(job)
            self._queue.push(job)
            if not self._pump_scheduled:
                # Whoever else is ready in this turn of the event loop shares the batch.
                self._pump_scheduled = True
                loop.call_soon(self._pump, True)
            result: BatchResult = await job.future
        except IafvaeError:
            raise  # whoever failed the job has dropped it
        except BaseException:
            self._ledger.drop(job, "cancelled")
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return result

    @property
    def queued_rows(self) -> int:
        """Rows that wait."""
        return self._queue.rows

    def _admit(self, work: Work, caller: str, now: float, deadline: float | None) -> None:
        if work.rows < 1 or work.operation not in self._batchers:
            raise InvalidInput(f"no batch can be made of {work.rows} rows of {work.operation!r}")
        if not self.healthy:
            raise DeviceFault("the device failed: this process is about to be replaced")
        if not self.accepting:
            raise ShuttingDown("the service is starting or stopping: send the request again")
        if deadline is not None and deadline <= now:
            raise DeadlineExceeded("the deadline had passed before the work was queued")
        refusal = self._queue.refusal(caller, work.rows)
        if refusal is not None:
            raise Overloaded(f"{refusal}: send the request again later", self._wait_seconds())

    def _wait_seconds(self) -> float:
        """How long what waits and what runs will keep the workers busy, by what batches cost."""
        work = sum(batch.expected_seconds for batch in self._flying)
        for operation, rows, images in self._queue.waiting():
            batches = math.ceil(rows / self._capacity[operation])
            work += self._cost.seconds(operation, rows, images, batches)
        return max(LEAST_WAIT_SECONDS, work / self._workers)

    def _pump(self, newcomers: bool = False) -> None:
        """Hand batches to free workers. Raises nothing.

        newcomers: nothing else is to be done in this turn of the event loop, so it may compute.
        """
        self._pump_scheduled = False
        try:
            while self._crew is not None and self._crew.free:
                taken = self._queue.take(self._room)
                if taken is None:
                    break
                self._hand(*taken, newcomers)
            self._stumbles = 0
        except Exception:  # noqa: BLE001 - it is logged where it is counted
            self._stumble()
        self._observer.queue(self._queue.rows_by_operation)

    def _hand(self, operation: str, spans: list[Span[Job]], may_compute: bool) -> None:
        """Have one batch computed."""
        batch = Batch(operation, spans)
        self._flying.add(batch)
        try:
            rows, images = sum(s.rows for s in spans), sum(s.images for s in spans)
            batch.expected_seconds = self._cost.seconds(operation, rows, images)
            self._queue.charge(operation, batch.expected_seconds)
            if may_compute and self._is_alone(batch):
                self._finished(batch, self._runner.compute(batch))
            else:
                assert self._crew is not None  # noqa: S101 - `_pump` has looked
                self._crew.give(batch)
        except Exception as error:
            logger.exception("a batch of %s could not be handed out", operation)
            failure = as_error(operation, error)
            lost = Outcome(began=time.monotonic(), results=[(span, failure) for span in spans])
            self._finished(batch, lost)

    def _is_alone(self, batch: Batch) -> bool:
        """Whether nobody loses anything while the event loop computes `batch`."""
        quick = 0.0 < batch.expected_seconds <= self._direct_seconds
        return quick and len(self._ledger) == 1 and len(self._flying) == 1 and not self._queue.rows

    def _stumble(self) -> None:
        """Forming a batch failed: try again soon, and in the end give up what waits."""
        self._stumbles += 1
        logger.exception("no batch could be formed (%d in a row)", self._stumbles)
        loop = asyncio.get_running_loop()
        loop.call_soon(self._fail_lost)  # what has just come back is delivered first
        if self._stumbles < STUMBLES:
            self._pump_scheduled = True
            loop.call_later(STUMBLE_SECONDS, self._pump)
            return
        self._stumbles = 0
        self._give_up(self._ledger.waiting())
        known = self._queue.rows_by_operation
        self._queue = FairQueue(self._max_queue_rows, self._quick_rows)
        self._queue.rows_by_operation.update(dict.fromkeys(known, 0))

    def _fail_lost(self) -> None:
        """Rows that were taken out of the queue when it failed are in nobody's hands."""
        self._give_up(self._ledger.lost(self._flying))

    def _give_up(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._ledger.fail(job, EngineFailure(f"{job.operation} failed: see the log"), "failed")

    def _room(self, operation: str) -> int:
        """Rows of the next batch: what there is is spread over the workers that are idle."""
        limit = self._capacity[operation]
        free = self._workers - len(self._flying)
        if free <= 1:
            return limit
        spread = math.ceil(self._queue.rows_by_operation[operation] / free)
        return min(limit, max(SPREAD_ROWS, spread))

    def _finished(self, batch: Batch, outcome: Outcome) -> None:
        """A batch's report; runs on the event loop. Raises nothing."""
        if batch not in self._flying:
            return
        self._flying.remove(batch)
        if outcome.fault is not None:
            self._fail_device(outcome.fault)
        self._pump()  # the worker goes on while answers are delivered
        for span, result in outcome.results:
            self._ledger.deliver(span, result, outcome)
        # After the callers' next step, which is to send their answers.
        asyncio.get_running_loop().call_soon(supervised, self._account, batch, outcome)

    def _account(self, batch: Batch, outcome: Outcome) -> None:
        """Learn what the batch cost, and tell who counts."""
        operation = batch.operation
        if outcome.rows:
            self._observer.batch(operation, outcome.rows, outcome.padded_rows, outcome.seconds)
        for reason, rows in outcome.skipped.items():
            self._observer.dropped(operation, rows, reason)
        if outcome.runs > 1:
            self._observer.retried(operation, outcome.runs - 1)
        self._queue.charge(operation, outcome.seconds - batch.expected_seconds)
        if outcome.runs == 1 and outcome.fault is None:  # halves would teach a wrong cost
            self._cost.add(operation, outcome.rows, outcome.images, outcome.seconds)

    def _discard(self, job: Job) -> int:
        left = self._queue.discard(job)
        self._observer.queue(self._queue.rows_by_operation)
        return left

    def _watch(self) -> None:
        """Look for a batch that does not come back: its thread is lost, and the device in doubt."""
        loop = asyncio.get_running_loop()
        self._watching = loop.call_later(self._hang_seconds / 4, self._watch)
        batch = self._crew.overdue(self._hang_seconds) if self._crew is not None else None
        if batch is not None and self.healthy:
            limit = self._hang_seconds
            self._fail_device(
                DeviceFault(f"a batch of {batch.operation} has not come back for {limit:g} s")
            )

    def _fail_device(self, fault: DeviceFault) -> None:
        if self.healthy:
            logger.critical("the device failed, liveness fails from here on: %s", fault)
        self.healthy = False
        self._ledger.fail_all(fault, "failed")
