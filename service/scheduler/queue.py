"""The queue: jobs wait by operation and caller, and leave as spans of rows, callers in turn.

Every batch is shared equally among the callers that wait for its operation, whatever the sizes and
numbers of their requests; what one does not need goes to the others. So a huge request is done in
pieces beside which small ones pass, and a flood of small ones does not hold up a single caller.

Operations are served by weight: the next batch is of the one that has had the least of the engine's
seconds, so that one dear batch is followed by several cheap ones.

The room in the queue is shared, too. A caller that already waits may hold as many rows as are free
(the dynamic thresholds of Choudhury and Hahne, 1998, *Dynamic queue length thresholds for
shared-memory packet switches*, IEEE/ACM Transactions on Networking 6(2)): a flood fills half of the
queue and then stands in its own way, callers who come later find room.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["FairQueue", "Queued", "Span"]


class Queued(Protocol):
    """What the queue must know of a job. `gone` may become True at any time: nobody waits for
    it. images: that its rows are of, at most as many as rows; taken: rows that do not wait, all of
    them before `FairQueue.push`.
    """

    operation: str
    caller: str
    rows: int
    images: int
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

    @property
    def images(self) -> float:
        """How many images they are of, all rows counted alike."""
        return self.rows * self.job.images / self.job.rows


class _Line(Generic[J]):
    """What waits for one operation: the callers in turn, and counts. spent: engine seconds."""

    __slots__ = ("callers", "images", "rows", "spent")

    def __init__(self) -> None:
        self.callers: OrderedDict[str, deque[J]] = OrderedDict()
        self.rows, self.images, self.spent = 0, 0.0, 0.0


class FairQueue(Generic[J]):
    """Jobs that wait. Not thread-safe: it lives on the event loop.

    rows: that wait; rows_by_operation: of each operation that was ever met; capacity: of rows, as
    `refusal` sees it; quick_rows: of a batch in which small jobs end (0: as many as others have).
    """

    def __init__(self, capacity: int, quick_rows: int = 0) -> None:
        self._capacity, self._quick_rows = capacity, quick_rows
        self._lines: OrderedDict[str, _Line[J]] = OrderedDict()  # the one served longest ago first
        self._rows_by_caller: dict[str, int] = {}
        self._clock = 0.0
        self.rows = 0
        self.rows_by_operation: dict[str, int] = {}

    def refusal(self, caller: str, rows: int) -> str | None:
        """Why `rows` more rows of `caller` may not wait, or None where they may.

        An empty queue takes any request, since its rows are made batch by batch.
        """
        free = self._capacity - self.rows
        if self.rows == 0:
            return None
        if rows > free:
            return f"{self.rows} rows wait and {rows} more would exceed {self._capacity}"
        held = self._rows_by_caller.get(caller, 0)
        if held and held + rows > free:
            return (
                f"{held} rows of this caller wait: with {rows} more they would be over {free}, as"
                " many as are free for all"
            )
        return None

    def push(self, job: J) -> None:
        """Append `job` to its caller's own line."""
        line = self._lines.get(job.operation)
        if line is None:
            line = self._lines[job.operation] = _Line()
        if not line.rows:
            # Who did not wait has no claim to what others had meanwhile.
            line.spent = max(line.spent, self._clock)
        jobs = line.callers.get(job.caller)
        if jobs is None:
            jobs = line.callers[job.caller] = deque()
        jobs.append(job)
        job.taken = 0
        self._count(line, job, job.rows)

    def discard(self, job: J) -> int:
        """Forget what `job` still has waiting, and say how many rows that was.

        The job leaves its line when its turn comes; until then it is an empty shell.
        """
        left = job.rows - job.taken
        job.gone = True
        job.taken = job.rows
        if left:
            self._count(self._lines[job.operation], job, -left)
        return left

    def take(self, capacity: Callable[[str], int]) -> tuple[str, list[Span[J]]] | None:
        """The next batch: an operation and at most ``capacity(operation)`` rows; None if empty."""
        while self.rows:
            waiting = (name for name, line in self._lines.items() if line.rows)
            operation = min(waiting, key=lambda name: self._lines[name].spent)
            line = self._lines[operation]
            self._lines.move_to_end(operation)
            self._clock = line.spent
            spans = _share(line.callers, max(1, capacity(operation)))
            spans = _quickened(spans, self._quick_rows)
            for span in spans:
                self._count(line, span.job, -span.rows)
            if spans:
                return operation, spans
        return None

    def charge(self, operation: str, seconds: float) -> None:
        """Count `seconds` of the engine's time as had by `operation`; negative corrects."""
        line = self._lines.get(operation)
        if line is not None:
            line.spent += seconds

    def waiting(self) -> Iterator[tuple[str, int, float]]:
        """Each operation that waits with its rows and images."""
        for operation, line in self._lines.items():
            if line.rows:
                yield operation, line.rows, line.images

    def _count(self, line: _Line[J], job: J, rows: int) -> None:
        line.rows += rows
        line.images += rows * job.images / job.rows
        if not line.rows:
            line.callers.clear()  # none but empty shells are left
            line.images = 0.0
        self.rows += rows
        self.rows_by_operation[job.operation] = line.rows
        held = self._rows_by_caller.get(job.caller, 0) + rows
        if held:
            self._rows_by_caller[job.caller] = held
        else:
            self._rows_by_caller.pop(job.caller, None)


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


def _quickened(spans: list[Span[J]], quick: int) -> list[Span[J]]:
    """Without most rows of jobs that go on, where small jobs would end with the batch.

    quick: rows at which a batch has nearly all that batching gains, while a full one takes several
    times as long: who asks for so little does not wait for what fills it up. Jobs that go on keep
    a quarter of their share, so that no flood of small ones stops them.
    """
    rows = sum(span.rows for span in spans)
    if rows <= quick or not any(span.stop == span.job.rows <= quick for span in spans):
        return spans
    for span in spans:
        if span.stop < span.job.rows:
            less = min(3 * span.rows // 4, rows - quick)
            span.stop -= less
            span.job.taken -= less
            rows -= less
    return spans


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
