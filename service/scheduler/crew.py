"""The worker threads: they take batches from one inbox, report on the event loop, and are replaced
if they die.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable

from service.errors import EngineFailure
from service.scheduler.workers import Batch, Outcome, Runner

__all__ = ["Crew"]

logger = logging.getLogger(__name__)

JOIN_SECONDS = 5.0
REPLACE_SECONDS = 1.0


class _Thread(threading.Thread):
    """One worker. `batch`: what it has in hand, set by who gives it: no moment loses it."""

    def __init__(self, crew: Crew, number: int) -> None:
        super().__init__(name=f"engine-{number}", daemon=True)
        self.crew, self.number = crew, number
        self.batch: Batch | None = None
        self.inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Compute batches until a None comes."""
        orderly = False
        try:
            while (batch := self.inbox.get()) is not None:
                self.crew.compute(self, batch)
            orderly = True
        finally:
            # An exception that strikes between two batches must not cost the crew a hand.
            if not orderly:
                self.crew.post(self.crew.bury, self)


class Crew:
    """`size` threads around `runner`; `report` is called on `events` for every batch, once, and
    `replaced` where a thread had been missing.

    Every batch that was given is reported, also where its thread has died. All methods but
    `compute` and `post` are called on the event loop.
    """

    def __init__(
        self,
        runner: Runner,
        size: int,
        events: asyncio.AbstractEventLoop,
        report: Callable[[Batch, Outcome], None],
        replaced: Callable[[], None],
    ) -> None:
        self._runner, self._events = runner, events
        self._report, self._replaced = report, replaced
        self._threads: set[_Thread] = set()
        self._free: list[_Thread] = []
        self._dismissed = False
        for number in range(size):
            self._hire(number)

    @property
    def free(self) -> int:
        """Threads that wait for a batch."""
        return len(self._free)

    def give(self, batch: Batch) -> None:
        """Have `batch` computed by a free thread; raises IndexError where there is none."""
        thread = self._free.pop()
        batch.handed = time.monotonic()
        thread.batch = batch
        thread.inbox.put(batch)

    def overdue(self, seconds: float) -> Batch | None:
        """A batch that has been in hand for longer than `seconds`."""
        now = time.monotonic()
        given = (thread.batch for thread in self._threads if thread.batch is not None)
        return next((batch for batch in given if now - batch.handed > seconds), None)

    async def dismiss(self) -> None:
        """End the threads; one that is stuck is left behind, and ends with the process."""
        self._dismissed = True
        threads, self._threads = self._threads, set()
        for thread in threads:
            thread.inbox.put(None)
        for thread in threads:
            await asyncio.to_thread(thread.join, JOIN_SECONDS)

    def compute(self, thread: _Thread, batch: Batch) -> None:
        """Compute `batch`, in the thread."""
        self.post(self._done, thread, batch, self._runner.compute(batch))

    def post(self, call: Callable[..., None], *arguments: object) -> None:
        """`call` on the event loop; nothing where that has closed, as nobody is left to answer."""
        try:
            self._events.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            logger.debug("the event loop has closed")

    def bury(self, thread: _Thread) -> None:
        """Replace a thread that died, and report what it had in hand as failed."""
        if thread not in self._threads:
            return
        logger.error("%s died: another takes its place", thread.name)
        self._threads.remove(thread)
        if thread in self._free:
            self._free.remove(thread)
        batch, thread.batch = thread.batch, None
        if batch is not None:
            outcome = Outcome(began=time.monotonic())
            failure = EngineFailure(f"{batch.operation} failed: its thread died")
            outcome.results = [(span, failure) for span in batch.spans]
            self._report(batch, outcome)
        self._replace(thread.number)

    def _done(self, thread: _Thread, batch: Batch, outcome: Outcome) -> None:
        if thread.batch is batch:  # not where the thread was buried meanwhile
            thread.batch = None
            self._free.append(thread)
            self._report(batch, outcome)

    def _replace(self, number: int) -> None:
        """Start a thread, or try until the system has one to give; nothing once dismissed."""
        if self._dismissed:
            return
        try:
            self._hire(number)
        except RuntimeError as error:
            logger.critical("no thread can be started (%s): trying again", error)
            self._events.call_later(REPLACE_SECONDS, self._replace, number)
        else:
            self._replaced()

    def _hire(self, number: int) -> None:
        thread = _Thread(self, number)
        thread.start()
        self._threads.add(thread)
        self._free.append(thread)
