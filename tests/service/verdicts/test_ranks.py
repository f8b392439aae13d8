"""Figures of detection against scikit-learn, their intervals against a known law."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from service.verdicts.ranks import detection, pooled_detection


@pytest.mark.parametrize("levels", [2, 5, 10**9])
def test_figures_are_those_of_scikit_learn(levels):
    generator = np.random.default_rng(levels)
    anomalous = generator.integers(0, levels, 41).astype(float)
    usual = generator.integers(0, levels, 30).astype(float) - levels / 5
    labels, scores = np.repeat([1, 0], [41, 30]), np.concatenate([anomalous, usual])
    rate, recall, _ = roc_curve(labels, scores, drop_intermediate=False)
    found = detection(anomalous, usual)
    assert found["auroc"].value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found["aupr"].value == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert found["fpr95"].value == pytest.approx(rate[np.argmax(recall >= 0.95)], abs=1e-12)
    back = detection(-anomalous, -usual)["auroc"].value
    assert back == pytest.approx(1 - found["auroc"].value, abs=1e-12)


def test_a_recall_of_19_in_20_is_enough():
    usual = np.array([0.0, 1.5])
    assert detection(np.arange(1.0, 21.0), usual)["fpr95"].value == 0.0
    assert detection(np.arange(1.0, 20.0), usual)["fpr95"].value == 0.5  # of 19 all are needed


def test_infinite_scores_have_ranks_and_what_is_no_number_has_none():
    usual = np.array([-math.inf, 0.0, 1.0])
    assert detection(np.array([math.inf]), usual)["auroc"].value == 1.0
    lowest = detection(np.array([-math.inf]), usual)["auroc"]
    assert lowest.value == pytest.approx(1 / 6)
    assert lowest.interval is None  # of a single image
    with pytest.raises(ValueError, match="no number"):
        detection(np.array([math.nan]), usual)
    with pytest.raises(ValueError, match="either kind"):
        detection(np.array([]), usual)


def test_intervals_hold_the_true_area_about_as_often_as_they_say():
    """Of two Gaussians it is known: Phi(difference / deviation of the difference)."""
    generator = np.random.default_rng(1)
    truth = 0.5 * (1 + math.erf(0.7 / math.sqrt(2.0**2 + 1) / math.sqrt(2)))
    inside = 0
    for _ in range(300):
        anomalous, usual = generator.normal(0.7, 2.0, 60), generator.normal(0, 1, 90)
        low, high = detection(anomalous, usual, resamples=200)["auroc"].interval
        inside += low <= truth <= high
    assert 0.90 <= inside / 300 <= 0.98


def test_resampling_in_parts_is_resampling_and_repeats_itself(monkeypatch):
    generator = np.random.default_rng(3)
    anomalous, usual = generator.normal(1, 1, 200), generator.normal(0, 1, 100)
    whole = detection(anomalous, usual)
    assert detection(anomalous, usual) == whole
    monkeypatch.setattr("service.verdicts.ranks.AT_ONCE", 1000)
    for name, figure in detection(anomalous, usual).items():
        assert figure.value == whole[name].value
        assert figure.interval == pytest.approx(whole[name].interval, abs=0.03)
    apart = detection(np.ones(4), np.zeros(5))
    assert {name: (f.value, f.interval) for name, f in apart.items()} == {
        "auroc": (1.0, (1.0, 1.0)),
        "aupr": (1.0, (1.0, 1.0)),
        "fpr95": (0.0, (0.0, 0.0)),
    }


def test_pixels_of_all_images_are_ranked_together():
    generator = np.random.default_rng(0)
    masks = np.zeros((6, 8, 9), bool)
    masks[:4, 2:5, 3:6] = True
    scores = generator.normal(masks * 1.5, 1.0)
    found = pooled_detection(scores, masks)
    assert found.value == pytest.approx(roc_auc_score(masks.ravel(), scores.ravel()), abs=2e-3)
    assert found.interval[0] < found.value < found.interval[1]
    with pytest.raises(ValueError, match="either kind"):
        pooled_detection(scores, np.ones_like(masks))
