"""Areas under the ROC curve against counting all pairs, their errors against repeated samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.evaluate.ranks import auroc, two_sided


def by_counting(anomalous, usual):
    """O(m n): how often one is above the other, a tie counting half."""
    wins = [float(a > b) + 0.5 * float(a == b) for a in anomalous for b in usual]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("levels", [2, 5, 10**9])
def test_the_area_is_what_counting_all_pairs_gives(levels):
    generator = np.random.default_rng(levels)
    anomalous = generator.integers(0, levels, 41).astype(float)
    usual = generator.integers(0, levels, 30).astype(float) - levels / 5
    assert auroc(anomalous, usual).value == pytest.approx(by_counting(anomalous, usual), abs=1e-12)
    assert auroc(-anomalous, -usual).value == pytest.approx(
        1 - by_counting(anomalous, usual), abs=1e-12
    )


def test_infinite_scores_have_ranks_and_what_is_no_number_has_none():
    usual = np.array([-math.inf, 0.0, 1.0])
    assert auroc(np.array([math.inf]), usual).value == 1.0
    assert auroc(np.array([-math.inf]), usual).value == pytest.approx(1 / 6)
    with pytest.raises(ValueError, match="no number"):
        auroc(np.array([math.nan]), usual)
    with pytest.raises(ValueError, match="either kind"):
        auroc(np.array([]), usual)


def test_the_standard_error_is_the_spread_over_samples():
    generator = np.random.default_rng(1)
    areas = [
        auroc(generator.normal(0.7, 2.0, 60).round(1), generator.normal(0, 1, 90).round(1))
        for _ in range(600)
    ]
    spread = np.std([area.value for area in areas], ddof=1)
    stated = math.sqrt(np.mean([area.standard_error**2 for area in areas]))
    assert stated == pytest.approx(spread, rel=0.1)
    assert auroc(np.ones(1), np.zeros(5)).standard_error is None
    assert auroc(np.ones(4), np.zeros(5)).standard_error == 0.0


def test_two_sided_p_values_are_valid_and_small_on_both_sides():
    generator = np.random.default_rng(2)
    reference, scores = generator.normal(size=999), generator.normal(size=20_000)
    p = two_sided(scores, reference)
    for alpha in (0.01, 0.05, 0.2, 0.5):
        assert (p <= alpha).mean() == pytest.approx(alpha, rel=0.35)
    low, high, middle = two_sided(np.array([-9.0, 9.0, np.median(reference)]), reference)
    assert low == high == pytest.approx(2 / 1000)
    assert middle == 1.0
    assert (two_sided(np.ones(3), np.ones(7)) == 1.0).all()  # nothing but ties
