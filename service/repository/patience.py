"""Work in a thread that is left behind where it takes too long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["begin"]

Result = TypeVar("Result")


def begin(work: Callable[[], Result], name: str) -> Future[Result]:
    """Run `work` in a thread of its own, which keeps no process alive: who waits may give up."""
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - who waits is told
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
