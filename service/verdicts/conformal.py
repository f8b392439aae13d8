"""Conformal p-values: how extreme a number is among those of calibration images.

With n calibration images of the same distribution as the image asked about, ``p = (1 + #{as
extreme}) / (1 + n)`` has ``P(p <= a) <= a`` whatever that distribution is (Vovk, Gammerman and
Shafer 2005, *Algorithmic Learning in a Random World*).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "TwoSided",
    "certified_alpha",
    "discoveries",
    "expected_rate",
    "possible_discoveries",
    "upper",
]

F64 = NDArray[np.float64]
# p-values and q r / n are often equal, as 1 / 100 and 0.01 * 29 / 29: rounding must not part them.
ROUNDED_UP = 1.0 + 1e-12


def upper(values: F64, reference: NDArray[np.float32]) -> F64:
    """``(1 + #{r >= v}) / (1 + n)`` ``[k]``: small where a value is large.

    reference: ascending ``[n]``. Values are compared as float32; no number gives no p-value.
    """
    with np.errstate(over="ignore"):
        as_high = len(reference) - np.searchsorted(reference, values.astype(np.float32), "left")
    return np.where(np.isnan(values), np.nan, (1.0 + as_high) / (1.0 + len(reference)))


class TwoSided:
    """Twice the smaller of both tails' p-values, at most 1: small where a value is far out.

    reference: ``[S, n]``, of each of S kinds a row, ascending.
    """

    def __init__(self, reference: NDArray[np.float32]) -> None:
        self._n = reference.shape[1]
        self._before = self._n * np.arange(len(reference))[:, None]
        self._keys = _keys(reference).ravel()

    def __call__(self, values: F64) -> F64:
        """Of values ``[S, k]``; compared as float32, no number gives no p-value."""
        with np.errstate(over="ignore"):
            keys = _keys(values.astype(np.float32))
        lower = np.searchsorted(self._keys, keys, "right") - self._before
        higher = self._n + self._before - np.searchsorted(self._keys, keys, "left")
        twice = np.minimum(1.0, 2.0 * (1.0 + np.minimum(lower, higher)) / (1.0 + self._n))
        return np.where(np.isnan(values), np.nan, twice)


def _keys(kinds: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Integers in the order of the numbers of each row ``[S, k]``, all of a row below those of the
    next: one search finds the places of all."""
    bits = (kinds + np.float32(0.0)).view(np.uint32)  # one zero
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    return ascending + (np.arange(len(kinds), dtype=np.uint64)[:, None] << np.uint64(32))


def expected_rate(alpha: float, n: int) -> float:
    """The rate of false alarms of ``p <= alpha``, on the average over calibration sets of `n`
    images: the largest p-value ``k / (n + 1)`` that is not above `alpha`, 0.0 where there is none.
    """
    k = round(alpha * (n + 1))
    return (k if k / (n + 1) <= alpha else k - 1) / (n + 1)


@lru_cache(256)
def certified_alpha(alpha: float, n: int, confidence: float = 0.95) -> float | None:
    """The threshold t for which "p <= t" has at most `alpha` false alarms with `confidence` over
    calibration sets of `n` images; None where there is none.

    The rate of false alarms at t = k / (n + 1) has the law Beta(k, n + 1 - k) (Vovk 2012,
    *Conditional validity of inductive conformal predictors*), whose distribution function at alpha
    is P(Binomial(n, alpha) >= k): the largest k for which that is at least `confidence`.
    """
    spread = 10 * math.sqrt(n * alpha * (1 - alpha)) + 10
    below, k = 0.0, max(0, int(n * alpha - spread))  # what is below has less than 1e-20
    while k < n:
        below += _binomial(k, n, alpha)  # P(B <= k) = 1 - P(B >= k + 1)
        if 1.0 - below < confidence:
            break
        k += 1
    return k / (n + 1) if k else None


def _binomial(k: int, n: int, p: float) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))


def discoveries(p_values: F64, q: float) -> NDArray[np.bool_]:
    """Which of `p_values` ``[n]`` are discoveries: about a share of at most `q` of them is false.

    Benjamini and Hochberg 1995, *Controlling the False Discovery Rate*: with the largest r for
    which the r-th smallest p-value is at most q r / n, the r smallest. It holds for conformal
    p-values, which depend on each other through the calibration set (Bates, Candes, Lei, Romano
    and Sesia 2023). What has no p-value is counted among the n and never discovered.
    """
    known = np.where(np.isnan(p_values), np.inf, p_values)
    n = len(known)
    limits = q * np.arange(1, n + 1) / n * ROUNDED_UP
    passed = np.flatnonzero(np.sort(known) <= limits)
    limit = limits[passed[-1]] if len(passed) else -1.0
    return np.asarray(known <= limit)


def possible_discoveries(n: int, q: float, calibration: int) -> int:
    """How many of a batch of `n` have to have the smallest p-value for one to be discovered;
    n + 1 where not even all of them suffice."""
    return max(1, math.ceil(min(n / (q * (calibration + 1)) / ROUNDED_UP, n + 1)))
