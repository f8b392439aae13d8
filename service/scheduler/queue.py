"""The queue: jobs wait by operation and caller, and leave as pieces, callers in turn.

Holders that wait for an operation share its batches equally, and a holder's callers what it has,
whatever the sizes and numbers of their requests; what one does not need goes to the others. So a
huge request is done in pieces beside which small ones pass, and neither a flood of small ones nor
one from many connections holds up a single caller.

Who asks for no more than its share of a batch has it at once. What is left goes in pieces to
whoever has had least since it waits (start-time fair queueing: Goyal, Vin and Cheng, 1996,
SIGCOMM). Equal parts of every batch were measured: large requests then cost more, and all end late,
at the same time.

Operations are served by weight: the next batch is of the one that has had the least of the engine's
seconds, so that one dear batch is followed by several cheap ones.

The room in the queue is shared, too. A holder that already waits may hold as many rows as are free
(the dynamic thresholds of Choudhury and Hahne, 1998, *Dynamic queue length thresholds for
shared-memory packet switches*, IEEE/ACM Transactions on Networking 6(2)): a flood fills half of the
queue and then stands in its own way, others who come later find room.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, TypeVar

from service.scheduler.work import Job, Piece

__all__ = ["FairQueue"]

PIECE_ROWS = 16  # of a job that does not end in its share of a batch
QUICK_BATCHES = 16  # after one in which a small job ended: the next one may come meanwhile
Starts = dict[Job, int]  # the first row of each job that is in a batch; `Job.taken` is its last


@dataclass(eq=False)
class _Caller:
    """Its jobs, in line. had: rows, since it waits."""

    had: int
    jobs: dict[Job, None] = field(default_factory=dict)


MemberT = TypeVar("MemberT", "_Caller", "_Holder")


@dataclass(eq=False)
class _Group(Generic[MemberT]):
    """Members that share equally. had: rows, since it waits; clock: what the one that was chosen
    last had had; newcomers begin there, without a claim to what others had meanwhile."""

    had: int = 0
    clock: int = 0
    members: dict[str, MemberT] = field(default_factory=dict)

    def first(self, count: int) -> list[MemberT]:
        """At most `count`, who have had least."""
        members = list(self.members.values())
        if count < len(members):
            members = sorted(members, key=attrgetter("had"))[:count]
        return members

    def choose(self) -> MemberT:
        """Who has had least; of equal ones, who came first."""
        chosen = min(self.members.values(), key=attrgetter("had"))
        self.clock = chosen.had
        return chosen


class _Holder(_Group[_Caller]):
    """Its callers."""


@dataclass(eq=False)
class _Line(_Group[_Holder]):
    """What waits for one operation: the holders, and counts. spent: engine seconds; quick: how
    many batches more leave room for small jobs."""

    rows: int = 0
    images: float = 0.0
    spent: float = 0.0
    quick: int = 0

    def push(self, job: Job) -> None:
        """Append `job` to its caller's jobs."""
        holder = self.members.get(job.holder)
        if holder is None:
            holder = self.members[job.holder] = _Holder(self.clock)
        caller = holder.members.get(job.caller)
        if caller is None:
            caller = holder.members[job.caller] = _Caller(holder.clock)
        caller.jobs[job] = None

    def remove(self, job: Job) -> None:
        """Forget `job`, and who has no other."""
        holder = self.members[job.holder]
        caller = holder.members[job.caller]
        del caller.jobs[job]
        if not caller.jobs:
            del holder.members[job.caller]
            if not holder.members:
                del self.members[job.holder]

    def take(self, room: int) -> Starts:
        """At most `room` rows."""
        starts: Starts = {}
        each = max(1, room // len(self.members))
        for holder in self.first(room):
            share = max(1, each // len(holder.members))
            for caller in holder.first(each):
                room -= self._whole(caller, share, starts)
        while room and self.members:
            job = next(iter(self.choose().choose().jobs))
            rows = min(_piece(job), room)
            self._give(job, rows, starts)
            room -= rows
        return starts

    def quicken(self, starts: Starts, quick: int) -> None:
        """Take back most rows of jobs that go on, where small jobs would end with the batch, or
        with one of the next.

        quick: rows at which a batch has nearly all that batching gains, while a full one takes
        several times as long: who asks for so little does not wait for what fills it up. Jobs that
        go on keep a quarter of their share, so that no flood of small ones stops them.
        """
        rows = sum(job.taken - start for job, start in starts.items())
        ends = any(job.taken == job.rows <= quick for job in starts)
        self.quick = QUICK_BATCHES if ends else max(0, self.quick - 1)
        if rows <= quick or not self.quick:
            return
        for job, start in starts.items():
            if job.taken == job.rows:
                continue
            less = min(3 * (job.taken - start) // 4, max(0, rows - quick))
            if job.samples <= PIECE_ROWS:
                less = max(0, less - (less - job.taken) % job.samples)  # whole images stay
            self._count(job, -less)
            rows -= less

    def _whole(self, caller: _Caller, share: int, starts: Starts) -> int:
        """Rows of the caller's first jobs, as far as they end within `share`."""
        left = share
        while caller.jobs:
            job = next(iter(caller.jobs))
            rows = job.rows - job.taken
            if rows > left:
                break
            self._give(job, rows, starts)
            left -= rows
        return share - left

    def _give(self, job: Job, rows: int, starts: Starts) -> None:
        starts.setdefault(job, job.taken)
        self._count(job, rows)
        if job.taken == job.rows:
            self.remove(job)

    def _count(self, job: Job, rows: int) -> None:
        holder = self.members[job.holder]
        job.taken += rows
        holder.had += rows
        holder.members[job.caller].had += rows


def _piece(job: Job) -> int:
    """Some `PIECE_ROWS` of the next rows of `job`: whole images, unless one has twice as many. Of
    an image, what is computed once for all its rows in a batch is computed in every batch that has
    some."""
    unit = job.samples * -(-PIECE_ROWS // job.samples)
    most = unit if unit < 2 * PIECE_ROWS else PIECE_ROWS
    return min(most, unit - job.taken % unit, job.rows - job.taken)


class FairQueue:
    """Jobs that wait. Not thread-safe.

    rows: that wait; rows_by_operation: of each operation that was ever met; capacity: of rows, as
    `refusal` sees it; quick_rows: of a batch in which small jobs end, and of the next ones (0: as
    many as others have).
    """

    def __init__(self, capacity: int, quick_rows: int = 0) -> None:
        self._capacity, self._quick_rows = capacity, quick_rows
        self._lines: OrderedDict[str, _Line] = OrderedDict()  # the one served longest ago first
        self._rows_by_holder: Counter[str] = Counter()
        self._clock = 0.0
        self.rows = 0
        self.rows_by_operation: dict[str, int] = {}

    def refusal(self, holder: str, rows: int) -> str | None:
        """Why `rows` more rows of `holder` may not wait, or None where they may."""
        free = self._capacity - self.rows
        if rows > free:
            return f"{self.rows} rows wait and {rows} more would exceed {self._capacity}"
        held = self._rows_by_holder[holder]
        if held and held + rows > free:
            return (
                f"{held} rows of this caller wait: with {rows} more they would be over {free}, as"
                " many as are free for all"
            )
        return None

    def push(self, job: Job) -> None:
        """Append `job` to its caller's own line."""
        line = self._lines.get(job.operation)
        if line is None:
            line = self._lines[job.operation] = _Line()
        if not line.rows:
            # Who did not wait has no claim to what others had meanwhile.
            line.spent = max(line.spent, self._clock)
        line.push(job)
        job.taken = 0
        self._count(line, job, job.rows)

    def discard(self, job: Job) -> int:
        """Forget what `job` still has waiting, and say how many rows that was."""
        left = job.rows - job.taken
        if left:
            line = self._lines[job.operation]
            line.remove(job)
            job.taken = job.rows
            self._count(line, job, -left)
        return left

    def take(self, capacity: Callable[[str], int]) -> tuple[str, list[Piece]] | None:
        """The next batch: an operation and at most ``capacity(operation)`` rows; None if empty."""
        if not self.rows:
            return None
        waiting = [name for name, line in self._lines.items() if line.rows]
        operation = min(waiting, key=lambda name: self._lines[name].spent)
        line = self._lines[operation]
        self._lines.move_to_end(operation)
        self._clock = line.spent
        starts = line.take(max(1, capacity(operation)))
        line.quicken(starts, self._quick_rows)
        pieces = [(job, start, job.taken) for job, start in starts.items()]
        for job, start, stop in pieces:
            self._count(line, job, start - stop)
        return operation, pieces

    def charge(self, operation: str, seconds: float) -> None:
        """Count `seconds` of the engine's time as had by `operation`; negative corrects."""
        self._lines[operation].spent += seconds

    def waiting(self) -> Iterator[tuple[str, int, float]]:
        """Each operation that waits with its rows and images."""
        for operation, line in self._lines.items():
            if line.rows:
                yield operation, line.rows, line.images

    def _count(self, line: _Line, job: Job, rows: int) -> None:
        line.rows += rows
        line.images += rows / job.samples
        self.rows += rows
        self.rows_by_operation[job.operation] = line.rows
        self._rows_by_holder[job.holder] += rows
        if not self._rows_by_holder[job.holder]:
            del self._rows_by_holder[job.holder]
