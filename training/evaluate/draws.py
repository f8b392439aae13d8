"""Draws of the latents for an evaluation: their noise, and running sums of what they score.

Draw k of image i is a function of (seed, i, k) alone, so that the sums over the first K draws are
the same whatever larger K they are part of: `nested_sums` gives those of several K's in one pass.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.evaluate.scorers import Scorer, Scores

__all__ = ["NOISE_BLOCK", "Sums", "latent_moments", "nested_sums"]

NOISE_BLOCK = 16  # draws made at once: torch.randn fills in sixteens
LOGARITHMS = {"log_w", "log_w2"}


def _noise(
    seed: int, images: range, dim: int, draws: int, chunk: int, threads: Executor
) -> Iterator[Tensor]:
    """Standard normal noise [k, N, D] for the first `draws` draws of N images, k about `chunk`.

    Each image has a generator of its own, read in blocks of `NOISE_BLOCK` draws: draw k of image i
    is a function of (seed, i, k). On the CPU, so that every device gets the same.
    """
    states = (np.random.SeedSequence((seed, i)).generate_state(1)[0] for i in images)
    generators = [torch.Generator().manual_seed(int(state)) for state in states]

    def of_image(generator: torch.Generator) -> Tensor:
        return torch.randn(NOISE_BLOCK, dim, generator=generator)

    most = max(1, chunk // NOISE_BLOCK) * NOISE_BLOCK
    for first in range(0, draws, most):
        wanted = min(draws - first, most)
        blocks = [
            torch.stack(list(threads.map(of_image, generators)), dim=1)  # [16, N, D]
            for _ in range(math.ceil(wanted / NOISE_BLOCK))
        ]
        together = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        yield from torch.split(together[:wanted], chunk)


@dataclass
class Sums:
    """Running sums over the draws for n images, float64; `log_w` are logarithms.

    `z` and `z2` lie where the latents were computed; D is 0 where none are to be seen.
    """

    log_w: Tensor  # [n] log sum_k w_k
    log_w2: Tensor  # [n] log sum_k w_k^2
    elbo: Tensor  # [n]
    elbo2: Tensor  # [n]
    log_px_z: Tensor  # [n]
    kl: Tensor  # [n, G]
    z: Tensor  # [n, D]
    z2: Tensor  # [n, D]

    @classmethod
    def of(cls, scores: Scores) -> Self:
        """The sums of one chunk of draws."""
        log_px_z, kl = scores.log_px_z.double().cpu(), scores.kl.double().cpu()
        log_w, z = log_px_z - kl.sum(dim=2), scores.z
        return cls(
            log_w.logsumexp(dim=0),
            (2 * log_w).logsumexp(dim=0),
            log_w.sum(dim=0),
            log_w.square().sum(dim=0),
            log_px_z.sum(dim=0),
            kl.sum(dim=0),
            z.sum(dim=0, dtype=torch.float64),
            z.square().sum(dim=0, dtype=torch.float64),
        )

    def __add__(self, other: Self) -> Self:
        """The sums over both sets of draws."""
        added = {
            name: torch.logaddexp(mine, theirs) if name in LOGARITHMS else mine + theirs
            for (name, mine), theirs in zip(vars(self).items(), vars(other).values(), strict=True)
        }
        return type(self)(**added)


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

    `chunk` is how many draws are scored at once, whatever the K's are.
    """
    images = scorer.images(pixels)
    places = range(start, start + len(pixels))
    found: dict[int, Sums] = {}
    total, done = None, 0
    for eps in _noise(seed, places, scorer.facts.dim, max(ks), chunk, threads):
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
        yield Scores(*(part[first:last] for part in (scores.log_px_z, scores.kl, scores.z)))


def latent_moments(sums: Sums, draws: int) -> dict[str, Tensor]:
    """What n images say of each latent, sums over them, float64 [1, D]; {} where none were seen.

    "images": how many there are, [1, 1]; "mean", "mean2": E_q[z] and its square; "noise": how much
    of "mean2" comes of so few draws; "kl": 0.5 (m^2 + s^2 - 1 - log s^2), the divergence from
    N(0, 1) of a Gaussian with the posterior's mean m and variance s^2, free of that bias.
    """
    if not sums.z.shape[1]:
        return {}
    mean, fewer = sums.z / draws, max(1, draws - 1)
    variance = (sums.z2 / draws - mean.square()) * (draws / fewer)  # [n, D] unbiased
    log_variance = variance.clamp_min(1e-30).log() + 1 / fewer
    parts = {
        "images": mean.new_ones(len(mean), 1),
        "mean": mean,
        "mean2": mean.square(),
        "noise": variance / draws,
        "kl": 0.5 * (mean.square() - variance / draws + variance - 1 - log_variance),
    }
    return {name: part.sum(dim=0, keepdim=True).cpu() for name, part in parts.items()}
