"""Noise version 1: Philox-4x32 against the published vectors, and bytes that bundles rest on."""

from __future__ import annotations

import hashlib
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import noise_v1
from service.noise import Purpose, normal, uniform
from service.noise_v1 import CHUNK_BLOCKS
from service.philox import philox4x32

normal, uniform = partial(normal, version=1), partial(uniform, version=1)

# Random123's kat_vectors, lines "philox4x32 10": counter, key, expected words.
KNOWN = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
WORD = st.integers(0, 2**32 - 1)
SEED = st.integers(0, 2**64 - 1)


def scalar_philox(counter, key):
    """The algorithm of the paper, one block, in Python's own integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def blocks(counters, keys):
    c = np.array(counters, dtype=np.uint32).T
    words = philox4x32(c[::2].copy(), c[1::2].copy(), np.array(keys, dtype=np.uint32).T)
    return [tuple(int(word) for word in column) for column in words.T]


def test_known_answers_of_random123():
    counters, keys, expected = zip(*KNOWN, strict=True)
    assert blocks(counters, keys) == list(expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[WORD] * 4, WORD, WORD), min_size=1, max_size=9))
def test_vectorised_blocks_equal_the_algorithm_in_integers(rows):
    counters, keys = [row[:4] for row in rows], [row[4:] for row in rows]
    assert blocks(counters, keys) == [
        scalar_philox(c, k) for c, k in zip(counters, keys, strict=True)
    ]


@settings(max_examples=20, deadline=None)
@given(SEED, st.integers(0, 2**64 - 1), WORD, st.integers(1, 21))
def test_layout_of_the_counter(seed, stream, draw, dim):
    """Noise version 1 is this layout; changing it must change the version."""
    key = (seed % 2**32, seed >> 32)
    words = []
    for block in range(-(-dim // 4)):
        domain = (Purpose.IMAGE * 2 + 1) << 28
        words += scalar_philox((block | domain, draw, stream % 2**32, stream >> 32), key)
    got = uniform(seed, np.array([stream], dtype=np.uint64), draw, dim, Purpose.IMAGE)
    assert got[0].tolist() == [(word >> 8) / 2**24 for word in words[:dim]]


def test_normal_is_box_muller_of_the_words():
    w = scalar_philox((0, 5, 9, 0), (7, 0))
    expected = []
    for a, b in (w[:2], w[2:]):
        radius = math.sqrt(-2.0 * math.log((a + 1) / 2**32))
        angle = 2.0 * math.pi * b / 2**32
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    got = normal(7, np.array([9], dtype=np.uint64), 5, 4)[0]
    np.testing.assert_allclose(got, np.array(expected), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.data())
@pytest.mark.parametrize("generate", [normal, uniform])
def test_a_row_has_the_same_bytes_alone_and_in_company(generate, data):
    rows = data.draw(st.integers(1, 40))
    dim = data.draw(st.integers(1, 70))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    seeds = rng.integers(0, 2**64, rows, dtype=np.uint64)
    streams = rng.integers(0, 2**64, rows, dtype=np.uint64)
    draws = rng.integers(0, 2**32, rows, dtype=np.uint64)
    purposes = rng.integers(0, 2, rows, dtype=np.uint64)
    whole = generate(seeds, streams, draws, dim, purposes)
    assert whole.dtype == np.float32
    for r in data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=4)):
        one = slice(r, r + 1)
        alone = generate(int(seeds[r]), streams[one], int(draws[r]), dim, int(purposes[r]))
        assert alone.tobytes() == whole[one].tobytes()


@pytest.mark.parametrize("generate", [normal, uniform])
def test_long_rows_are_the_same_in_pieces(generate):
    dim = 4 * CHUNK_BLOCKS + 6
    streams = np.arange(3, dtype=np.uint64)
    whole = generate(1, streams, 0, dim)
    short = generate(1, streams, 0, 50)
    assert np.array_equal(whole[:, :50], short)
    assert not np.array_equal(whole[:, -6:], whole[:, :6])


@pytest.mark.parametrize(
    ("generate", "digest"), [(normal, "af4d4d6d9947dcf1"), (uniform, "03ad97b3193e9c0a")]
)
def test_recorded_bytes(generate, digest):
    """What version 1 made when the first bundles were exported."""
    streams = np.array([0, 1, 2**40 + 3], dtype=np.uint64)
    purposes = np.array([0, 1, 1], dtype=np.uint64)
    noise = generate(2**33 + 5, streams, np.array([0, 7, 2**31]), 1001, purposes)
    assert hashlib.sha256(noise.tobytes()).hexdigest()[:16] == digest


def test_the_extreme_words_stay_finite_and_below_one():
    for word in (0, 2**32 - 1):
        words = np.full((4, 1, 1), word, dtype=np.uint32)
        assert np.isfinite(noise_v1._normals(words)).all()
        assert (noise_v1._uniforms(words) < 1.0).all()
