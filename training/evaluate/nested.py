"""Bounds at several K from one pass: the first K draws of the same, for every K."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor

import numpy as np
import torch
from numpy.typing import NDArray

from training.evaluate.draws import Noise, Sums
from training.evaluate.scorers import Scorer, Scores

__all__ = ["nested_sums"]


@torch.inference_mode()
def nested_sums(
    scorer: Scorer,
    pixels: NDArray[np.uint8],
    *,
    ks: Sequence[int],
    seed: int,
    start: int,
    chunk: int,
    threads: Executor,
) -> dict[int, Sums]:
    """K -> the sums over the first K draws, for images uint8 [n, C, H, W] at `start` of their set.

    The draws are those of `evaluate.evaluate_images`: functions of (seed, image, draw). `chunk`
    is how many are scored at once, whatever the K's are.
    """
    images = scorer.images(pixels)
    places = range(start, start + len(pixels))
    noise = Noise(seed, places, scorer.facts.dim, threads)
    found: dict[int, Sums] = {}
    total, done = None, 0
    for eps in noise.chunks(max(ks), chunk):
        for piece in _cut(scorer.score(images, eps), [k - done for k in ks]):
            sums = Sums.of(piece)
            total = sums if total is None else total + sums
            done += len(piece.log_px_z)
            if done in ks:
                found[done] = total
    return found


def _cut(scores: Scores, marks: Sequence[int]) -> Iterator[Scores]:
    """The scores of k draws in pieces that end at those `marks` which lie within."""
    inside = sorted(mark for mark in marks if 0 < mark < len(scores.log_px_z))
    ends = zip([0, *inside], [*inside, len(scores.log_px_z)], strict=True)
    for first, last in ends:
        z = None if scores.z is None else scores.z[first:last]
        yield Scores(scores.log_px_z[first:last], scores.kl[first:last], z)
