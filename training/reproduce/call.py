"""One call of `iafvae-train reproduce`: how it is stopped, on what machine, how it ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import torch

from training.config import Runtime
from training.fit.device import choose_device
from training.runs.provenance import processor

__all__ = ["SIGNALS", "Outcome", "machine", "signal_name", "stoppable"]

SIGNALS = ("SIGINT", "SIGTERM")


@dataclass(frozen=True)
class Outcome:
    """How a call ended, "done", "budget", "SIGINT" or "SIGTERM", and what it wrote."""

    reason: str
    document: dict[str, Any]


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


def machine(runtime: Runtime) -> str:
    """What computes, in its maker's words."""
    device = choose_device(runtime.device)
    if device.type == "cuda":
        name: str = torch.cuda.get_device_name(device)
        return name
    threads = runtime.threads or torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"
