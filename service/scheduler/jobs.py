"""A work that somebody awaits, and the batch that computes rows of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np

from service.engine.arrays import Arrays
from service.errors import DeviceFault, IafvaeError
from service.scheduler.work import Work

__all__ = ["Batch", "Job", "Piece"]


class Job:
    """A work from its submission to its answer.

    It belongs to the event loop; workers read `work` and `gone`. arrays: the answer, once all rows
    are `done`; queue_seconds: until its first batch began; compute_seconds: of all batches it was
    in, each in whole; batch_rows: of the largest of them; gone: nobody waits for it any more, for
    `reason`.
    """

    __slots__ = (
        "arrays",
        "batch_rows",
        "began",
        "caller",
        "compute_seconds",
        "done",
        "future",
        "gone",
        "images",
        "operation",
        "parts",
        "reason",
        "rows",
        "submitted",
        "taken",
        "work",
    )

    def __init__(self, work: Work, caller: str = "") -> None:
        self.work = work
        self.operation, self.rows, self.images = work.operation, work.rows, work.image_count
        self.caller = caller
        self.future: asyncio.Future[None] | None = None  # of one that waits in the queue
        self.submitted = self.began = time.monotonic()
        self.taken, self.done, self.batch_rows = self.rows, 0, 0
        self.gone, self.reason = False, ""
        self.compute_seconds = 0.0
        self.parts: list[tuple[int, Arrays]] = []
        self.arrays: Arrays = {}

    @property
    def queue_seconds(self) -> float:
        """How long its first rows waited."""
        return self.began - self.submitted

    def add(self, start: int, stop: int, arrays: Arrays, batch: Batch) -> bool:
        """Keep rows `start` to `stop` that `batch` has computed; whether these were the last."""
        self.began = batch.began if not self.done else min(self.began, batch.began)
        self.done += stop - start
        self.compute_seconds += batch.seconds
        self.batch_rows = max(self.batch_rows, batch.rows)
        if stop - start == self.rows:
            self.arrays = arrays
            return True
        self.parts.append((start, arrays))
        if self.done < self.rows:
            return False
        self.parts.sort(key=itemgetter(0))
        self.arrays = {
            name: np.concatenate([part[name] for _, part in self.parts]) for name in arrays
        }
        return True

    def leave(self, reason: str) -> None:
        """Nobody waits any more."""
        self.reason, self.gone = reason, True  # in this order: workers count skipped rows by it
        self.parts = []


Piece = tuple[Job, int, int]  # a job and the rows start to stop of it


@dataclass(eq=False, slots=True)
class Batch:
    """Rows of one operation for one run, and what became of them.

    queued: its rows have waited; expected_seconds: what it was thought to cost; handed: when a
    worker got it. Then: `began`; `seconds`, without the time for which another batch had the
    device; rows and images that were computed (each once, also where halves were tried again);
    `padded_rows` computed for nothing; `runs` of the engine; `skipped` rows that nobody waited for
    any more, by the reason; `fault` where the device failed; `results`, an answer or an error for
    every piece that was tried. Times are on the clock of `time.monotonic`.
    """

    operation: str
    pieces: list[Piece]
    queued: bool = False
    expected_seconds: float = 0.0
    handed: float = 0.0
    began: float = 0.0
    seconds: float = 0.0
    rows: int = 0
    images: int = 0
    padded_rows: int = 0
    runs: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    fault: DeviceFault | None = None
    results: list[tuple[Piece, Arrays | IafvaeError]] = field(default_factory=list)

    def living(self, pieces: list[Piece]) -> list[Piece]:
        """Those whose caller still waits; the others are counted as skipped."""
        live = [piece for piece in pieces if not piece[0].gone]
        if len(live) < len(pieces):
            self._skip(pieces)
        return live

    def anybody(self, pieces: Sequence[Piece]) -> bool:
        """Whether a caller of `pieces` still waits; if not, they are counted as skipped."""
        for job, _, _ in pieces:
            if not job.gone:
                return True
        self.rows -= self._skip(pieces)
        return False

    def fail(self, pieces: Sequence[Piece], error: IafvaeError) -> None:
        """`pieces` have no answer but `error`."""
        if isinstance(error, DeviceFault):
            self.fault = error
        done = {id(piece) for piece, _ in self.results}
        self.results += [(piece, error) for piece in pieces if id(piece) not in done]

    def _skip(self, pieces: Sequence[Piece]) -> int:
        gone = [(job.reason, stop - start) for job, start, stop in pieces if job.gone]
        for reason, rows in gone:
            self.skipped[reason] += rows
        return sum(rows for _, rows in gone)
