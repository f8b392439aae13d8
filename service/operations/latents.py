"""Latents in the prior's noise: which groups are drawn anew, and the way from one to another.

Groups are drawn top down, each given those above it. A group's `prior_eps` means the same under any
upper group, its absolute latents do not: that is why images are changed, and interpolated, there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.bundle import LatentSpec
from service.errors import InvalidInput, WrongShape
from service.noise import Purpose, normal
from service.operations import checks
from service.scheduler.work import Noise, Rows

__all__ = ["edited", "first_eps", "great_circle", "resampled_groups"]

F32 = NDArray[np.float32]


def edited(
    prior_eps: F32, n: int, keys: Noise, latent: LatentSpec, resample: Sequence[str]
) -> Rows:
    """`prior_eps` ``[n, D]`` or ``[1, D]`` (for all `n` rows), `resample` drawn anew.

    Rows are made in the thread that asks for them.
    """
    if len(prior_eps) not in (1, n):
        raise WrongShape(
            f"prior_eps has {len(prior_eps)} rows for {n} images: give one for each, or one for all"
        )
    groups = latent.groups
    drawn = np.repeat([group.name in resample for group in groups], [g.dim for g in groups])
    given = np.broadcast_to(prior_eps, (n, latent.dim))
    if not drawn.any():
        return lambda first, last: given[first:last]

    def rows(first: int, last: int) -> F32:
        seeds, streams, purposes = keys(first, last)
        noise = normal(seeds, streams, 0, latent.dim, purposes)
        return np.where(drawn, noise, given[first:last])

    return rows


def first_eps(seeds: Sequence[int], dim: int) -> F32:
    """`prior_eps` ``[n, D]`` of the first image that each of `seeds` draws."""
    keys = np.array([checks.seed(seed) for seed in seeds], dtype=np.uint64)
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


def great_circle(ends: F32, n: int) -> Rows:
    """`n` points from one of `ends` ``[2, D]`` to the other by spherical interpolation (Shoemake,
    1985).

    ``sin((1-t) w) / sin w * a + sin(t w) / sin w * b`` with w the angle between them; a
    straight line where they point the same or opposite ways, or one is zero. Points are made where
    they are asked for. The first and the last are the ends.
    """
    a, b = ends.astype(np.float64)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    omega = math.acos(max(-1.0, min(1.0, float(a @ b) / lengths))) if lengths > 0.0 else 0.0
    t = np.linspace(0.0, 1.0, n)
    weights = np.stack([1.0 - t, t], axis=1)  # [n, 2]
    if math.sin(omega) >= 1e-6:
        weights = np.sin(weights * omega) / math.sin(omega)
    weights[0], weights[-1] = (1.0, 0.0), (0.0, 1.0)

    def points(first: int, last: int) -> F32:
        way = np.einsum("re,ed->rd", weights[first:last], ends, dtype=np.float64)
        return np.asarray(way, np.float32)

    return points
