"""The signals that end the process. This imports nothing, so that they are heard from the start."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

__all__ = ["follow", "leave"]

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
