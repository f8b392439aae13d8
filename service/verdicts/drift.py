"""Whether the images that a model scores are still like those it was calibrated on.

With n calibration images, the rank of an image's distance among theirs falls into one of n + 1
cells, and (1 + the cell) / (1 + n) is its p-value. If calibration and stream are exchangeable, the
cells of a stream follow Polya's urn: after t images, of which c had ranks in a set of m cells, the
next one is there with probability (m + c) / (n + 1 + t). Betting against that is fair whatever the
images are, so the capital M, which begins at 1, is a conformal test martingale with a calibration
set that stays as it is: P(M ever reaches 20) <= 1/20 (Ville 1939; Vovk, Gammerman and Shafer 2005,
*Algorithmic Learning in a Random World*). Independent uniform p-values would not do: on a long
stream the calibration set's own randomness would pass for drift.

The bets say that the next image is like the last few hundred. Before image t = 0, 1, ... a share of
1 / (t + 2) of the money not yet at stake is staked, so that what is left, 1 / (t + 1), suffices for
a change at any time: with Q and P the probabilities of the set that the next image is in,

    M = 1 / (t + 1) + S,    S <- (S + 1 / ((t + 1) (t + 2))) Q / P
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate

import numpy as np

__all__ = ["ALARM", "EDGES", "Drift"]

ALARM = 20.0  # of a stream that has not changed, one in so many ever gets there
EDGES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of sets of p-values
MEMORY = 300  # images that bets look back on
FAITH = 20.0  # images' worth of what is usual, in every bet
REMEMBERED = 16_384  # images that count once however often they come


class Drift:
    """The martingale of one model's p-values among `images` calibration images.

    images: how many were counted; counts: by set of p-values, of which `EDGES` are the upper ends;
    p_sum: of all p-values.
    """

    def __init__(self, images: int) -> None:
        self._total = images + 1
        self._cells = np.diff(np.floor(np.array((0.0, *EDGES)) * self._total + 1e-9)).tolist()
        self._recent = [0.0] * len(EDGES)
        self._stake = -math.inf  # log S
        self._seen: dict[int, None] = {}  # the longest ago first
        self._alarmed = False
        self.counts = [0] * len(EDGES)
        self.p_sum, self.images = 0.0, 0

    @property
    def buckets(self) -> list[tuple[str, int]]:
        """Images with p-values of at most each edge, as Prometheus has them."""
        names = [*map(str, EDGES[:-1]), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))

    @property
    def log_martingale(self) -> float:
        """log M, natural."""
        return float(np.logaddexp(-math.log(self.images + 1), self._stake))

    def add(self, keys: Iterable[int], p_values: Iterable[float]) -> bool:
        """Count images by their key, each once, and say whether M reaches `ALARM` for the first
        time, with any of them. What has no p-value is left out."""
        alarmed = self._alarmed
        for key, p in zip(keys, p_values, strict=True):
            if not math.isnan(p) and not self._known(key):
                self._bet(p)
                self._alarmed = self._alarmed or self.log_martingale >= math.log(ALARM)
        return self._alarmed and not alarmed

    def _known(self, key: int) -> bool:
        known = key in self._seen
        self._seen.pop(key, None)
        self._seen[key] = None
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return known

    def _bet(self, p: float) -> None:
        t, place = self.images, bisect_left(EDGES, p)
        usual = self._cells[place]
        fair = (usual + self.counts[place]) / (self._total + t)
        share = FAITH * usual / self._total
        bet = (share + self._recent[place]) / (FAITH + sum(self._recent))
        staked = float(np.logaddexp(self._stake, -math.log((t + 1) * (t + 2))))
        self._stake = staked + math.log(bet / fair)
        self._recent = [count * (1.0 - 1.0 / MEMORY) for count in self._recent]
        self._recent[place] += 1.0
        self.counts[place] += 1
        self.p_sum += p
        self.images += 1
