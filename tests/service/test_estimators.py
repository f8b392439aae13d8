"""Estimates from importance weights against scipy, and p-values against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from service.estimators import estimate, log_likelihoods

WEIGHTS = st.lists(
    st.lists(st.floats(-2000, 200, width=32), min_size=5, max_size=5), min_size=1, max_size=4
)


@settings(max_examples=50)
@given(WEIGHTS)
def test_against_scipy(rows):
    lw = np.array(rows, dtype=np.float32)
    got = estimate(lw)
    exact = lw.astype(np.float64)
    expected = special.logsumexp(exact, axis=1) - np.log(5)
    np.testing.assert_allclose(got.log_likelihood_nats, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(log_likelihoods(lw), got.log_likelihood_nats)
    np.testing.assert_allclose(got.elbo_nats, exact.mean(axis=1), rtol=1e-12, atol=1e-12)
    w = special.softmax(exact, axis=1)
    np.testing.assert_allclose(got.effective_sample_size, 1.0 / np.square(w).sum(axis=1), rtol=1e-9)
    np.testing.assert_allclose(
        got.standard_error_nats, stats.sem(w, axis=1) / w.mean(axis=1), rtol=1e-6, atol=1e-9
    )
    assert (got.elbo_nats <= got.log_likelihood_nats + 1e-9).all()


def test_delta_method_agrees_with_the_spread_over_repetitions():
    rng = np.random.default_rng(0)
    got = estimate(rng.normal(0.0, 0.5, (4000, 200)))
    spread = got.log_likelihood_nats.std()
    assert got.standard_error_nats.mean() == pytest.approx(spread, rel=0.05)


def test_one_sample_is_the_elbo_without_an_error():
    one = np.array([[-3.0], [np.nan]], dtype=np.float32)
    got = estimate(one)
    assert got.log_likelihood_nats[0] == got.elbo_nats[0] == -3.0
    np.testing.assert_array_equal(log_likelihoods(one), got.log_likelihood_nats)
    assert np.isnan(got.standard_error_nats).all()
    assert got.effective_sample_size.tolist() == [1.0, 1.0]
    assert got.finite.tolist() == [True, False]


def test_infinite_and_undefined_weights():
    inf = np.inf
    rows = [[0.0, -inf], [-inf, -inf], [np.nan, 0.0], [inf, 0.0], [1.0, 2.0]]
    got = estimate(np.array(rows, dtype=np.float32))
    assert got.log_likelihood_nats[0] == pytest.approx(-np.log(2))
    assert got.log_likelihood_nats[1] == -inf
    assert not np.isfinite(got.log_likelihood_nats[2:4]).any()
    assert got.finite.tolist() == [False] * 4 + [True]
    alone = log_likelihoods(np.array(rows, dtype=np.float32))
    np.testing.assert_array_equal(alone, got.log_likelihood_nats)


def test_errors_of_one_draw_alone_are_said_to_mean_nothing():
    even, alone = [0.0] * 16, [0.0] + [-50.0] * 15
    assert estimate(np.array([even])).notes == ()
    (note,) = estimate(np.array([even, alone])).notes
    assert "effective sample size is below 2" in note
    # Of two draws at three to one 16 / 10 counts, of two alike 2.
    assert estimate(np.log([[3.0, 1.0]])).notes == (note,)
    assert estimate(np.zeros((1, 2))).notes == ()
    assert estimate(np.zeros((1, 1))).notes == (), "where there is none, none is doubtful"
