"""Who counts what the scheduler does, kept from harming it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

__all__ = ["Guarded", "SchedulerObserver"]

logger = logging.getLogger(__name__)


class SchedulerObserver(Protocol):
    """Who counts. Called on the event loop."""

    def batch(self, operation: str, rows: int, padded: int, seconds: float) -> None:
        """A batch of `rows` rows was computed, with `padded` more for nothing."""

    def dropped(self, operation: str, rows: int, reason: str) -> None:
        """`rows` rows will not be computed: "cancelled", "expired", "failed" or "shutdown"."""

    def retried(self, operation: str, runs: int) -> None:
        """A batch failed and was run `runs` times more, in halves."""

    def queue(self, rows: Mapping[str, int]) -> None:
        """So many rows of each operation wait now."""


class Guarded:
    """An observer, or none, whose exceptions are logged and forgotten."""

    def __init__(self, observer: SchedulerObserver | None) -> None:
        self._observer = observer
        self._told: dict[str, int] = {}

    def batch(self, operation: str, rows: int, padded: int, seconds: float) -> None:
        """As `SchedulerObserver.batch`."""
        if self._observer is not None:
            _guard(self._observer.batch, operation, rows, padded, seconds)

    def dropped(self, operation: str, rows: int, reason: str) -> None:
        """As `SchedulerObserver.dropped`."""
        if self._observer is not None:
            _guard(self._observer.dropped, operation, rows, reason)

    def retried(self, operation: str, runs: int) -> None:
        """As `SchedulerObserver.retried`."""
        if self._observer is not None:
            _guard(self._observer.retried, operation, runs)

    def queue(self, rows: Mapping[str, int]) -> None:
        """As `SchedulerObserver.queue`, where something has changed since."""
        if self._observer is not None and rows != self._told:
            self._told = dict(rows)
            _guard(self._observer.queue, self._told)


def _guard(method: Callable[..., None], *arguments: object) -> None:
    try:
        method(*arguments)
    except Exception:
        logger.exception("the observer failed")
