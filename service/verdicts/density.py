"""How far a row of statistics lies from those of usual images.

Each statistic is brought to a normal shape by its quantiles, then all are whitened, and what counts
is the mean squared distance to the nearest usual rows: no shape of their joint density is assumed.
What is odd in one statistic alone, as blur is, drowns in a distance over many of them: the square
of the largest deviation is added with a weight.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["Marginals", "Neighbours"]

F64 = NDArray[np.float64]

NEIGHBOURS = 10
RIDGE = 0.01  # of a variance of one: a statistic that says nothing new weighs little
FARTHEST = 50.0  # deviations: beyond, farther is no more than far
SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
# Rounded as in the distances of bundles that were calibrated.
NORMAL = tuple(round(NormalDist().inv_cdf(share), 8) for share in SHARES)
KNOTS = np.array([*SHARES, *(1.0 - share for share in reversed(SHARES[:-1]))])
DEVIATIONS = np.array([*NORMAL, *(-z for z in reversed(NORMAL[:-1]))])
FIRST = np.concatenate([DEVIATIONS[:1], DEVIATIONS])  # where each piece begins
TAIL = 4  # knots to the end of which a tail is continued as a straight line


class Marginals:
    """Each column of statistics to a normal shape: its quantiles go to those of N(0, 1).

    values: ``[m, S]`` of usual images. Between its knots a column is interpolated, beyond the last
    one it goes on as a line.
    """

    def __init__(self, values: F64) -> None:
        knots = np.quantile(values, KNOTS, axis=0).T  # [S, Q]
        spread, scale = np.ptp(knots, axis=1), np.abs(knots).max(axis=1)
        spread = np.where(spread > 1e-6 * scale, spread, np.maximum(scale, 1e-9))  # of a constant
        steps = 1e-9 * np.arange(len(KNOTS)) * spread[:, None]
        knots = np.maximum.accumulate(knots, axis=1) + steps  # strictly ascending
        tails = [
            (DEVIATIONS[b] - DEVIATIONS[a]) / (knots[:, b] - knots[:, a])
            for a, b in ((0, TAIL), (-1 - TAIL, -1))
        ]
        slopes = np.diff(DEVIATIONS) / np.diff(knots, axis=1)
        # Of each piece, from the one below the first knot to the one above the last.
        self._slopes = np.column_stack([tails[0], slopes, tails[1]])
        self._starts = np.column_stack([knots[:, 0], knots])
        self._knots, self._columns = knots, np.arange(len(knots))

    def __call__(self, values: F64) -> F64:
        """Deviations ``[n, S]``, at most `FARTHEST`; NaN stays NaN."""
        piece = (values[:, :, None] >= self._knots).sum(axis=2)
        with np.errstate(invalid="ignore", over="ignore"):
            beyond = values - self._starts[self._columns, piece]
            found = FIRST[piece] + beyond * self._slopes[self._columns, piece]
            clipped: F64 = np.clip(found, -FARTHEST, FARTHEST)
        return clipped


class Neighbours:
    """The mean squared distance of a row to the nearest of usual ones, and `tail_weight` times the
    square of its largest deviation.

    values: ``[m, S]`` of usual images, m at least 2.
    """

    def __init__(self, values: F64, tail_weight: float = 0.0) -> None:
        self._tail_weight = tail_weight
        self._marginals = Marginals(values)
        deviations = self._marginals(values)
        self._centre = deviations.mean(axis=0)
        centred = deviations - self._centre
        covariance = np.einsum("ms,mt->st", centred, centred) / (len(values) - 1)
        covariance += RIDGE * np.eye(values.shape[1])
        self._whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T  # [S, S]
        points = self._whitened(deviations)
        self._squares = np.square(points).sum(axis=1)
        self._twice = np.ascontiguousarray(2.0 * points.T)  # [S, m]
        self.count = max(1, min(NEIGHBOURS, len(values) // 5))

    def __call__(self, values: F64) -> F64:
        """Distances ``[n]`` of rows ``[n, S]``; NaN for a row with a NaN."""
        deviations = self._marginals(values)
        rows = self._whitened(deviations)
        squares = np.square(rows).sum(axis=1)[:, None] + self._squares  # [n, m]
        squares -= np.einsum("ns,sm->nm", rows, self._twice)
        squares.partition(self.count - 1, axis=1)
        distances: F64 = np.maximum(squares[:, : self.count], 0.0).mean(axis=1)
        distances += self._tail_weight * np.square(deviations).max(axis=1)
        return distances

    def _whitened(self, deviations: F64) -> F64:
        """Whitened rows ``[n, S]``, by einsum: unlike BLAS it gives a row the same bytes in any
        batch, and wakes no threads."""
        found: F64 = np.einsum("ns,st->nt", deviations - self._centre, self._whiten)
        return found
