"""Noise version 2: Philox-4x64-10 and the Box-Muller transform in float32.

Words come from NumPy's implementation in C of the generator of Salmon, Moraes, Dror and Shaw (2011,
*Parallel Random Numbers: As Easy as 1, 2, 3*, SC'11, https://doi.org/10.1145/2063384.2063405),
whose streams NumPy promises to keep. Rows that follow each other (images 0, 1, 2 of a seed; samples
0, 1, 2 of an image) have counters that follow each other, so they are one call, made without the
interpreter's lock, and no row needs a generator object of its own.

Layout: the key is ``(seed, domain)``, domain = 2 * purpose + distribution. A row of B blocks (four
words of 64 bits) has the counters ``place * B + 1`` to ``place * B + B`` in words 0 and 1 of the
counter, and its group in word 2. For `Purpose.SAMPLE` the place is the stream and the group the
draw, for `Purpose.IMAGE` the other way round. A row's words are read as 32-bit ones, low
half first.

Bits of float32 `log`, `sin` and `cos` are the same on x86 processors from AVX2 on, where NumPy has
one algorithm for them; on others the last bit may differ.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["normal", "uniform"]

F32 = NDArray[np.float32]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

NORMAL, UNIFORM = 0, 1
BLOCK = 8  # 32-bit words
# So many words are made, and so many pairs transformed, at once: temporaries stay in the cache.
CHUNK_WORDS, CHUNK_PAIRS = 2**16, 2**14
ONE, TWO, LOW64 = np.uint64(1), np.uint64(2), 2**64 - 1


def normal(seed: ArrayLike, streams: U64, draws: ArrayLike, dim: int, purpose: ArrayLike) -> F32:
    """Standard normal noise, float32 ``[R, dim]``, by Box and Muller (1958).

    With P = ceil(dim / 2) pairs a row: ``r_j = sqrt(-2 ln((w_j + 1/2) / 2**32))``, ``a_j = 2 pi
    w_{P+j} / 2**32`` (as a signed number), ``eps_j = r_j cos a_j`` and ``eps_{P+j} = r_j sin a_j``.
    ``|eps| <= sqrt(66 ln 2) = 6.77``.
    """
    pairs = -(-dim // 2)
    noise = np.empty((len(streams), dim), dtype=np.float32)
    for rows, words in _words(seed, streams, draws, 2 * pairs, purpose, NORMAL):
        # Whole rows while they are short, pieces of one row where it is long.
        step = max(1, CHUNK_PAIRS // max(pairs, 1))
        for row in range(0, len(words), step):
            part = slice(row, row + step)
            _box_muller(words[part], pairs, noise[rows][part])
    return noise


def uniform(seed: ArrayLike, streams: U64, draws: ArrayLike, dim: int, purpose: ArrayLike) -> F32:
    """Uniform noise, float32 ``[R, dim]``: the top 24 bits of each word, in [0, 1)."""
    noise = np.empty((len(streams), dim), dtype=np.float32)
    for rows, words in _words(seed, streams, draws, dim, purpose, UNIFORM):
        part = noise[rows]
        part[:] = words[:, :dim] >> np.uint32(8)
        part *= np.float32(2.0**-24)
    return noise


def _box_muller(words: U32, pairs: int, out: F32) -> None:
    """Fill `out` ``[r, dim]`` from words ``[r, >= 2 * pairs]``."""
    dim = out.shape[1]
    for first in range(0, pairs, CHUNK_PAIRS):
        last = min(pairs, first + CHUNK_PAIRS)
        radius = words[:, first:last].astype(np.float32)
        radius += np.float32(0.5)
        radius *= np.float32(2.0**-32)
        np.log(radius, out=radius)
        radius *= np.float32(-2.0)
        np.sqrt(radius, out=radius)
        angle = words[:, pairs + first : pairs + last].view(np.int32).astype(np.float32)
        angle *= np.float32(2.0 * math.pi * 2.0**-32)
        np.multiply(radius, np.cos(angle), out=out[:, first:last])
        sines = out[:, pairs + first : min(dim, pairs + last)]
        kept = sines.shape[1]  # an odd row has one sine less
        np.multiply(radius[:, :kept], np.sin(angle[:, :kept]), out=sines)


def _words(
    seed: ArrayLike,
    streams: U64,
    draws: ArrayLike,
    count: int,
    purpose: ArrayLike,
    distribution: int,
) -> Iterator[tuple[slice, U32]]:
    """Pieces of the rows, each with its words uint32 ``[r, >= count]``, one after the other."""
    rows, blocks = len(streams), -(-count // BLOCK)
    places, groups, seeds, domains = _columns(seed, streams, draws, purpose, distribution)
    step = max(1, CHUNK_WORDS // (BLOCK * blocks))
    for first in range(0, rows, step):
        part = slice(first, min(rows, first + step))
        runs = _runs(places[part], groups[part], seeds[part], domains[part])
        yield part, _generate(runs, part.stop - first, blocks)


def _columns(
    seed: ArrayLike, streams: U64, draws: ArrayLike, purpose: ArrayLike, distribution: int
) -> tuple[U64, U64, U64, U64]:
    """Place, group, seed and domain of every row, uint64 ``[R]``."""
    seeds, drawn, purposes = (_column(each, len(streams)) for each in (seed, draws, purpose))
    places = np.where(purposes, drawn, streams)
    groups = np.where(purposes, streams, drawn)
    return places, groups, seeds, purposes * TWO + np.uint64(distribution)


def _column(values: ArrayLike, rows: int) -> U64:
    array = np.asarray(values, dtype=np.uint64)
    return array if array.ndim else np.full(rows, array)


Run = tuple[
    int, int, int, int, int
]  # number of rows, then of the first: place, group, seed, domain


def _runs(places: U64, groups: U64, seeds: U64, domains: U64) -> list[Run]:
    """Rows whose counters follow each other, together."""
    if len(places) == 1:
        return [(1, int(places[0]), int(groups[0]), int(seeds[0]), int(domains[0]))]
    new = (places[1:] != places[:-1] + ONE) | (places[1:] == 0)
    for column in (groups, seeds, domains):
        new |= column[1:] != column[:-1]
    starts = [0, *(np.flatnonzero(new) + 1).tolist()]
    sizes = np.diff(starts, append=len(places)).tolist()
    firsts = (column[starts].tolist() for column in (places, groups, seeds, domains))
    return list(zip(sizes, *firsts, strict=True))


def _generate(runs: list[Run], rows: int, blocks: int) -> U32:
    """Words uint32 ``[rows, BLOCK * blocks]`` of all runs in order."""
    if len(runs) == 1:
        words = _raw(runs[0], blocks)
    else:
        words = np.concatenate([_raw(run, blocks) for run in runs])
    return words.astype("<u8", copy=False).view("<u4").reshape(rows, BLOCK * blocks)


class _Local(threading.local):
    """A generator for each thread; every use sets all of its state."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(key=0)
        self.state: Any = self.philox.state


_local = _Local()


def _raw(run: Run, blocks: int) -> U64:
    """Words of one run, uint64. NumPy counts up before a block, hence blocks from 1."""
    size, place, group, seed, domain = run
    counter = place * blocks
    state = _local.state
    state["state"] = {
        "counter": np.array([counter & LOW64, counter >> 64, group, 0], dtype=np.uint64),
        "key": np.array([seed, domain], dtype=np.uint64),
    }
    _local.philox.state = state
    words: U64 = _local.philox.random_raw(4 * size * blocks)
    return words
