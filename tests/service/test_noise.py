"""Philox against the published vectors, noise against scipy's distributions, and against itself
cut up.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from service.noise import CHUNK_BLOCKS, Purpose, image_keys, normal, uniform
from service.philox import philox4x32

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
    assert len(np.unique(whole[0])) > 0.99 * len(np.unique(whole[0].astype(np.float64)))
    assert not np.array_equal(whole[:, -6:], whole[:, :6])


@pytest.mark.parametrize(("generate", "law"), [(normal, "norm"), (uniform, "uniform")])
def test_distributions(generate, law):
    """Kolmogorov-Smirnov tests of 40 seeds, whose p-values must themselves be uniform."""
    streams = np.arange(100, dtype=np.uint64)
    noise = [generate(s, streams, 0, 200).ravel().astype(np.float64) for s in range(40)]
    p = [stats.kstest(values, law).pvalue for values in noise]
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    pooled = np.concatenate(noise)
    expected = stats.norm() if law == "norm" else stats.uniform()
    assert pooled.mean() == pytest.approx(expected.mean(), abs=5e-3)
    assert pooled.var() == pytest.approx(expected.var(), rel=1e-2)
    assert abs(stats.kurtosis(pooled) - expected.stats("k")) < 0.03


def test_the_extreme_words_stay_finite_and_below_one():
    import service.noise as module

    for word in (0, 2**32 - 1):
        words = np.full((4, 1, 1), word, dtype=np.uint32)
        assert np.isfinite(module._normals(words)).all()
        assert (module._uniforms(words) < 1.0).all()


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"seed": 2**32},
        {"streams": 1},
        {"streams": 2**32},
        {"draws": 1},
        {"purpose": Purpose.IMAGE},
    ],
)
def test_seeds_streams_draws_and_purposes_are_independent(other):
    base = {"seed": 0, "streams": 0, "draws": 0, "purpose": Purpose.SAMPLE}

    def eps(changes):
        a = {**base, **changes}
        streams = np.array([a["streams"]], dtype=np.uint64)
        return normal(a["seed"], streams, a["draws"], 4000, a["purpose"])[0].astype(np.float64)

    r = stats.pearsonr(eps({}), eps(other)).statistic
    assert abs(r) < 0.06  # four standard errors


def test_normal_and_uniform_do_not_share_words():
    streams = np.zeros(1, dtype=np.uint64)
    eps, u = normal(0, streams, 0, 4000)[0], uniform(0, streams, 0, 4000)[0]
    assert abs(stats.spearmanr(eps, u).statistic) < 0.06


def test_image_keys_are_blake2b_of_pixels_and_shape():
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 4, 6), dtype=np.uint8)
    person = np.array([1, 4, 6, 0], dtype="<u4").tobytes()
    expected = [
        int.from_bytes(
            hashlib.blake2b(i.tobytes(), digest_size=8, person=person).digest(), "little"
        )
        for i in images
    ]
    assert image_keys(images).tolist() == expected
    assert image_keys(images[::-1]).tolist() == expected[::-1]  # also where not contiguous
    assert image_keys(images[:, :, :, ::2][:, :, :, :3]).dtype == np.uint64
    reshaped = images.reshape(3, 1, 6, 4)
    assert not set(image_keys(reshaped).tolist()) & set(expected)
