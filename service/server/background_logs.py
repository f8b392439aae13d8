"""Logs that are written by a thread of their own, so that nobody waits for who reads them."""

from __future__ import annotations

import logging
import os
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler, QueueListener

from service.logs import LOGGERS

__all__ = ["background_logs"]

MAX_LINES = 10_000  # that wait to be written; later ones are dropped
FLUSH_SECONDS = 1.0  # at the end


@contextmanager
def background_logs(max_lines: int = MAX_LINES) -> Iterator[None]:
    """Have a thread write what the loggers' handler would write to standard error."""
    try:
        fd = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        fd = None
    handlers = logging.getLogger(LOGGERS[0]).handlers
    if fd is None or not handlers:
        yield
        return
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(max_lines)
    listener = QueueListener(waiting, _Writer(fd))
    before = {name: logging.getLogger(name).handlers[:] for name in (*LOGGERS, None)}
    _install({name: [_Dropping(waiting, handlers[0].formatter)] for name in (*LOGGERS, None)})
    listener.start()
    try:
        yield
    finally:
        with waiting.all_tasks_done:
            is_written = waiting.all_tasks_done.wait_for(
                lambda: not waiting.unfinished_tasks, FLUSH_SECONDS
            )
        if is_written:
            listener.stop()
            _install(before)


class _Dropping(QueueHandler):
    """Queues finished lines; says how many there was no room for when there is some again."""

    def __init__(
        self, waiting: queue.Queue[logging.LogRecord], formatter: logging.Formatter | None
    ) -> None:
        super().__init__(waiting)
        self.setFormatter(formatter)
        self._waiting = waiting
        self._dropped, self._half = 0, waiting.maxsize // 2

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue a line if there is room; after an overflow, only once the queue is half empty."""
        if self._dropped and self._waiting.qsize() <= self._half:
            text = (
                f"{self._dropped} lines of the log were dropped: they are read more slowly than "
                "written"
            )
            note = logging.LogRecord("iafvae", logging.WARNING, __file__, 0, text, None, None)
            if self._put(self.prepare(note)):
                self._dropped = 0
        if self._dropped or not self._put(record):
            self._dropped += 1

    def _put(self, record: logging.LogRecord) -> bool:
        """Whether there was room: other loggers' handlers fill the queue at the same time."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            return False
        return True


class _Writer(logging.Handler):
    """Writes to a file descriptor: a stream's lock, held by a thread that hangs, would end the
    interpreter with a fault."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        """Write one whole line."""
        line = f"{record.getMessage()}\n".encode("utf-8", "backslashreplace")
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except OSError:
            pass  # nobody reads any more


def _install(handlers: dict[str | None, list[logging.Handler]]) -> None:
    for name, those in handlers.items():
        logging.getLogger(name).handlers[:] = those
