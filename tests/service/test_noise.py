"""Noise against Philox in Python's integers, scipy's distributions, and itself cut up."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from service import noise
from service.noise import Purpose, image_keys, normal, uniform

# Random123's kat_vectors, lines "philox4x64 10": counter, key, expected words.
KNOWN = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (2**64 - 1,) * 4,
        (2**64 - 1,) * 2,
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
]
WORD64 = st.integers(0, 2**64 - 1)
DRAW = st.integers(0, 2**32 - 1)


def scalar_philox(counter, key):
    """Philox-4x64-10 of the paper, one block, in Python's own integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    low = 2**64
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 // low) ^ c1 ^ k0, p1 % low, (p0 // low) ^ c3 ^ k1, p0 % low
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) % low, (k1 + 0xBB67AE8584CAA73B) % low
    return c0, c1, c2, c3


def scalar_words(seed, stream, draw, purpose, distribution, count):
    """`count` 32-bit words of one row, by the layout that `service.noise` states."""
    place, group = (stream, draw) if purpose == Purpose.SAMPLE else (draw, stream)
    blocks = -(-count // 8)
    words = []
    for block in range(blocks):
        counter = place * blocks + block + 1
        key = (seed, 2 * purpose + distribution)
        for word in scalar_philox((counter % 2**64, counter >> 64, group, 0), key):
            words += [word % 2**32, word >> 32]
    return words[:count]


def test_known_answers_of_random123():
    for counter, key, expected in KNOWN:
        assert scalar_philox(counter, key) == expected


@settings(max_examples=30)
@given(WORD64, WORD64, DRAW, st.sampled_from(Purpose), st.integers(1, 33))
def test_layout_of_the_words(seed, stream, draw, purpose, dim):
    """Noise version 2 is this layout; changing it must change the version."""
    words = scalar_words(seed, stream, draw, purpose, 1, dim)
    got = uniform(seed, np.array([stream], dtype=np.uint64), draw, dim, purpose)
    assert got[0].tolist() == [(word >> 8) / 2**24 for word in words]


@pytest.mark.parametrize("dim", [1, 2, 7, 20])
def test_normal_is_box_muller_of_the_words(dim):
    pairs = -(-dim // 2)
    w = scalar_words(7, 9, 5, Purpose.IMAGE, 0, 2 * pairs)
    radius = [math.sqrt(-2.0 * math.log((word + 0.5) / 2**32)) for word in w[:pairs]]
    angle = [2.0 * math.pi * word / 2**32 for word in w[pairs:]]
    cosines = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
    sines = [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
    got = normal(7, np.array([9], dtype=np.uint64), 5, dim, Purpose.IMAGE)[0]
    np.testing.assert_allclose(got, (cosines + sines)[:dim], rtol=1e-5, atol=1e-6)


def numpy_words(seed, stream, draw, purpose, distribution, count):
    """`scalar_words` as NumPy's own generator gives them, a generator for each row."""
    place, group = (stream, draw) if purpose == Purpose.SAMPLE else (draw, stream)
    start = place * -(-count // 8)
    counter = np.array([start % 2**64, start >> 64, group, 0], dtype=np.uint64)
    key = np.array([seed, 2 * purpose + distribution], dtype=np.uint64)
    words = np.random.Philox(counter=counter, key=key).random_raw(-(-count // 8) * 4)
    return words.astype("<u8").view("<u4")[:count]


@settings(max_examples=40)
@given(st.data())
def test_many_rows_have_the_words_of_numpys_generator(data):
    """Runs of rows, strangers and both purposes in one batch."""
    rows, dim = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 70))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    seeds = np.sort(rng.integers(0, 3, rows, dtype=np.uint64))
    streams = np.uint64(data.draw(st.sampled_from([0, 2**63, 2**64 - 3])))
    streams = streams + np.sort(rng.integers(0, rows, rows, dtype=np.uint64))
    draws = np.arange(rows, dtype=np.uint64) + np.uint64(data.draw(st.sampled_from([0, 2**32 - 9])))
    purposes = rng.integers(0, 2, rows, dtype=np.uint64)
    got = uniform(seeds, streams, draws, dim, purposes)
    for r, key in enumerate(zip(seeds, streams, draws, purposes, strict=True)):
        words = numpy_words(*map(int, key), 1, dim)
        assert got[r].tolist() == [(int(word) >> 8) / 2**24 for word in words]


@settings(max_examples=40)
@given(st.data())
@pytest.mark.parametrize("generate", [normal, uniform])
def test_a_row_has_the_same_bytes_alone_and_in_company(generate, data):
    """Rows that follow each other are made together, strangers apart: nobody may notice."""
    rows = data.draw(st.integers(1, 40))
    dim = data.draw(st.integers(1, 70))
    few = data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    seeds = np.sort(rng.integers(0, few, rows, dtype=np.uint64))
    first = data.draw(st.sampled_from([0, 5, 2**64 - 3]))
    streams = np.uint64(first) + np.arange(rows, dtype=np.uint64)
    draws = np.sort(rng.integers(0, few, rows, dtype=np.uint64))
    purposes = rng.integers(0, 2, rows, dtype=np.uint64)
    whole = generate(seeds, streams, draws, dim, purposes)
    assert whole.dtype == np.float32
    for r in data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=4)):
        one = slice(r, r + 1)
        alone = generate(int(seeds[r]), streams[one], int(draws[r]), dim, int(purposes[r]))
        assert alone.tobytes() == whole[one].tobytes()


@pytest.mark.parametrize("generate", [normal, uniform])
def test_pieces_change_nothing(generate, monkeypatch):
    streams = np.arange(37, dtype=np.uint64)
    whole = generate(1, streams, 0, 501)
    monkeypatch.setattr(noise, "CHUNK_WORDS", 1024)
    monkeypatch.setattr(noise, "CHUNK_PAIRS", 48)
    assert generate(1, streams, 0, 501).tobytes() == whole.tobytes()


def test_threads_do_not_disturb_each_other():
    streams = np.arange(40, dtype=np.uint64)
    alone = [normal(seed, streams, 0, 999).tobytes() for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda seed: normal(seed, streams, 0, 999).tobytes(), range(24))
        assert list(together) == alone


def test_the_extreme_words_stay_finite():
    for word in (0, 2**31, 2**32 - 1):
        words = np.full((1, 2), word, dtype=np.uint32)
        out = np.empty((1, 2), dtype=np.float32)
        noise._box_muller(words, 1, out)
        assert np.isfinite(out).all()
        assert np.abs(out).max() <= 6.77


HASH = """
import hashlib, numpy as np
from service.noise import normal
noise = normal(3, np.arange(50, dtype=np.uint64), 0, 2001)
print(hashlib.sha256(noise.tobytes()).hexdigest())
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="NumPy's x86 dispatch is what is tested")
def test_bytes_do_not_depend_on_the_width_of_vectors():
    """Replicas on processors with and without AVX-512 agree."""
    from numpy._core._multiarray_umath import __cpu_features__ as features

    wide = [name for name in ("X86_V4", "AVX512_ICL", "AVX512_SPR") if features.get(name)]
    if not wide:
        pytest.skip("this processor has no AVX-512 that could be left out")
    hashes = set()
    for off in ("", " ".join(wide)):
        environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": off}
        command = [sys.executable, "-c", HASH]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        hashes.add(done.stdout)
    assert len(hashes) == 1


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
