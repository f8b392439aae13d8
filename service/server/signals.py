"""The signals that end the process. This imports nothing, so that they are heard from the start."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["follow", "importing", "leave"]

END = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def follow(handler: Callable[[int, FrameType | None], None]) -> None:
    """Let `handler` have the signals that end the process, but for what `nohup` turned off.

    As a container's first process, a signal without a handler is ignored.
    """
    for number in END:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def leave(_number: int = 0, _frame: FrameType | None = None) -> None:
    """End the process at once: a thread that still loads a model would abort the interpreter."""
    os._exit(0)


@contextmanager
def importing() -> Iterator[None]:
    """Let Ctrl-C inside end the process without the traceback of an import."""
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is not signal.default_int_handler:  # a shell's background jobs ignore it
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
