"""Batches, and the threads that assemble, run and cut one of them and report once.

A batch that fails is run again in halves, down to the request that is at fault.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.engine.arrays import Arrays
from service.errors import DeviceFault, EngineFailure, IafvaeError
from service.scheduler.batching import Batcher
from service.scheduler.work import Piece

if TYPE_CHECKING:
    from service.engine.base import EngineBase

__all__ = ["Batch", "Runner", "WorkerPool", "as_error"]

logger = logging.getLogger(__name__)

JOIN_SECONDS = 5.0


@dataclass(eq=False, slots=True)
class Batch:
    """Rows of one operation for one run, and what became of them.

    queued: its rows have waited; expected_seconds: what it was thought to cost; made: when. Then:
    `began`; `seconds`, without the time for which another batch had the device; rows that were
    tried, and images that were computed (each once, also where halves were tried again);
    `padded_rows` computed for nothing; `runs` of the engine; `skipped` rows that nobody waited for
    any more, by the reason; `fault` where the device failed; `results`, an answer or an error for
    every piece that was tried. Times are on the clock of `time.monotonic`.
    """

    operation: str
    pieces: list[Piece]
    queued: bool = False
    expected_seconds: float = 0.0
    made: float = field(default_factory=time.monotonic)
    began: float = 0.0
    seconds: float = 0.0
    rows: int = 0
    images: int = 0
    padded_rows: int = 0
    runs: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    fault: DeviceFault | None = None
    results: list[tuple[Piece, Arrays | IafvaeError]] = field(default_factory=list)

    def living(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Those whose caller still waits; the others are counted as skipped."""
        live = []
        for piece in pieces:
            job, start, stop = piece
            if job.gone:
                self.skipped[job.reason] += stop - start
            else:
                live.append(piece)
        return live

    def fail(self, pieces: Sequence[Piece], error: IafvaeError) -> None:
        """`pieces` have no answer but `error`."""
        if isinstance(error, DeviceFault):
            self.fault = error
        done = {id(piece) for piece, _ in self.results}
        self.results += [(piece, error) for piece in pieces if id(piece) not in done]


class Runner:
    """Computes batches in any thread.

    parallel: runs of the engine at once, None for as many as there are threads. With more threads
    than that, what is assembled meanwhile is the batch that waits, formed, for the device.
    """

    def __init__(
        self, engine: EngineBase, batchers: Mapping[str, Batcher], parallel: int | None
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
            graph, arrays = batcher.graph(batch.operation, works), batcher.assemble(works)
            with self._device:
                waited = time.monotonic() - began
                if not [job for job, _, _ in live if not job.gone]:
                    batch.living(live)  # none: all left while another batch had the device
                    batch.rows -= sum([stop - start for _, start, stop in live])
                    return
                batch.runs += 1
                outputs = self._engine.run(graph, arrays)
            parts = list(zip(live, batcher.split(works, outputs), strict=True))
        finally:
            batch.began += waited
            batch.seconds += time.monotonic() - began - waited
        images = arrays.get("image")  # as many as rows where they are not counted apart
        batch.images += sum([b - a for _, a, b in live]) if images is None else len(images)
        batch.results += parts


class WorkerPool:
    """`size` threads, each of which asks for the next batch as soon as it is free.

    take: called in a thread with the batch that it has computed, if any, gives the next one, or
    None where nothing waits; report: called on the event loop with every batch computed; wake: has
    a thread that rests compute a batch, or with None ask again. All methods are called on the event
    loop.
    """

    def __init__(
        self,
        runner: Runner,
        size: int,
        take: Callable[[Batch | None], Batch | None],
        report: Callable[[Batch], None],
    ) -> None:
        self._runner, self._take, self._report = runner, take, report
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self.wake: Callable[[Batch | None], None] = self._inbox.put
        self._running = True
        self._threads = [
            threading.Thread(target=self._work, name=f"engine-{number}", daemon=True)
            for number in range(size)
        ]
        for thread in self._threads:
            thread.start()

    async def stop(self) -> bool:
        """End the threads, and say whether all have ended: one that is stuck is left behind, and
        ends with the process."""
        self._running = False
        for _ in self._threads:
            self._inbox.put(None)
        await asyncio.to_thread(self._join)
        return not any(thread.is_alive() for thread in self._threads)

    def _join(self) -> None:
        until = time.monotonic() + JOIN_SECONDS  # for all: they are stuck at the same device
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        """The loop of one thread, until the pool stops."""
        batch: Batch | None = None  # the one before; a thread that rests keeps no arrays
        while self._running:
            batch = self._take(batch)
            if batch is None:
                batch = self._inbox.get()
            if batch is None:
                continue
            self._runner.compute(batch)
            try:
                self._loop.call_soon_threadsafe(self._report, batch)
            except RuntimeError:
                logger.debug("the event loop has closed: nobody is left to answer")


def as_error(operation: str, error: BaseException) -> IafvaeError:
    """What a caller is told of `error`; only an engine says that its device is gone."""
    if isinstance(error, DeviceFault | EngineFailure):
        return error
    return EngineFailure(f"{operation} failed: {type(error).__name__}: {error}")
