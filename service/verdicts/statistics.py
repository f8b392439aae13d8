"""Statistics of images that are computed on the host, beside those of a bundle's graphs.

compressed_bytes   length of zlib's stream of the differences of horizontal neighbours: how much
                   there is to say of an image (Serra et al. 2020, arXiv:1909.11480, set it against
                   the likelihood). Of 8-bit models alone: a binary one sees a draw of the pixels.
largest_box        the largest of `boxes`, each in deviations of what is usual at its place: whether
                   a place is unlike what it should be
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["BOX", "boxes", "compressed_bytes", "host_names"]

F64 = NDArray[np.float64]

BOX = 4  # pixels: side of the squares in which residuals are averaged
RING = 0.5  # how much of the mean around a box is taken off
GREY = 1 / 255  # what a level of grey is of the whole range
LEVEL = 6  # zlib's


def host_names(*, binary: bool) -> tuple[str, ...]:
    """Names of the statistics that are made here, in order."""
    return ("largest_box",) if binary else ("compressed_bytes", "largest_box")


def compressed_bytes(images: NDArray[np.uint8]) -> F64:
    """Bytes of each of `images` uint8 ``[n, C, H, W]``, ``[n]``."""
    differences = images.copy()
    differences[..., 1:] -= images[..., :-1]  # modulo 256, as in PNG's filter "Sub"
    return np.array([len(zlib.compress(each.tobytes(), LEVEL)) for each in differences], np.float64)


def boxes(residual: NDArray[np.float32]) -> F64:
    """What stands out in each square of `BOX` pixels, ``[n, H - BOX + 1, W - BOX + 1]``.

    residual: ``[n, H, W]``. With ``s = r / sqrt(|r| + 1/255)``, the signed root of a residual that
    is not tiny, the mean of s in the box less half its mean in the ring of one pixel around it
    (mirrored at the edges): what is off in a wide region stands out less than what is off here, and
    an edge that is a pixel aside, which is far off in few pixels, less than a patch.
    """
    side = min(BOX, *residual.shape[1:])
    n, height, width = residual.shape
    edged = np.empty((n, height + 2, width + 2))
    edged[:, 1:-1, 1:-1] = residual / np.sqrt(np.abs(residual) + GREY)
    edged[:, 0, 1:-1], edged[:, -1, 1:-1] = edged[:, 1, 1:-1], edged[:, -2, 1:-1]
    edged[:, :, 0], edged[:, :, -1] = edged[:, :, 1], edged[:, :, -2]
    total = np.zeros((n, height + 3, width + 3))  # np.pad takes longer than both sums
    edged.cumsum(axis=1).cumsum(axis=2, out=total[:, 1:, 1:])
    whole = _sums(total, side + 2)
    inner = _sums(total[:, 1:-1, 1:-1], side)
    ring = (whole - inner) / ((side + 2) ** 2 - side**2)
    found: F64 = inner / side**2 - RING * ring
    return found


def _sums(total: F64, side: int) -> F64:
    """Sums over all squares of `side`, of the sums of all that is above and to the left."""
    rows = total[:, side:] - total[:, :-side]
    found: F64 = rows[:, :, side:] - rows[:, :, :-side]
    return found
