"""Worker threads: they assemble, run and cut one batch, and report once; and what that costs.

A batch that fails is run again in halves, down to the request that is at fault.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from numpy.typing import NDArray

from service.engine.arrays import Arrays
from service.errors import DeviceFault, EngineFailure, IafvaeError
from service.scheduler.batching import Batcher
from service.scheduler.jobs import Batch, Piece

__all__ = ["BatchEngine", "CostModel", "Runner", "WorkerPool", "as_error"]

logger = logging.getLogger(__name__)

JOIN_SECONDS = 5.0
WEIGHT = 0.05  # of a new batch in the average
# A batch that took so many times what was expected (the machine was busy, or asleep) counts as this
# many times: costs that really have risen are learnt in a few batches, accidents are not.
SURPRISE = 3.0


class BatchEngine(Protocol):
    """What the scheduler needs of an engine."""

    def run(self, operation: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """Compute one batch; called from worker threads."""
        ...

    def padded_rows(self, rows: int) -> int:
        """Rows that are computed for nothing in a batch of `rows`."""
        ...


class Runner:
    """Computes batches in any thread.

    parallel: runs of the engine at once, None for as many as there are threads. With more threads
    than that, what is assembled meanwhile is the batch that waits, formed, for the device.
    """

    def __init__(
        self, engine: BatchEngine, batchers: Mapping[str, Batcher], parallel: int | None
    ) -> None:
        self._engine, self._batchers = engine, batchers
        self._device: AbstractContextManager[object] = (
            nullcontext() if parallel is None else threading.Semaphore(parallel)
        )

    def compute(self, batch: Batch) -> None:
        """Run `batch`; what comes of it, whatever goes wrong, is in its fields."""
        batch.began = time.monotonic()
        try:
            live = batch.living(batch.pieces)
            batch.rows = sum([stop - start for _, start, stop in live])
            if live:
                self._attempt(batch, live)
                batch.padded_rows = self._engine.padded_rows(batch.rows)
        except BaseException as error:  # also SystemExit: it is the batch's, not the thread's
            logger.exception("a batch of %s was lost", batch.operation)
            batch.fail(batch.pieces, as_error(batch.operation, error))

    def _attempt(self, batch: Batch, live: Sequence[Piece]) -> None:
        """Run the pieces together; where that fails, in halves, down to the one at fault."""
        if batch.fault is not None:
            batch.fail(live, batch.fault)
            return
        try:
            self._run(batch, live)
        except BaseException as error:  # as above
            failure = as_error(batch.operation, error)
            if len(live) == 1 or isinstance(failure, DeviceFault):
                logger.error("%s", failure, exc_info=error)
                batch.fail(live, failure)
                return
            middle = len(live) // 2
            for half in (live[:middle], live[middle:]):
                if still := [piece for piece in half if not piece[0].gone]:
                    self._attempt(batch, still)  # who has gone meanwhile is not tried again

    def _run(self, batch: Batch, live: Sequence[Piece]) -> None:
        began, waited = time.monotonic(), 0.0
        batcher = self._batchers[batch.operation]
        works = [(job.work, start, stop) for job, start, stop in live]
        try:
            arrays = batcher.assemble(works)
            with self._device:
                waited = time.monotonic() - began
                if not batch.anybody(live):  # they left while another batch had the device
                    return
                batch.runs += 1
                outputs = self._engine.run(batch.operation, arrays)
            parts = list(zip(live, batcher.split(works, outputs), strict=True))
        finally:
            batch.began += waited
            batch.seconds += time.monotonic() - began - waited
        images = arrays.get("image")  # as many as rows where they are not counted apart
        batch.images += batch.rows if images is None else len(images)
        batch.results += parts


class WorkerPool:
    """`size` threads that call ``runner.compute`` and then `report` on the event loop.

    `free` threads wait for a batch. All methods are called on the event loop.
    """

    def __init__(self, runner: Runner, size: int, report: Callable[[Batch], None]) -> None:
        self._runner, self._report = runner, report
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._taken: set[Batch] = set()
        self.free = size
        self._threads = [
            threading.Thread(target=self._work, name=f"engine-{number}", daemon=True)
            for number in range(size)
        ]
        for thread in self._threads:
            thread.start()

    def give(self, batch: Batch) -> None:
        """Have `batch` computed by the next free thread."""
        batch.handed = time.monotonic()
        self._taken.add(batch)
        self.free -= 1
        self._inbox.put(batch)

    def overdue(self, seconds: float) -> Batch | None:
        """A batch that has been in hand for longer than `seconds`."""
        now = time.monotonic()
        return next((batch for batch in self._taken if now - batch.handed > seconds), None)

    async def stop(self) -> None:
        """End the threads; one that is stuck is left behind, and ends with the process."""
        for _ in self._threads:
            self._inbox.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, JOIN_SECONDS)

    def _work(self) -> None:
        """What a thread does until a None comes."""
        while (batch := self._inbox.get()) is not None:
            self._runner.compute(batch)
            try:
                self._loop.call_soon_threadsafe(self._done, batch)
            except RuntimeError:
                logger.debug("the event loop has closed: nobody is left to answer")

    def _done(self, batch: Batch) -> None:
        self._taken.discard(batch)
        self.free += 1
        self._report(batch)


class CostModel:
    """Seconds that rows of an operation take one worker.

    In ``score`` the bottom-up network runs once an image and the top-down network once a row, and
    they cost about the same: a batch is half of each. Elsewhere rows are images. `each` has the
    seconds of one row that is an image, where they are known.
    """

    def __init__(self) -> None:
        self.each: dict[str, float] = {}  # of one row that is an image

    def add(self, operation: str, rows: int, images: float, seconds: float) -> None:
        """Learn from one batch."""
        each = 2.0 * seconds / (rows + images)
        known = self.each.get(operation)
        if known is not None:
            each = known + WEIGHT * (min(each, SURPRISE * known) - known)
        self.each[operation] = each

    def seconds(self, operation: str, rows: float, images: float) -> float:
        """What `rows` rows of `images` images will take; 0 while nothing is known."""
        return self.each.get(operation, 0.0) * (rows + images) / 2.0


def as_error(operation: str, error: BaseException) -> IafvaeError:
    """What a caller is told of `error`; running out of memory is the device's fault."""
    if isinstance(error, DeviceFault | EngineFailure):
        return error
    if isinstance(error, MemoryError):
        return DeviceFault(f"out of memory in {operation}")
    return EngineFailure(f"{operation} failed: {type(error).__name__}: {error}")
