"""Ctrl-C and SIGTERM as a wish to stop that the training loop fulfils between two steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Interrupts"]

# A step may take long (the first one compiles), so the signal is answered before it is obeyed.
NOTE = b"\nstopping after this step, with a checkpoint; once more stops at once\n"
STDERR = 2


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
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread: nobody's signals to take
            pass
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
