"""Ctrl-C and SIGTERM: a wish to stop that the training loop fulfils between two steps
(`Interrupts`), or a `KeyboardInterrupt` where results so far are on the disk (`stoppable`)."""

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, NoReturn

__all__ = ["EXIT_CODES", "SIGNALS", "Interrupts", "signal_name", "stoppable"]

# A step may take long, so the signal is answered before it is obeyed.
NOTE = b"\nstopping after this step, with a checkpoint; once more stops at once\n"
STDERR = 2
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}  # of the process, as shells expect them
SIGNALS = tuple(EXIT_CODES)

Handler = Callable[[int, FrameType | None], None]


class _Stopped(KeyboardInterrupt):
    """A signal, by its name."""


def signal_name(stop: KeyboardInterrupt) -> str:
    """Which signal an interruption inside `stoppable` came from."""
    return str(stop) if isinstance(stop, _Stopped) else "SIGINT"


def stoppable() -> AbstractContextManager[None]:
    """Raise a `KeyboardInterrupt` on either signal inside, where this is the main thread.

    One more ends the process, whatever it computes or whoever caught the first. `fit` takes both
    signals over while it trains, and stops cleanly.
    """
    return _handled(_stop)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    for name in SIGNALS:
        signal.signal(signal.Signals[name], signal.SIG_DFL)
    # torch, while it compiles a backward pass, warns with a stack of what the signal broke off.
    warnings.filterwarnings("ignore", "Error detected in")
    raise _Stopped(signal.Signals(number).name)


class Interrupts:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop; a second one stops at once.

    `reason` is "" until then, "SIGINT" or "SIGTERM" afterwards. `told` is False in a process that
    leaves the talking to another. While `at_once()`, when there is nothing yet to be saved, the
    first one stops at once too.
    """

    def __init__(self, *, told: bool = True, at_once: Callable[[], bool] = lambda: False) -> None:
        self.reason = ""
        self.told = told
        self.at_once = at_once

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason or self.at_once():
            _stop(number, frame)
        self.reason = signal.Signals(number).name
        if not self.told:
            return
        try:
            os.write(STDERR, NOTE)  # not print: its buffer may be what was interrupted
        except OSError:  # a closed terminal
            return

    def watched(self) -> AbstractContextManager[None]:
        """Watch both signals inside, where this is the main thread."""
        return _handled(self._handle)


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    before: dict[signal.Signals, Any] = {}
    try:
        for name in SIGNALS:
            number = signal.Signals[name]
            before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread: nobody's signals to take
        pass
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
