"""Noise as a function of what it is for: a seed, a stream (which image) and a draw (which sample).

Row r of every array depends on ``(seed[r], streams[r], draws[r], purpose[r])`` and its length
alone, so the same request has the same noise alone, in a crowd, split over batches or on another
replica. Calibrated scores and seeded answers hold for one way of making it, `NOISE_VERSION`, which
a bundle's manifest states.

Words come from Philox-4x64-10, the counter-based generator of Salmon, Moraes, Dror and Shaw (2011,
*Parallel Random Numbers: As Easy as 1, 2, 3*, SC'11, https://doi.org/10.1145/2063384.2063405), in
NumPy's implementation in C, whose streams NumPy promises to keep. Rows that follow each other
(images 0, 1, 2 of a seed; samples 0, 1, 2 of an image) have counters that follow each other, so
they are one call, and no row needs a generator object of its own. (Philox in NumPy's integers, all
rows in one expression, was measured: slower at every number of rows.)

Layout: the key is ``(seed, domain)``, domain = 2 * purpose + distribution. A row of B blocks (four
words of 64 bits) has the counters ``place * B + 1`` to ``place * B + B`` in words 0 and 1 of the
counter, and its group in word 2. For `Purpose.SAMPLE` the place is the stream and the group the
draw, for the others the other way round. A row's words are read as 32-bit ones, low
half first.

Bits of float32 `log`, `sin` and `cos` are the same on x86 processors from AVX2 on, where NumPy has
one algorithm for them; on others the last bit may differ.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["NOISE_VERSION", "Normal", "Purpose", "image_keys", "normal", "uniform"]

NOISE_VERSION = 2

F32 = NDArray[np.float32]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

NORMAL, UNIFORM = 0, 1
BLOCK = 8  # 32-bit words
# So many words are made, and so many pairs transformed, at once: temporaries stay in the cache.
CHUNK_WORDS, CHUNK_PAIRS = 2**16, 2**14
SHARED_NUMBERS = 2**18  # fewer are made sooner by one thread


class Purpose(IntEnum):
    """What the noise is for: streams of different purposes never meet."""

    SAMPLE = 0  # streams are positions: image 0, 1, 2, ... of a request
    IMAGE = 1  # streams are `image_keys`: noise that belongs to an image
    PIXELS = 2  # the same: which of an image's grey pixels a binary model sees as white


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


class Normal:
    """Standard normal noise by Box and Muller (1958), the same bytes by any number of `threads`: a
    GPU computes sooner than one makes noise for it.

    With P = ceil(dim / 2) pairs a row: ``r_j = sqrt(-2 ln((w_j + 1/2) / 2**32))``, ``a_j = 2 pi
    w_{P+j} / 2**32`` (as a signed number), ``eps_j = r_j cos a_j`` and ``eps_{P+j} = r_j sin a_j``.
    ``|eps| <= sqrt(66 ln 2) = 6.764``.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "noise")  # starts none before there is work

    def __call__(
        self,
        seed: ArrayLike,
        streams: U64,
        draws: ArrayLike,
        dim: int,
        purpose: ArrayLike = Purpose.SAMPLE,
    ) -> F32:
        """Float32 ``[R, dim]``. seed, draws: integers or arrays ``[R]``, from 0 to 2**64 - 1 and
        2**32 - 1; streams: uint64 ``[R]``; purpose: one or ``[R]``."""
        rows = len(streams)
        noise = np.empty((rows, dim), dtype=np.float32)
        if self._threads == 1 or rows * dim < SHARED_NUMBERS:
            _fill(noise, seed, streams, draws, purpose)
            return noise
        given = (np.asarray(each, dtype=np.uint64) for each in (seed, streams, draws, purpose))
        columns = [np.broadcast_to(each, rows) for each in given]
        ends = [rows * part // self._threads for part in range(self._threads + 1)]
        parts = [slice(a, b) for a, b in itertools.pairwise(ends) if a < b]
        work = [(noise[part], *(column[part] for column in columns)) for part in parts]
        list(self._pool.map(lambda arguments: _fill(*arguments), work))
        return noise


normal = Normal(1)


def _fill(noise: F32, seed: ArrayLike, streams: U64, draws: ArrayLike, purpose: ArrayLike) -> None:
    dim = noise.shape[1]
    pairs = -(-dim // 2)
    for rows, words in _words(seed, streams, draws, 2 * pairs, purpose, NORMAL):
        # Whole rows while they are short, pieces of one row where it is long.
        step = max(1, CHUNK_PAIRS // max(pairs, 1))
        for row in range(0, len(words), step):
            part = slice(row, row + step)
            _box_muller(words[part], pairs, noise[rows][part])


def uniform(
    seed: ArrayLike, streams: U64, draws: ArrayLike, dim: int, purpose: ArrayLike = Purpose.SAMPLE
) -> F32:
    """Uniform noise, float32 ``[R, dim]``: the top 24 bits of each word, multiples of 2**-24 in
    [0, 1). Arguments as `normal`'s."""
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


Row = tuple[int, int, int, int]  # place, group, seed, domain


def _words(
    seed: ArrayLike,
    streams: U64,
    draws: ArrayLike,
    count: int,
    purpose: ArrayLike,
    distribution: int,
) -> Iterator[tuple[slice, U32]]:
    """Pieces of the rows, each with its words uint32 ``[r, >= count]``, one after the other."""
    rows, blocks = _rows(seed, streams, draws, purpose, distribution), -(-count // BLOCK)
    step = max(1, CHUNK_WORDS // (BLOCK * blocks))
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        words = np.concatenate([_local.raw(run, size, blocks) for run, size in _runs(part)])
        words = words.astype("<u8", copy=False).view("<u4")
        yield slice(first, first + len(part)), words.reshape(len(part), BLOCK * blocks)


def _rows(
    seed: ArrayLike, streams: U64, draws: ArrayLike, purpose: ArrayLike, distribution: int
) -> list[Row]:
    """Place, group, seed and domain of every row. Python's integers: most batches are small, and
    on a few numbers an array's operation costs as much as on a thousand."""
    columns = (_column(each, len(streams)) for each in (streams, draws, seed, purpose))
    return [
        (draw, stream, key, 2 * of + distribution) if of else (stream, draw, key, distribution)
        for stream, draw, key, of in zip(*columns, strict=True)
    ]


def _column(values: ArrayLike, rows: int) -> list[int]:
    column = np.asarray(values, dtype=np.uint64).tolist()
    return column if isinstance(column, list) else [column] * rows


def _runs(rows: list[Row]) -> list[tuple[Row, int]]:
    """The first of rows whose counters follow each other, and how many they are."""
    runs: list[tuple[Row, int]] = []
    first, size, following = rows[0], 0, rows[0]
    for row in rows:
        if row != following:
            runs.append((first, size))
            first, size = row, 0
        size += 1
        following = (row[0] + 1, *row[1:])
    return [*runs, (first, size)]


class _Local(threading.local):
    """A generator for each thread; every use sets all of its state."""

    def __init__(self) -> None:
        self._philox = np.random.Philox(key=0)
        self._state: Any = self._philox.state
        self._counter = self._state["state"]["counter"] = np.zeros(4, np.uint64)
        self._key = self._state["state"]["key"] = np.zeros(2, np.uint64)

    def raw(self, first: Row, rows: int, blocks: int) -> U64:
        """Words of a run of rows. NumPy counts up before a block, hence blocks from 1."""
        place, group, self._key[0], self._key[1] = first
        self._counter[1], self._counter[0] = divmod(place * blocks, 2**64)
        self._counter[2] = group
        self._philox.state = self._state
        words: U64 = self._philox.random_raw(4 * rows * blocks)
        return words


_local = _Local()
