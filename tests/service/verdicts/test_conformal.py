"""p-values against counting, thresholds against scipy's beta law, discoveries against scipy's."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from service.verdicts.conformal import (
    TwoSided,
    certified_alpha,
    discoveries,
    expected_rate,
    possible_discoveries,
    upper,
)

NUMBERS = st.floats(-100, 100, width=32)


@given(st.lists(NUMBERS, min_size=1), st.lists(NUMBERS))
def test_p_value_counts_the_reference_and_adds_one(reference, values):
    ordered = np.sort(np.array(reference, np.float32))
    wanted = [(1 + sum(r >= v for r in reference)) / (1 + len(reference)) for v in values]
    assert upper(np.array(values, np.float64), ordered).tolist() == pytest.approx(wanted)


@given(st.lists(NUMBERS, min_size=1), st.lists(NUMBERS, min_size=1))
def test_two_sided_is_twice_the_smaller_tail(reference, values):
    ordered = np.sort(np.array(reference, np.float32))
    high, low = upper(np.array(values), ordered), upper(-np.array(values), -ordered[::-1])
    (got,) = TwoSided(ordered[None])(np.array([values]))
    assert got.tolist() == np.minimum(1, 2 * np.minimum(high, low)).tolist()


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1), st.lists(st.tuples(NUMBERS, NUMBERS)))
def test_kinds_are_ranked_each_among_its_own(reference, values):
    kinds = np.sort(np.array(reference, np.float32).T, axis=1)
    asked = np.array(values).reshape(-1, 2).T
    pairs = zip(kinds, asked, strict=True)
    wanted = [TwoSided(kind[None])(each[None])[0] for kind, each in pairs]
    assert np.array_equal(TwoSided(kinds)(asked), wanted)


def test_two_sided_of_what_is_no_number_or_beyond_all():
    got = TwoSided(np.array([[-1, 0, 1], [5, 6, 7]], np.float32))
    found = got(np.array([[np.nan, -np.inf, 1e300, -0.0], [-np.nan, np.inf, -1e300, 6.0]]))
    assert np.isnan(found[:, 0]).all()
    assert found[:, 1:].tolist() == [[0.5, 0.5, 1.0], [0.5, 0.5, 1.0]]


def test_p_values_are_uniform_under_exchangeability():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 100))
    p = [upper(row[:1], np.sort(row[1:]).astype(np.float32))[0] for row in draws]
    for alpha in (0.01, 0.05, 0.5):
        hits = stats.binomtest(int(np.sum(np.array(p) <= alpha)), len(p), alpha)
        assert hits.pvalue > 1e-3


def test_p_values_that_cannot_be():
    got = upper(np.array([-np.inf, np.inf, np.nan]), np.arange(3, dtype=np.float32))
    assert got.tolist()[:2] == [1.0, 0.25]
    assert np.isnan(got[2])


@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("n", [5, 60, 300, 2500, 50_000])
def test_certified_alpha_is_the_beta_law_s(alpha, n):
    k = np.arange(1, n + 1)
    sound = k[stats.beta.cdf(alpha, k, n + 1 - k) >= 0.95]
    wanted = sound.max() / (n + 1) if len(sound) else None
    assert certified_alpha(alpha, n) == wanted


@given(st.integers(1, 400), st.floats(0.0, 1.0), st.booleans())
def test_expected_rate_is_the_share_of_p_values_that_are_called_anomalous(n, alpha, exact):
    possible = np.arange(1, n + 2) / (n + 1)  # all as likely
    alpha = float(possible[int(alpha * n)]) if exact else alpha
    assert expected_rate(alpha, n) == pytest.approx((possible <= alpha).mean(), abs=1e-12)


def test_2500_images_certify_one_percent_at_068():
    assert certified_alpha(0.01, 2500) == pytest.approx(0.0068, abs=5e-5)


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=60), st.floats(0.01, 0.5))
def test_discoveries_are_scipy_s(p, q):
    adjusted = stats.false_discovery_control(p, method="bh")
    clear = np.abs(adjusted - q) > 1e-9
    got = discoveries(np.array(p), q)
    assert got[clear].tolist() == (adjusted <= q)[clear].tolist()


@pytest.mark.parametrize("q", ["0.001", "0.01", "0.05", "0.07", "0.1", "0.3"])
@pytest.mark.parametrize("calibration", [99, 149, 499, 2499])
def test_discoveries_at_the_limit_are_those_of_fractions(q, calibration):
    """p-values and q r / n are often equal, and rounded apart."""
    for n in range(1, 250):
        least = max(1, math.ceil(n / (Fraction(q) * (calibration + 1))))
        assert possible_discoveries(n, float(q), calibration) == min(least, n + 1)
        for r in range(max(1, least - 1), min(n, least) + 1):
            p = np.ones(n)
            p[:r] = 1 / (calibration + 1)
            assert discoveries(p, float(q)).sum() == (r if r >= least else 0)


def test_what_has_no_p_value_is_never_discovered():
    assert discoveries(np.array([np.nan, 1e-6]), 0.1).tolist() == [False, True]
    # It is one of the two all the same, and the other has to be as small as for two.
    assert discoveries(np.array([np.nan, 0.08]), 0.1).tolist() == [False, False]
    assert discoveries(np.array([np.nan, 0.04]), 0.1).tolist() == [False, True]


def test_one_image_of_250_can_be_discovered_and_of_251_none():
    assert possible_discoveries(250, 0.1, 2500) == 1
    assert possible_discoveries(251, 0.1, 2500) == 2
    p = np.ones(251)
    p[0] = 1 / 2501
    assert not discoveries(p, 0.1).any()
    p[1] = 1 / 2501
    assert discoveries(p, 0.1).sum() == 2


@pytest.mark.parametrize("q", [0.25, 0.5])  # and sizes that are exact in floats
@pytest.mark.parametrize("calibration", [3, 7, 31])
def test_so_many_smallest_p_values_are_discovered_and_one_less_is_not(q, calibration):
    for n in range(1, 20):
        p = np.full((n + 1, n), 0.99)
        for least in range(n + 1):
            p[least, :least] = 1 / (calibration + 1)
        enough = [least for least in range(n + 1) if discoveries(p[least], q).any()]
        assert possible_discoveries(n, q, calibration) == min(enough, default=n + 1)


@pytest.mark.parametrize("q", [5e-324, 1e-320, 1e-300, 1e-9])
def test_a_share_that_nothing_reaches_asks_for_more_than_all(q):
    assert possible_discoveries(20, q, 2500) == 21
    assert not discoveries(np.full(20, 1 / 2501), q).any()
