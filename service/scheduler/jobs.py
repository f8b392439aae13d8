"""The works that are awaited: an answer goes to its caller, and whoever leaves is forgotten."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from service.engine.arrays import Arrays
from service.errors import DeadlineExceeded, IafvaeError
from service.scheduler.batching import join_parts
from service.scheduler.observer import Guarded
from service.scheduler.queue import Span
from service.scheduler.workers import Batch, Job, Outcome, as_error

__all__ = ["BatchResult", "Ledger", "supervised"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """All rows of one work.

    queue_seconds: until its first batch began; compute_seconds: of all batches it was in, each in
    whole; batch_rows: rows of the largest of them.
    """

    arrays: Arrays
    queue_seconds: float
    compute_seconds: float
    batch_rows: int


class Ledger:
    """Jobs from their submission to their answer. Lives on the event loop.

    discard: takes what a job still has waiting out of the queue, and says how many rows that was.
    `idle` is set while nobody waits.
    """

    def __init__(self, discard: Callable[[Job], int], observer: Guarded) -> None:
        self._discard, self._observer = discard, observer
        self._jobs: set[Job] = set()
        self.idle = asyncio.Event()
        self.idle.set()

    def __len__(self) -> int:
        return len(self._jobs)

    def open(self, job: Job) -> None:
        """Somebody awaits `job` from here on."""
        self._jobs.add(job)
        self.idle.clear()

    def waiting(self) -> list[Job]:
        """Jobs of which rows are still in the queue."""
        return [job for job in self._jobs if job.taken < job.rows]

    def lost(self, flying: Iterable[Batch]) -> list[Job]:
        """Jobs with rows that neither wait, nor are being computed, nor have been."""
        held = {job: job.rows - job.taken + job.done for job in self._jobs}
        for batch in flying:
            for span in batch.spans:
                if span.job in held:
                    held[span.job] += span.rows
        return [job for job, rows in held.items() if rows < job.rows]

    def deliver(self, span: Span[Job], result: Arrays | IafvaeError, outcome: Outcome) -> None:
        """Rows of a job, or why there are none. A fault in here is that job's alone."""
        job = span.job
        if job.future.done():
            return
        try:
            if isinstance(result, IafvaeError):
                self.fail(job, result, "failed")
                return
            job.add(span, result, outcome)
            if job.done == job.rows:
                self._answer(job)
        except Exception as error:
            logger.exception("an answer of %s could not be put together", job.operation)
            self.fail(job, as_error(job.operation, error), "failed")

    def expire(self, job: Job) -> None:
        """The deadline of `job` has passed."""
        error = DeadlineExceeded("the deadline passed before all rows were computed")
        self.fail(job, error, "expired")

    def fail(self, job: Job, error: IafvaeError, reason: str) -> None:
        """Answer `job` with `error`, and drop its rows for `reason`."""
        if not job.future.done():
            # A traceback grows on a shared exception, so every job has its own.
            job.future.set_exception(type(error)(str(error)))
        supervised(self.drop, job, reason)

    def fail_all(self, error: IafvaeError, reason: str) -> None:
        """As `fail`, for everybody."""
        for job in list(self._jobs):
            self.fail(job, error, reason)

    def drop(self, job: Job, reason: str) -> None:
        """Nobody awaits `job` any more: what is left of it will not be computed."""
        self._close(job)
        job.reason = reason  # before it is gone: workers count what they skip by it
        left = self._discard(job)
        job.release()
        if left:
            self._observer.dropped(job.operation, left, reason)

    def _answer(self, job: Job) -> None:
        arrays = join_parts(job.parts)
        self._close(job)
        queued = job.began - job.submitted
        job.future.set_result(BatchResult(arrays, queued, job.compute_seconds, job.largest_batch))

    def _close(self, job: Job) -> None:
        self._jobs.discard(job)
        if not self._jobs:
            self.idle.set()


def supervised(function: Callable[..., None], *arguments: object) -> None:
    """Call `function`; what it raises is logged, and stays here."""
    try:
        function(*arguments)
    except Exception:
        logger.exception("%s failed", function.__name__)
