"""How well a score tells two sets of images apart: ranks alone.

Nothing here knows what the scores are. Anomalous images are the positive class, and an image is
called anomalous where its score is at least a threshold:

AUROC    P(a > b) + P(a = b) / 2 for a score a of an anomalous image and b of a usual one
AUPR     average precision, the sum over the thresholds of (rise in recall) * precision; a useless
         score has the share of anomalous images
FPR95    the share of usual images above the highest threshold that 95% of the anomalous ones reach
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIGURES", "Figure", "detection", "pooled_detection"]

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

FIGURES = ("auroc", "aupr", "fpr95")
RECALL = 0.95
LEVEL = (0.025, 0.975)
PIXEL_LEVELS = 2_000
AT_ONCE = 500_000  # numbers that are held while resampling


@dataclass(frozen=True)
class Figure:
    """`value` in 0..1 and its 95% bootstrap interval; None where a set is a single image.

    An interval without width, where the sets do not overlap, is what so few images show and not a
    certainty.
    """

    value: float
    interval: tuple[float, float] | None


def detection(
    anomalous: Array, usual: Array, *, resamples: int = 500, seed: int = 0
) -> dict[str, Figure]:
    """AUROC, AUPR and FPR95 of scores [m] and [n], higher more anomalous; infinite ones rank too.

    The intervals are percentiles over `resamples` bootstrap samples, each set drawn anew with
    replacement: what other images of both kinds would give. Raises `ValueError` where a set is
    empty or a score is no number.
    """
    if not len(anomalous) or not len(usual):
        raise ValueError("detection is measured with images of either kind")
    scores = np.concatenate([anomalous, usual])
    if np.isnan(scores).any():
        raise ValueError("a score that is no number has no rank")
    levels, places = np.unique(scores, return_inverse=True)
    odd, plain = places[: len(anomalous)], places[len(anomalous) :]
    values = _figures(_counts(odd[None], len(levels)), _counts(plain[None], len(levels)))[:, 0]
    if min(len(odd), len(plain)) < 2:
        return {name: Figure(float(v), None) for name, v in zip(FIGURES, values, strict=True)}
    redrawn = np.concatenate(list(_resampled(odd, plain, len(levels), resamples, seed)), axis=1)
    ends = np.quantile(redrawn, LEVEL, axis=1).T  # [3, 2]
    return {
        name: Figure(float(value), (float(low), float(high)))
        for name, value, (low, high) in zip(FIGURES, values, ends, strict=True)
    }


def pooled_detection(
    scores: NDArray[np.floating], odd: NDArray[np.bool_], *, resamples: int = 200, seed: int = 0
) -> Figure:
    """AUROC of scores [n, ...] of the pixels of n images, those in the masks `odd` [n, ...] against
    all others, higher more anomalous, counted in `PIXEL_LEVELS` levels.

    The interval is over images, whose pixels hang together. Raises `ValueError` where one kind is
    missing.
    """
    flat, masks = scores.reshape(len(scores), -1), odd.reshape(len(odd), -1)
    if not masks.any() or masks.all():
        raise ValueError("detection is measured with pixels of either kind")
    edges = np.unique(np.quantile(flat, np.linspace(0, 1, PIXEL_LEVELS + 1)[1:-1]))
    places = np.searchsorted(edges, flat, side="right")
    places = places + (len(edges) + 1) * np.arange(len(flat))[:, None]
    levels = len(flat) * (len(edges) + 1)
    counts = [
        np.bincount(places[chosen], minlength=levels).reshape(len(flat), -1)
        for chosen in (masks, ~masks)
    ]
    value = float(_figures(*(each.sum(axis=0, keepdims=True) for each in counts))[0, 0])
    if len(flat) < 2:
        return Figure(value, None)
    drawn = np.random.default_rng(seed).multinomial(
        len(flat), np.full(len(flat), 1 / len(flat)), resamples
    )
    both = [drawn @ each for each in counts]
    whole = (both[0].sum(axis=1) > 0) & (both[1].sum(axis=1) > 0)
    low, high = np.quantile(_figures(both[0][whole], both[1][whole])[0], LEVEL)
    return Figure(value, (float(low), float(high)))


def _resampled(odd: Counts, plain: Counts, levels: int, count: int, seed: int) -> Iterator[Array]:
    """The figures [3, b] of so many bootstrap samples, b at a time."""
    generator = np.random.default_rng(seed)
    most = max(1, AT_ONCE // (len(odd) + len(plain)))
    for first in range(0, count, most):
        rows = min(most, count - first)
        drawn = (
            _counts(places[generator.integers(0, len(places), (rows, len(places)))], levels)
            for places in (odd, plain)
        )
        yield _figures(*drawn)


def _counts(places: Counts, levels: int) -> Counts:
    """How many of each row's places [b, n] are each level, [b, levels]."""
    offsets = levels * np.arange(len(places))[:, None]
    found = np.bincount((places + offsets).ravel(), minlength=len(places) * levels)
    return found.reshape(len(places), levels)


def _figures(odd: Counts, plain: Counts) -> Array:
    """AUROC, AUPR and FPR95 [3, b] of images counted by level, lowest first, both [b, levels]."""
    hits, alarms = odd[:, ::-1].cumsum(axis=1), plain[:, ::-1].cumsum(axis=1)
    recall, rate = hits / hits[:, -1:], alarms / alarms[:, -1:]
    rise = np.diff(recall, prepend=0.0, axis=1)
    precision = hits / np.maximum(hits + alarms, 1)
    at = (recall >= RECALL).argmax(axis=1)
    return np.stack(
        [
            (np.diff(rate, prepend=0.0, axis=1) * (recall - rise / 2)).sum(axis=1),
            (rise * precision).sum(axis=1),
            rate[np.arange(len(rate)), at],
        ]
    )
