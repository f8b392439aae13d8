"""One batch on one thread: assemble, run, cut; in halves where it fails."""

from __future__ import annotations

import asyncio
import logging
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from service.batch import Arrays
from service.batching import Batcher
from service.errors import DeviceFault, EngineFailure, IafvaeError
from service.fairness import Span
from service.works import Work

__all__ = ["Batch", "BatchEngine", "Job", "Outcome", "Worker"]

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
        "largest_batch",
        "operation",
        "parts",
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
        self.caller, self.future, self.submitted = caller, future, submitted
        self.gone = False
        self.taken = self.done = self.largest_batch = 0
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


@dataclass(frozen=True)
class Batch:
    """Rows of one operation for one run."""

    operation: str
    spans: list[Span[Job]]


@dataclass
class Outcome:
    """What became of a batch: an answer or an error for every span that was tried.

    rows: that were computed (each once, also where halves were tried again); skipped_rows: whose
    caller had gone; fault: set where the device failed.
    """

    began: float
    seconds: float = 0.0
    rows: int = 0
    padded_rows: int = 0
    skipped_rows: int = 0
    fault: DeviceFault | None = None
    results: list[tuple[Span[Job], Arrays | IafvaeError]] = field(default_factory=list)


class Worker:
    """The loop of the worker threads. Survives whatever a batch does."""

    def __init__(
        self,
        engine: BatchEngine,
        batchers: Mapping[str, Batcher],
        inbox: queue.SimpleQueue[Batch | None],
        events: asyncio.AbstractEventLoop,
        report: Callable[[Batch, Outcome], None],
    ) -> None:
        self._engine, self._batchers = engine, batchers
        self._inbox, self._events, self._report = inbox, events, report

    def loop(self) -> None:
        """Compute batches until a None comes."""
        while (batch := self._inbox.get()) is not None:
            try:
                outcome = self.compute(batch)
            except BaseException as error:  # a thread that ends would hang all its callers
                logger.exception("a batch of %s was lost", batch.operation)
                failure = _as_error(batch.operation, error)
                outcome = Outcome(began=time.monotonic())
                outcome.results = [(span, failure) for span in batch.spans]
            try:
                self._events.call_soon_threadsafe(self._report, batch, outcome)
            except RuntimeError:  # the event loop has closed: nobody is left to answer
                return

    def compute(self, batch: Batch) -> Outcome:
        """Run `batch`; whatever goes wrong is in the outcome."""
        outcome = Outcome(began=time.monotonic())
        works = [(span, span.job.work) for span in batch.spans]
        live = [(span, work) for span, work in works if work is not None and not span.job.gone]
        outcome.rows = sum(span.rows for span, _ in live)
        outcome.skipped_rows = sum(span.rows for span in batch.spans) - outcome.rows
        if live:
            self._attempt(batch.operation, live, outcome)
            outcome.padded_rows = self._engine.padded_rows(outcome.rows)
        outcome.seconds = time.monotonic() - outcome.began
        return outcome

    def _attempt(
        self, operation: str, live: Sequence[tuple[Span[Job], Work]], outcome: Outcome
    ) -> None:
        """Run the spans together; where that fails, in halves, down to the one that is at fault."""
        if outcome.fault is not None:
            outcome.results += [(span, outcome.fault) for span, _ in live]
            return
        try:
            parts = self._run(operation, live)
        except BaseException as error:  # also SystemExit: it is the batch's, not the thread's
            failure = _as_error(operation, error)
            if isinstance(failure, DeviceFault):
                outcome.fault = failure
            if len(live) == 1 or outcome.fault is not None:
                logger.error("%s", failure, exc_info=error)
                outcome.results += [(span, failure) for span, _ in live]
                return
            middle = len(live) // 2
            self._attempt(operation, live[:middle], outcome)
            self._attempt(operation, live[middle:], outcome)
        else:
            outcome.results += parts

    def _run(
        self, operation: str, live: Sequence[tuple[Span[Job], Work]]
    ) -> list[tuple[Span[Job], Arrays]]:
        batcher = self._batchers[operation]
        pieces = [(work, span.start, span.stop) for span, work in live]
        outputs = self._engine.run(operation, batcher.assemble(pieces))
        parts = batcher.split(pieces, outputs)
        return [(span, part) for (span, _), part in zip(live, parts, strict=True)]


def _as_error(operation: str, error: BaseException) -> IafvaeError:
    if isinstance(error, DeviceFault | EngineFailure):
        return error
    if isinstance(error, MemoryError):
        return DeviceFault(f"out of memory in {operation}")
    return EngineFailure(f"{operation} failed: {type(error).__name__}: {error}")
