"""Noise as a function of what it is for: a seed, a stream (which image) and a draw (which sample).

Row r of every array depends on ``(seed[r], streams[r], draws[r], purpose[r])`` and its length
alone, so the same request has the same noise alone, in a crowd, split over batches or on another
replica. Nothing here has state.

How it is made has a version, which a bundle's manifest states: calibrated scores and seeded answers
hold for one version only. New bundles get `NOISE_VERSION`; older ones are served with theirs.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service import noise_v1, noise_v2

__all__ = ["NOISE_VERSION", "NOISE_VERSIONS", "Purpose", "image_keys", "normal", "uniform"]

VERSIONS = {1: noise_v1, 2: noise_v2}
NOISE_VERSIONS = tuple(VERSIONS)
NOISE_VERSION = 2

F32 = NDArray[np.float32]
U64 = NDArray[np.uint64]


class Purpose(IntEnum):
    """What the noise is for: streams of different purposes never meet."""

    SAMPLE = 0  # streams are positions: image 0, 1, 2, ... of a request
    IMAGE = 1  # streams are `image_keys`: noise that belongs to an image


def image_keys(images: NDArray[np.uint8]) -> U64:
    """One key an image, uint64 ``[N]``: BLAKE2b-64 of its pixels and shape.

    images: uint8 ``[N, C, H, W]``. Equal images have equal keys wherever they stand.
    """
    shape = struct.pack("<4I", *images.shape[1:], 0)
    base = hashlib.blake2b(digest_size=8, person=shape)
    digests = bytearray()
    for image in np.ascontiguousarray(images):
        state = base.copy()
        state.update(image)
        digests += state.digest()
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def normal(
    seed: ArrayLike,
    streams: U64,
    draws: ArrayLike,
    dim: int,
    purpose: ArrayLike = Purpose.SAMPLE,
    *,
    version: int = NOISE_VERSION,
) -> F32:
    """Standard normal noise, float32 ``[R, dim]``.

    seed, draws: integers or arrays ``[R]``, from 0 to 2**64 - 1 and 2**32 - 1; streams: uint64
    ``[R]``; purpose: one or ``[R]``; version: one of `NOISE_VERSIONS`.
    """
    noise: F32 = VERSIONS[version].normal(seed, streams, draws, dim, purpose)
    return noise


def uniform(
    seed: ArrayLike,
    streams: U64,
    draws: ArrayLike,
    dim: int,
    purpose: ArrayLike = Purpose.SAMPLE,
    *,
    version: int = NOISE_VERSION,
) -> F32:
    """Uniform noise, float32 ``[R, dim]``: multiples of 2**-24 in [0, 1). Arguments as
    `normal`'s."""
    noise: F32 = VERSIONS[version].uniform(seed, streams, draws, dim, purpose)
    return noise
