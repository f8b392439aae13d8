"""The way from one latent to another."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["GreatCircle", "great_circle"]

F32 = NDArray[np.float32]


class GreatCircle:
    """`n` points from one of `ends` ``[2, D]`` to the other by spherical interpolation (Shoemake,
    1985).

    ``sin((1-t) w) / sin w * a + sin(t w) / sin w * b`` with w the angle between them; a
    straight line where they point the same or opposite ways, or one is zero. Points exist where
    they are asked for: ``circle[3:5]`` is float32 ``[2, D]``. The first and the last are the ends.
    """

    def __init__(self, ends: F32, n: int) -> None:
        self._ends, self._n = ends, n
        a, b = ends.astype(np.float64)
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        omega = math.acos(max(-1.0, min(1.0, float(a @ b) / lengths))) if lengths > 0.0 else 0.0
        t = np.linspace(0.0, 1.0, n)
        if math.sin(omega) < 1e-6:
            self._weights = np.stack([1.0 - t, t], axis=1)  # [n, 2]
        else:
            angles = np.stack([(1.0 - t) * omega, t * omega], axis=1)
            self._weights = np.sin(angles) / math.sin(omega)
        self._weights[0], self._weights[-1] = (1.0, 0.0), (0.0, 1.0)

    def __getitem__(self, rows: slice) -> F32:
        weights = self._weights[rows].astype(np.float64)
        points: F32 = np.einsum("re,ed->rd", weights, self._ends, dtype=np.float64).astype(
            np.float32
        )
        return points


def great_circle(ends: F32, n: int) -> F32:
    """All points of a `GreatCircle`, ``[n, D]``."""
    return GreatCircle(ends, n)[0:n]
