"""The queue: jobs wait by operation and caller, and leave as spans of rows, callers in turn.

Every batch is shared equally among the callers that wait for its operation, whatever the sizes and
numbers of their requests; what one does not need goes to the others. So a huge request is done in
pieces beside which small ones pass, and a flood of small ones does not hold up a single caller.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

__all__ = ["FairQueue", "Queued", "Span"]


class Queued(Protocol):
    """What the queue must know of a job. `gone` may become True at any time: nobody waits for
    it.
    """

    operation: str
    caller: str
    rows: int
    taken: int
    gone: bool


J = TypeVar("J", bound=Queued)


class Span(Generic[J]):
    """Rows `start` to `stop` of `job`."""

    __slots__ = ("job", "start", "stop")

    def __init__(self, job: J, start: int, stop: int) -> None:
        self.job, self.start, self.stop = job, start, stop

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.start


class FairQueue(Generic[J]):
    """Jobs that wait. Not thread-safe: it lives on the event loop."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, OrderedDict[str, deque[J]]] = OrderedDict()
        self.rows = 0
        self.rows_by_operation: dict[str, int] = {}

    def push(self, job: J) -> None:
        """Append `job` to its caller's own line."""
        callers = self._waiting.get(job.operation)
        if callers is None:
            callers = self._waiting[job.operation] = OrderedDict()
        jobs = callers.get(job.caller)
        if jobs is None:
            jobs = callers[job.caller] = deque()
        jobs.append(job)
        self._count(job.operation, job.rows)

    def discard(self, job: J) -> int:
        """Forget what `job` still has waiting, and say how many rows that was.

        The job leaves its line when its turn comes; until then it is an empty shell.
        """
        left = job.rows - job.taken
        job.gone = True
        job.taken = job.rows
        self._count(job.operation, -left)
        return left

    def take(self, capacity: Callable[[str], int]) -> tuple[str, list[Span[J]]] | None:
        """The next batch: an operation and at most ``capacity(operation)`` rows; None if empty."""
        while self._waiting:
            operation, callers = self._waiting.popitem(last=False)
            spans = _share(callers, capacity(operation))
            if callers:
                self._waiting[operation] = callers  # to the end: operations take turns as well
            if spans:
                self._count(operation, -sum(span.rows for span in spans))
                return operation, spans
        return None

    def _count(self, operation: str, rows: int) -> None:
        self.rows += rows
        self.rows_by_operation[operation] = self.rows_by_operation.get(operation, 0) + rows


def _share(callers: OrderedDict[str, deque[J]], room: int) -> list[Span[J]]:
    """At most `room` rows, equally from all callers; each job's rows in one span."""
    spans: dict[int, Span[J]] = {}
    share = max(1, room // max(1, len(callers)))
    while room and callers:
        caller, jobs = callers.popitem(last=False)
        taken = _take(jobs, min(share, room), spans)
        room -= taken
        if jobs:
            callers[caller] = jobs
    return list(spans.values())


def _take(jobs: deque[J], room: int, spans: dict[int, Span[J]]) -> int:
    """Up to `room` rows from the front of one caller's line."""
    start = room
    while jobs and room:
        job = jobs[0]
        rows = min(room, job.rows - job.taken)
        if rows:
            span = spans.setdefault(id(job), Span(job, job.taken, job.taken))
            span.stop += rows
            job.taken += rows
            room -= rows
        if job.taken == job.rows:
            jobs.popleft()
    return start - room
