"""The queue: jobs wait by operation and caller, and leave as pieces, callers in turn.

Every batch is shared equally among the holders that wait for its operation, and a holder's share
among its callers, whatever the sizes and numbers of their requests; what one does not need goes to
the others. So a huge request is done in pieces beside which small ones pass, and neither a flood of
small ones nor one from many connections holds up a single caller.

A caller is named "holder/connection", or by its holder alone.

Operations are served by weight: the next batch is of the one that has had the least of the engine's
seconds, so that one dear batch is followed by several cheap ones.

The room in the queue is shared, too. A holder that already waits may hold as many rows as are free
(the dynamic thresholds of Choudhury and Hahne, 1998, *Dynamic queue length thresholds for
shared-memory packet switches*, IEEE/ACM Transactions on Networking 6(2)): a flood fills half of the
queue and then stands in its own way, others who come later find room.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sized
from functools import partial
from typing import TypeVar

from service.scheduler.work import Job, Piece

__all__ = ["FairQueue"]

T = TypeVar("T", bound=Sized)
LEAST_ROWS = 16  # of an image that has as many, in a batch, where there is room
Turns = OrderedDict[str, T]  # who is served next is in front
Jobs = OrderedDict[Job, None]


class _Line:
    """What waits for one operation: the holders in turn, and counts. spent: engine seconds."""

    __slots__ = ("holders", "images", "rows", "spent")

    def __init__(self) -> None:
        self.holders: Turns[Turns[Jobs]] = OrderedDict()
        self.rows, self.images, self.spent = 0, 0.0, 0.0


class FairQueue:
    """Jobs that wait. Not thread-safe.

    rows: that wait; rows_by_operation: of each operation that was ever met; capacity: of rows, as
    `refusal` sees it; quick_rows: of a batch in which small jobs end (0: as many as others have).
    """

    def __init__(self, capacity: int, quick_rows: int = 0) -> None:
        self._capacity, self._quick_rows = capacity, quick_rows
        self._lines: OrderedDict[str, _Line] = OrderedDict()  # the one served longest ago first
        self._rows_by_holder: dict[str, int] = {}
        self._clock = 0.0
        self.rows = 0
        self.rows_by_operation: dict[str, int] = {}

    def refusal(self, caller: str, rows: int) -> str | None:
        """Why `rows` more rows of `caller` may not wait, or None where they may."""
        free = self._capacity - self.rows
        if rows > free:
            return f"{self.rows} rows wait and {rows} more would exceed {self._capacity}"
        held = self._rows_by_holder.get(_holder(caller), 0)
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
        callers = line.holders.setdefault(_holder(job.caller), OrderedDict())
        callers.setdefault(job.caller, OrderedDict())[job] = None
        job.taken = 0
        self._count(line, job, job.rows)

    def discard(self, job: Job) -> int:
        """Forget what `job` still has waiting, and say how many rows that was."""
        left = job.rows - job.taken
        if left:
            line = self._lines[job.operation]
            holder = _holder(job.caller)
            callers = line.holders[holder]
            del callers[job.caller][job]
            if not callers[job.caller]:
                del callers[job.caller]
            if not callers:
                del line.holders[holder]
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
        pieces = _share(line.holders, max(1, capacity(operation)))
        pieces = _quickened(pieces, self._quick_rows)
        for job, start, stop in pieces:
            self._count(line, job, start - stop)
        return operation, pieces

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

    def _count(self, line: _Line, job: Job, rows: int) -> None:
        line.rows += rows
        line.images += rows * job.images / job.rows
        if not line.rows:
            line.images = 0.0  # what rounding has left
        self.rows += rows
        self.rows_by_operation[job.operation] = line.rows
        holder = _holder(job.caller)
        held = self._rows_by_holder.get(holder, 0) + rows
        if held:
            self._rows_by_holder[holder] = held
        else:
            self._rows_by_holder.pop(holder, None)


def _holder(caller: str) -> str:
    return caller.partition("/")[0]


def _share(holders: Turns[Turns[Jobs]], room: int) -> list[Piece]:
    """At most `room` rows, equally from all; each job's rows in one piece.

    First everybody's share as far as it holds whole images, so that whoever asks for little has it;
    then, in turn, whole images where there is room: of an image, what is computed once for all
    its rows in a batch is computed in every batch that has some.
    """
    firsts: dict[Job, int] = {}  # the first row of each job that is in the batch
    wholes = partial(_in_turn, take=partial(_take, firsts=firsts, least=0))
    room -= _in_turn(holders, room, room, take=wholes)
    rest = partial(_in_turn, take=partial(_take, firsts=firsts, least=LEAST_ROWS))
    while room and holders:
        room -= _in_turn(holders, room, room, take=rest)
    return [(job, start, job.taken) for job, start in firsts.items()]


def _in_turn(turns: Turns[T], share: int, room: int, take: Callable[[T, int, int], int]) -> int:
    """One round: how many rows, about `share` and at most `room`, `take` takes from all equally.

    Who has no more goes; who was served is behind the others.
    """
    taken, each = 0, max(1, share // max(1, len(turns)))
    for name, own in list(turns.items()):
        if taken >= share:
            break
        rows = take(own, min(each, share - taken), room - taken)
        if not own:
            del turns[name]
        elif rows:
            turns.move_to_end(name)
        taken += rows
    return taken


def _quickened(pieces: list[Piece], quick: int) -> list[Piece]:
    """Without most rows of jobs that go on, where small jobs would end with the batch.

    quick: rows at which a batch has nearly all that batching gains, while a full one takes several
    times as long: who asks for so little does not wait for what fills it up. Jobs that go on keep
    a quarter of their share, so that no flood of small ones stops them.
    """
    rows = sum(stop - start for _, start, stop in pieces)
    if rows <= quick or not any(stop == job.rows <= quick for job, _, stop in pieces):
        return pieces
    kept = []
    for job, start, stop in pieces:
        less = min(3 * (stop - start) // 4, max(0, rows - quick)) if stop < job.rows else 0
        each = job.rows // job.images
        if each <= LEAST_ROWS:
            less = max(0, less - (less - stop) % each)  # whole images stay
        job.taken -= less
        rows -= less
        kept.append((job, start, stop - less))
    return kept


def _take(jobs: Jobs, share: int, room: int, *, firsts: dict[Job, int], least: int) -> int:
    """About `share` rows, at most `room`, from the front of one caller's line: in whole images,
    or, where the share holds none, `least` rows of one."""
    taken = 0
    while jobs and taken < share:
        job = next(iter(jobs))
        each = job.rows // job.images
        rows = min(share - taken, job.rows - job.taken)
        whole = rows - (job.taken + rows) % each
        if whole <= 0:
            if not least:
                break
            whole = min(max(rows, least), each - job.taken % each)
        rows = min(whole, room - taken)
        firsts.setdefault(job, job.taken)
        job.taken += rows
        taken += rows
        if job.taken == job.rows:
            jobs.popitem(last=False)
    return taken
