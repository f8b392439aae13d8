"""The way from one latent to another."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["great_circle"]


def great_circle(ends: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """`n` points ``[n, D]`` from one of `ends` ``[2, D]`` to the other by spherical interpolation
    (Shoemake,
    1985).

    ``sin((1-t) w) / sin w * a + sin(t w) / sin w * b`` with w the angle between them; a
    straight line where they point the same or opposite ways, or one is zero.
    """
    a, b = ends.astype(np.float64)
    t = np.linspace(0.0, 1.0, n)[:, None]
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    omega = math.acos(max(-1.0, min(1.0, float(a @ b) / lengths))) if lengths > 0.0 else 0.0
    if math.sin(omega) < 1e-6:
        points = (1.0 - t) * a + t * b
    else:
        points = (np.sin((1.0 - t) * omega) * a + np.sin(t * omega) * b) / math.sin(omega)
    points[0], points[-1] = a, b
    path: NDArray[np.float32] = points.astype(np.float32)
    return path
