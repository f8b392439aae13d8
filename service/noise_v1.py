"""Noise version 1: Philox-4x32-10 in NumPy and the Box-Muller transform in float64.

Kept, byte for byte, for bundles whose manifest says 1: their calibration and everybody's seeded
answers rest on it. `service.noise` says what is a function of what.

Layout of a counter: word 0 is the block within the row, with the domain in its top four bits; word
1 the draw; words 2 and 3 the stream. The key is the seed.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.philox import philox4x32

__all__ = ["normal", "uniform"]

# Rows are computed in pieces of this many blocks, which keeps the temporaries in the cache.
CHUNK_BLOCKS = 8192
MAX_BLOCKS = 2**28
TWO, SHIFT, DOMAIN_SHIFT = np.uint64(2), np.uint64(32), np.uint64(28)

F32 = NDArray[np.float32]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]


class _Distribution(IntEnum):
    NORMAL = 0
    UNIFORM = 1


def normal(seed: ArrayLike, streams: U64, draws: ArrayLike, dim: int, purpose: ArrayLike) -> F32:
    """Standard normal noise, float32 ``[R, dim]``, by Box and Muller (1958) from 32-bit words.

    Computed in float64 and rounded once, so that processors whose ``log`` and ``cos`` differ in
    the last bit nearly always agree. ``|eps| <= sqrt(64 ln 2) = 6.66``.
    """
    return _rows(seed, streams, draws, dim, purpose, _Distribution.NORMAL)


def uniform(seed: ArrayLike, streams: U64, draws: ArrayLike, dim: int, purpose: ArrayLike) -> F32:
    """Uniform noise, float32 ``[R, dim]``: multiples of 2**-24 in [0, 1)."""
    return _rows(seed, streams, draws, dim, purpose, _Distribution.UNIFORM)


def _rows(
    seed: ArrayLike,
    streams: U64,
    draws: ArrayLike,
    dim: int,
    purpose: ArrayLike,
    distribution: _Distribution,
) -> F32:
    rows, blocks = len(streams), -(-dim // 4)
    if blocks > MAX_BLOCKS:
        raise ValueError(f"noise of {dim} dimensions does not fit its counter")
    shape_words = _normals if distribution is _Distribution.NORMAL else _uniforms
    domains = (np.asarray(purpose, dtype=np.uint64) * TWO + np.uint64(distribution)) << DOMAIN_SHIFT
    columns = [np.asarray(column, dtype=np.uint64) for column in (seed, streams, draws, domains)]
    if rows * blocks <= CHUNK_BLOCKS:
        return np.ascontiguousarray(shape_words(_words(columns, rows, 0, blocks))[:, :dim])
    noise = np.empty((rows, dim), dtype=np.float32)
    # Whole rows while they are small, pieces of one row where it is large.
    row_step = max(1, CHUNK_BLOCKS // max(blocks, 1))
    for row in range(0, rows, row_step):
        part = slice(row, min(rows, row + row_step))
        cut = [column[part] if column.ndim else column for column in columns]
        for first in range(0, blocks, CHUNK_BLOCKS):
            count = min(CHUNK_BLOCKS, blocks - first)
            values = shape_words(_words(cut, part.stop - part.start, first, count))
            end = min(dim, 4 * (first + count))
            noise[part, 4 * first : end] = values[:, : end - 4 * first]
    return noise


def _words(columns: list[U64], rows: int, first: int, count: int) -> U32:
    """Random words uint32 ``[4, rows, count]`` of blocks first, first + 1, ... of every row.

    columns: seeds, streams, draws and domains, ``[rows]`` each or one for all.
    """
    seeds, streams, draws, domains = columns
    even = np.empty((2, rows, count), dtype=np.uint32)
    odd = np.empty((2, rows, 1), dtype=np.uint32)
    key = np.empty((2, rows, 1), dtype=np.uint32)
    # Assignment to 32 bits keeps the low half; the transpose puts rows last, where columns are.
    even[0].T[:] = np.arange(first, first + count, dtype=np.uint64)[:, None] | domains
    even[1].T[:] = streams
    odd[0, :, 0] = draws
    odd[1, :, 0] = streams >> SHIFT
    key[0, :, 0] = seeds
    key[1, :, 0] = seeds >> SHIFT
    return philox4x32(even, odd, key)


def _uniforms(words: U32) -> F32:
    """uint32 ``[4, R, B]`` to float32 ``[R, 4 B]``: the top 24 bits of each word."""
    values = (words >> np.uint32(8)).astype(np.float32)
    values *= np.float32(2.0**-24)
    return values.transpose(1, 2, 0).reshape(words.shape[1], -1)


def _normals(words: U32) -> F32:
    """uint32 ``[4, R, B]`` to float32 ``[R, 4 B]``: two pairs by the Box-Muller transform.

    ``r = sqrt(-2 ln u1)``, ``eps = (r cos(2 pi u2), r sin(2 pi u2))`` with u1 in (0, 1], u2 in
    [0, 1).
    """
    radius = words[::2] + 1.0  # [2, R, B] float64
    radius *= 2.0**-32
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle = words[1::2] * (2.0 * math.pi * 2.0**-32)
    pairs = np.empty((words.shape[1], words.shape[2], 2, 2), dtype=np.float32)
    pairs[..., 0] = (radius * np.cos(angle)).transpose(1, 2, 0)
    pairs[..., 1] = (radius * np.sin(angle)).transpose(1, 2, 0)
    return pairs.reshape(words.shape[1], -1)
