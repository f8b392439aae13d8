"""Ctrl-C and SIGTERM: a wish to stop that the training loop fulfils between two steps
(`Interrupts`), or a `KeyboardInterrupt` where results so far are on the disk (`stoppable`)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

__all__ = ["SIGNALS", "Interrupts", "signal_name", "stoppable"]

# A step may take long (the first one compiles), so the signal is answered before it is obeyed.
NOTE = b"\nstopping after this step, with a checkpoint; once more stops at once\n"
STDERR = 2
SIGNALS = ("SIGINT", "SIGTERM")


class Interrupts:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop; a second one stops at once.

    `reason` is "" until then, "SIGINT" or "SIGTERM" afterwards. `told` is False in a process that
    leaves the talking to another.
    """

    def __init__(self, *, told: bool = True) -> None:
        self.reason = ""
        self.told = told

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        signal.signal(number, signal.default_int_handler)
        if not self.told:
            return
        try:
            os.write(STDERR, NOTE)  # not print: its buffer may be what was interrupted
        except OSError:  # a closed terminal
            return

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch both signals inside, where this is the main thread."""
        before: dict[signal.Signals, Any] = {}
        try:
            for name in SIGNALS:
                number = signal.Signals[name]
                before[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread: nobody's signals to take
            pass
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be."""


def signal_name(stop: KeyboardInterrupt) -> str:
    """Which signal an interruption inside `stoppable` came from."""
    return "SIGTERM" if isinstance(stop, _Terminated) else "SIGINT"


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise a `KeyboardInterrupt` on SIGTERM too inside, where this is the main thread.

    `fit` takes both signals over while it trains, and stops cleanly.
    """

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
