"""One batch: assembled, run and cut; in halves where it fails. Whatever goes wrong is an answer."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from service.engine.arrays import Arrays
from service.errors import DeviceFault, EngineFailure, IafvaeError
from service.scheduler.batching import Batcher
from service.scheduler.queue import Span
from service.scheduler.work import Work

__all__ = ["Batch", "BatchEngine", "Job", "Outcome", "Runner", "as_error"]

logger = logging.getLogger(__name__)


class BatchEngine(Protocol):
    """What the scheduler needs of an engine."""

    def run(self, operation: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """Compute one batch; called from worker threads."""
        ...

    def padded_rows(self, rows: int) -> int:
        """Rows that are computed for nothing in a batch of `rows`."""
        ...


class Job:
    """A work that somebody awaits. Belongs to the event loop; workers read `work` and `gone`."""

    __slots__ = (
        "began",
        "caller",
        "compute_seconds",
        "done",
        "future",
        "gone",
        "images",
        "largest_batch",
        "operation",
        "parts",
        "reason",
        "rows",
        "submitted",
        "taken",
        "work",
    )

    def __init__(
        self, work: Work, caller: str, future: asyncio.Future[Any], submitted: float
    ) -> None:
        self.work: Work | None = work
        self.operation, self.rows = work.operation, work.rows
        self.images = -(-work.rows // work.rows_per_image)
        self.caller, self.future, self.submitted = caller, future, submitted
        self.gone, self.reason = False, ""
        self.taken, self.done, self.largest_batch = work.rows, 0, 0
        self.began, self.compute_seconds = float("inf"), 0.0
        self.parts: list[tuple[int, Arrays]] = []

    def add(self, span: Span[Job], arrays: Arrays, outcome: Outcome) -> None:
        """Keep the rows of one span."""
        self.parts.append((span.start, arrays))
        self.done += span.rows
        self.began = min(self.began, outcome.began)
        self.compute_seconds += outcome.seconds
        self.largest_batch = max(self.largest_batch, outcome.rows)

    def release(self) -> None:
        """Let go of the arrays: an empty shell may wait in the queue for its turn."""
        self.work = None
        self.parts = []


@dataclass(eq=False, slots=True)
class Batch:
    """Rows of one operation for one run.

    expected_seconds: what it was thought to cost; handed: when a worker got it, on the clock of
    `time.monotonic`.
    """

    operation: str
    spans: list[Span[Job]]
    expected_seconds: float = 0.0
    handed: float = 0.0


@dataclass(slots=True)
class Outcome:
    """What became of a batch: an answer or an error for every span that was tried.

    rows: that were computed (each once, also where halves were tried again), of so many images;
    skipped: rows that nobody waited for any more, by the reason; runs: of the engine; seconds:
    without the time for which another batch had the device; fault: set where the device failed.
    """

    began: float
    seconds: float = 0.0
    rows: int = 0
    images: int = 0
    padded_rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    fault: DeviceFault | None = None
    results: list[tuple[Span[Job], Arrays | IafvaeError]] = field(default_factory=list)

    def skip(self, spans: Sequence[Span[Job]]) -> None:
        """Nobody waited for the rows of `spans` when their turn came."""
        for span in spans:
            self.skipped[span.job.reason] += span.rows


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

    def compute(self, batch: Batch) -> Outcome:
        """Run `batch`; whatever goes wrong is in the outcome."""
        began = time.monotonic()
        outcome = Outcome(began=began)
        try:
            self._compute(batch, outcome)
        except BaseException as error:  # also SystemExit: it is the batch's, not the thread's
            logger.exception("a batch of %s was lost", batch.operation)
            outcome = Outcome(began=began)
            failure = as_error(batch.operation, error)
            if isinstance(failure, DeviceFault):
                outcome.fault = failure
            outcome.results = [(span, failure) for span in batch.spans]
        return outcome

    def _compute(self, batch: Batch, outcome: Outcome) -> None:
        live = _alive([(span, span.job.work) for span in batch.spans])
        outcome.rows = sum(span.rows for span, _ in live)
        if len(live) < len(batch.spans):
            kept = {id(span) for span, _ in live}
            outcome.skip([span for span in batch.spans if id(span) not in kept])
        if live:
            self._attempt(batch.operation, live, outcome)
            outcome.padded_rows = self._engine.padded_rows(outcome.rows)

    def _attempt(self, operation: str, live: Sequence[Live], outcome: Outcome) -> None:
        """Run the spans together; where that fails, in halves, down to the one that is at fault."""
        if outcome.fault is not None:
            outcome.results += [(span, outcome.fault) for span, _ in live]
            return
        try:
            parts = self._run(operation, live, outcome)
        except BaseException as error:  # as above
            failure = as_error(operation, error)
            if isinstance(failure, DeviceFault):
                outcome.fault = failure
            if len(live) == 1 or outcome.fault is not None:
                logger.error("%s", failure, exc_info=error)
                outcome.results += [(span, failure) for span, _ in live]
                return
            middle = len(live) // 2
            for half in (live[:middle], live[middle:]):
                if still := _alive(half):  # who has gone meanwhile is not tried again
                    self._attempt(operation, still, outcome)
        else:
            outcome.results += parts

    def _run(
        self, operation: str, live: Sequence[Live], outcome: Outcome
    ) -> list[tuple[Span[Job], Arrays]]:
        began, waited = time.monotonic(), 0.0
        batcher = self._batchers[operation]
        pieces = [(work, span.start, span.stop) for span, work in live]
        try:
            arrays = batcher.assemble(pieces)
            asked = time.monotonic()
            with self._device:
                waited = time.monotonic() - asked
                if all(span.job.gone for span, _ in live):  # while another batch had the device
                    outcome.rows -= sum(span.rows for span, _ in live)
                    outcome.skip([span for span, _ in live])
                    return []
                outcome.runs += 1
                outputs = self._engine.run(operation, arrays)
            parts = batcher.split(pieces, outputs)
        finally:
            outcome.began += waited
            outcome.seconds += time.monotonic() - began - waited
        images = arrays.get("image")  # as many as rows where they are not counted apart
        outcome.images += sum(span.rows for span, _ in live) if images is None else len(images)
        return [(span, part) for (span, _), part in zip(live, parts, strict=True)]


Live = tuple[Span[Job], Work]


def _alive(spans: Sequence[tuple[Span[Job], Work | None]]) -> list[Live]:
    """Those whose caller still waits."""
    return [(span, work) for span, work in spans if work is not None and not span.job.gone]


def as_error(operation: str, error: BaseException) -> IafvaeError:
    """What a caller is told of `error`; running out of memory is the device's fault."""
    if isinstance(error, DeviceFault | EngineFailure):
        return error
    if isinstance(error, MemoryError):
        return DeviceFault(f"out of memory in {operation}")
    return EngineFailure(f"{operation} failed: {type(error).__name__}: {error}")
