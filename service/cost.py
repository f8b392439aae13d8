"""What batches cost here, fitted while serving: a constant and a price a row for each operation."""

from __future__ import annotations

import math

__all__ = ["CostModel"]

# Weight of the past at each new batch: some hundred batches are remembered.
DECAY = 0.99


class _Line:
    """``seconds = constant + slope * rows`` by exponentially weighted least squares."""

    def __init__(self) -> None:
        self._w = self._r = self._rr = self._t = self._rt = 0.0

    def add(self, rows: int, seconds: float) -> None:
        self._w = DECAY * self._w + 1.0
        self._r = DECAY * self._r + rows
        self._rr = DECAY * self._rr + rows * rows
        self._t = DECAY * self._t + seconds
        self._rt = DECAY * self._rt + rows * seconds

    def fit(self) -> tuple[float, float]:
        """(constant, slope), both at least 0; all in the slope where every batch had one size."""
        if self._r == 0.0:
            return 0.0, 0.0
        spread = self._w * self._rr - self._r**2
        if spread > 1e-6 * self._w * self._rr:
            slope = (self._w * self._rt - self._r * self._t) / spread
            constant = (self._t - slope * self._r) / self._w
            if slope > 0.0 and constant >= 0.0:
                return constant, slope
        return 0.0, self._t / self._r


class CostModel:
    """Seconds that rows of an operation will take one worker."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def add(self, operation: str, rows: int, seconds: float) -> None:
        """Learn from one batch."""
        self._lines.setdefault(operation, _Line()).add(rows, seconds)

    def seconds(self, operation: str, rows: int, batch_rows: int) -> float:
        """Engine seconds for `rows` rows in batches of at most `batch_rows`; 0 while unknown."""
        if operation not in self._lines:
            return 0.0
        constant, slope = self._lines[operation].fit()
        return math.ceil(rows / batch_rows) * constant + rows * slope
