"""Editing an image in the prior's noise: some latent groups are kept, the others drawn anew.

Groups are drawn top down, each given those above it. A group's `prior_eps` means the same under any
upper group, its absolute latents do not: that is why images are changed there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import LatentSpec, Manifest
from service.errors import InvalidInput, WrongShape
from service.noise import Purpose, normal
from service.operations import checks as arguments
from service.scheduler.work import NoiseKeys

__all__ = ["Edited", "edited", "first_eps", "resampled_groups"]

F32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class Edited:
    """Rows of `given` ``[n, D]`` in which the columns that are `drawn` ``[D]`` are noise of `keys`.

    They exist where they are asked for, in the thread that asks: ``rows[3:5]`` is ``[2, D]``.
    """

    given: F32
    drawn: NDArray[np.bool_]
    keys: NoiseKeys

    def __getitem__(self, rows: slice) -> F32:
        kept = self.given[rows]
        if not self.drawn.any():
            return kept
        seeds, streams, purposes = self.keys.cut(rows.start, rows.stop)
        noise = normal(seeds, streams, 0, kept.shape[1], purposes)
        return np.where(self.drawn, noise, kept)


def edited(
    prior_eps: NDArray[Any], keys: NoiseKeys, manifest: Manifest, resample: Sequence[str]
) -> Edited:
    """`prior_eps` ``[n, D]`` or ``[1, D]`` (for all rows of `keys`), `resample` drawn anew."""
    latent = manifest.latent
    arguments.latents(prior_eps, latent.dim, "prior_eps")
    n = len(keys.seeds)
    if len(prior_eps) not in (1, n):
        raise WrongShape(
            f"prior_eps has {len(prior_eps)} rows for {n} images: give one for each, or one for all"
        )
    drawn = np.zeros(latent.dim, np.bool_)
    start = 0
    for group in latent.groups:
        drawn[start : start + group.dim] = group.name in resample
        start += group.dim
    given = np.broadcast_to(prior_eps, (n, latent.dim))
    return Edited(given, drawn, keys)


def first_eps(seeds: Sequence[int], manifest: Manifest) -> F32:
    """`prior_eps` ``[n, D]`` of the first image that each of `seeds` draws."""
    dim = manifest.latent.dim
    if not seeds:
        return np.zeros((0, dim), np.float32)
    keys = np.array([arguments.seed(seed) for seed in seeds], dtype=np.uint64)
    return normal(keys, np.zeros_like(keys), 0, dim, Purpose.SAMPLE)


def resampled_groups(
    latent: LatentSpec, resample: Sequence[str] | None, keep: Sequence[str] | None
) -> list[str]:
    """The groups to draw anew, from the top down: those named, or all but those to keep.

    Raises:
        InvalidInput: a group that the model does not have, or both lists.
    """
    names = [group.name for group in latent.groups]
    if resample is not None and keep is not None:
        raise InvalidInput("give resample or keep, not both: each says what the other would")
    for option, given in (("resample", resample), ("keep", keep)):
        for name in given or ():
            if name not in names:
                raise InvalidInput(
                    f"{option}: there is no latent group {name[:60]!r}; from the top down there "
                    f"are {', '.join(names)}"
                )
    if keep is not None:
        return [name for name in names if name not in keep]
    return [name for name in names if name in (resample or ())]
