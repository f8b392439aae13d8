"""What batches cost here, fitted while serving: a constant, a price a row, and a price an image.

In ``score`` the bottom-up network runs once an image and the top-down network once a row, so both
count; elsewhere rows are images, and one price is enough.
"""

from __future__ import annotations

from itertools import combinations, combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

__all__ = ["CostModel"]

# Weight of the past at each new batch: some hundred batches are remembered.
DECAY = 0.99
# A batch that took so many times what was expected (the machine was busy, or asleep) counts as
# this many times: costs that really have risen are learnt in a few batches, accidents are not.
SURPRISE = 3.0
# The normal equations are solved again after so many batches, and after each of the first ones.
REFIT, FIRST = 32, 8
TERMS = 3
PAIRS = tuple(combinations_with_replacement(range(TERMS), 2))
# Every choice of terms that are not zero.
SUPPORTS = tuple(list(s) for n in range(1, TERMS + 1) for s in combinations(range(TERMS), n))
RIDGE, TOLERANCE = 1e-9, 1e-6
LEAST_SECONDS = 1e-6  # of a batch: clocks have steps

F64 = NDArray[np.float64]


class _Plane:
    """``seconds = c . (rows, images, batches)``, c >= 0, by least squares of relative residuals."""

    def __init__(self) -> None:
        self._gram = [0.0] * len(PAIRS)  # plain numbers: arrays of three cost more than they save
        self._moment = [0.0] * TERMS
        self._count = 0
        self.coefficients: tuple[float, ...] = (0.0,) * TERMS

    def add(self, rows: int, images: int, seconds: float) -> None:
        expected = self.predict(rows, images, 1)
        if expected > 0.0:
            seconds = min(seconds, SURPRISE * expected)
        scale = min(expected or seconds, seconds)  # what was quick tells more than what was slow
        x, y = (rows / scale, images / scale, 1.0 / scale), seconds / scale
        self._gram = [
            DECAY * old + x[i] * x[j] for old, (i, j) in zip(self._gram, PAIRS, strict=True)
        ]
        self._moment = [DECAY * old + term * y for old, term in zip(self._moment, x, strict=True)]
        self._count += 1
        if self._count < FIRST or self._count % REFIT == 0:
            gram = np.empty((TERMS, TERMS))
            for value, (i, j) in zip(self._gram, PAIRS, strict=True):
                gram[i, j] = gram[j, i] = value
            self.coefficients = _non_negative(gram, np.array(self._moment))

    def predict(self, rows: float, images: float, batches: float) -> float:
        row, image, constant = self.coefficients
        return rows * row + images * image + batches * constant


def _non_negative(gram: F64, moment: F64) -> tuple[float, ...]:
    """The c >= 0 that minimises ``c' gram c - 2 moment' c``: the best of all supports.

    Equal columns (rows are images, or all batches have one size) leave a family of answers. Smaller
    supports are tried first, rows before images before the constant, and what comes later must be
    better to be taken: so unknown sizes are expected to cost by the row.
    """
    best, least = np.zeros(TERMS), 0.0
    for support in SUPPORTS:
        part = gram[np.ix_(support, support)]
        part = part + np.diag(RIDGE * np.diag(part))
        c = np.linalg.solve(part, moment[support])
        if (c < 0.0).any():
            continue
        value = float(c @ part @ c - 2.0 * moment[support] @ c)
        if value < least - TOLERANCE * abs(least):
            best, least = np.zeros(TERMS), value
            best[support] = c
    return tuple(best.tolist())


class CostModel:
    """Seconds that works of an operation will take one worker."""

    def __init__(self) -> None:
        self._planes: dict[str, _Plane] = {}

    def add(self, operation: str, rows: int, images: int, seconds: float) -> None:
        """Learn from one batch."""
        plane = self._planes.setdefault(operation, _Plane())
        plane.add(rows, images, max(seconds, LEAST_SECONDS))

    def seconds(self, operation: str, rows: float, images: float, batches: float = 1) -> float:
        """Engine seconds for `rows` rows of `images` images in `batches`; 0 while unknown."""
        plane = self._planes.get(operation)
        return plane.predict(rows, images, batches) if plane is not None else 0.0
