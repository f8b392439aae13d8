"""How well a score tells two sets of images apart, and how typical a score is: ranks alone.

Nothing here knows what the scores are. The area under the ROC curve is P(a > b) + P(a = b) / 2
for a score a of an anomalous image and b of a usual one; its variance is that of two independent
samples (DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44:837).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Auroc", "auroc", "two_sided"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Auroc:
    """`value` in 0..1, 1/2 where the score tells nothing, below it where it tells the reverse.

    `standard_error` is None where a set is a single image; 0 where the sets do not overlap, which
    is then what so few images show, not a certainty.
    """

    value: float
    standard_error: float | None


def auroc(anomalous: Array, usual: Array) -> Auroc:
    """The area for scores [m] and [n] of which higher is more anomalous; infinite ones rank too.

    Raises `ValueError` where a set is empty or a score is no number.
    """
    if not len(anomalous) or not len(usual):
        raise ValueError("an area under the ROC curve needs an image of either kind")
    if np.isnan(anomalous).any() or np.isnan(usual).any():
        raise ValueError("a score that is no number has no rank")
    above = _shares_below(anomalous, usual)  # [m] of the usual scores below each anomalous one
    below = 1 - _shares_below(usual, anomalous)  # [n] of the anomalous above each usual one
    if min(len(above), len(below)) < 2:
        return Auroc(float(above.mean()), None)
    variance = above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below)
    return Auroc(float(above.mean()), math.sqrt(variance))


def _shares_below(scores: Array, others: Array) -> Array:
    """For each score the share of `others` below it; a tie counts half."""
    ordered = np.sort(others)
    left = np.searchsorted(ordered, scores, side="left")
    right = np.searchsorted(ordered, scores, side="right")
    shares: Array = (left + right) / (2 * len(ordered))
    return shares


def two_sided(scores: Array, reference: Array) -> Array:
    """p-values [N] against being too low and too high: twice the smaller rank, at most 1.

    `reference` [n] are scores of images like the usual ones, in any order. Under exchangeability
    P(p <= a) <= a, as for each side alone.
    """
    ordered = np.sort(reference)
    as_low = np.searchsorted(ordered, scores, side="right")
    as_high = len(ordered) - np.searchsorted(ordered, scores, side="left")
    p: Array = 2 * (1 + np.minimum(as_low, as_high)) / (1 + len(ordered))
    return np.minimum(1.0, p)
