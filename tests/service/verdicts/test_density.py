"""Marginals against scipy's quantiles, distances against scikit-learn's neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from service.verdicts.density import DEVIATIONS, FARTHEST, KNOTS, Marginals, Neighbours

RNG = np.random.default_rng(0)
USUAL = np.column_stack(
    [
        RNG.exponential(size=3000),
        RNG.normal(size=3000) ** 3,
        RNG.integers(0, 9, 3000),
        np.ones(3000),
    ]
)


def test_knots_are_the_normal_quantiles():
    np.testing.assert_allclose(DEVIATIONS, stats.norm.ppf(KNOTS), atol=1e-7)


def test_marginals_become_normal():
    z = Marginals(USUAL)(USUAL)
    assert stats.kstest(z[:, 0], "norm").statistic < 0.02
    assert np.abs(z[:, 3]).max() < 4  # a constant is usual as it is
    assert np.abs(Marginals(USUAL)(USUAL + 0.01)[:, 3]).min() == FARTHEST


def test_beyond_the_last_knot_they_go_on_and_end():
    marginals = Marginals(USUAL)
    rows = np.tile(USUAL.max(axis=0), (3, 1)) * np.array([[1.0], [3.0], [1e9]])
    far = marginals(rows)[:, 0]
    assert far[0] < far[1] < far[2] == FARTHEST
    assert np.isfinite(marginals(-rows)).all()


def test_a_tail_goes_on_as_the_line_through_its_last_five_knots():
    knots = np.quantile(USUAL[:, 0], KNOTS)
    for end, fifth, beyond in ((0, 4, -0.01), (-1, -5, 2.0)):
        row = USUAL[:1].copy()
        row[0, 0] = knots[end] + beyond
        slope = (stats.norm.ppf(KNOTS[fifth]) - stats.norm.ppf(KNOTS[end])) / (
            knots[fifth] - knots[end]
        )
        wanted = stats.norm.ppf(KNOTS[end]) + beyond * slope
        assert Marginals(USUAL)(row)[0, 0] == pytest.approx(wanted, rel=1e-5)


def test_infinite_is_farthest_and_no_number_stays_none():
    row = USUAL[:1].copy()
    row[0, 0] = -np.inf
    near = Neighbours(USUAL)
    assert near(row)[0] > near(USUAL).max()
    row[0, 0] = np.nan
    assert np.isnan(near(row)[0])


@pytest.mark.parametrize(("count", "nearest"), [(500, 10), (50, 10), (30, 6), (8, 1)])
def test_distances_are_the_mean_of_the_nearest_whitened_rows(count, nearest):
    """Of ten, or of a fifth where there are few."""
    neighbors = pytest.importorskip("sklearn.neighbors")
    fit, asked = USUAL[:count], USUAL[500:540]
    marginals = Marginals(fit)
    z = marginals(fit)
    covariance = np.cov(z.T) + 0.01 * np.eye(4)
    root = np.linalg.cholesky(np.linalg.inv(covariance))  # any root of the inverse gives the same
    near = neighbors.NearestNeighbors(n_neighbors=nearest).fit(z @ root)
    found, _ = near.kneighbors(marginals(asked) @ root)
    np.testing.assert_allclose(Neighbours(fit)(asked), np.square(found).mean(axis=1), rtol=1e-6)


def test_the_largest_deviation_is_added_with_its_weight():
    largest = np.square(Marginals(USUAL)(USUAL[:20])).max(axis=1)
    near, tailed = Neighbours(USUAL)(USUAL[:20]), Neighbours(USUAL, 0.5)(USUAL[:20])
    np.testing.assert_allclose(tailed, near + 0.5 * largest, rtol=1e-12)


def test_a_row_is_judged_alike_alone_and_in_company():
    near = Neighbours(USUAL)
    together = near(USUAL[:20])
    alone = np.concatenate([near(row[None]) for row in USUAL[:20]])
    np.testing.assert_allclose(alone, together, rtol=1e-9, atol=1e-12)
