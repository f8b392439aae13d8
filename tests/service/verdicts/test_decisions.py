"""Decisions: true, false, or none with the reason."""

from __future__ import annotations

import numpy as np
import pytest

from service.verdicts.conformal import discoveries
from service.verdicts.decisions import decide, discovered, fdr_notes

P = np.array([0.001, 0.5, np.nan, 0.5, 0.001])
FINITE = np.array([True, True, True, False, True])
ALTERED = np.array([False, False, False, False, True])


@pytest.mark.parametrize(
    ("alpha", "images", "verdicts", "statuses"),
    [
        (
            0.01,
            2500,
            [True, False, None, False, None],
            ["ok", "ok", "non_finite", "non_finite", "altered"],
        ),
        (1e-4, 2500, [None] * 5, [*["alpha_too_small"] * 3, "non_finite", "alpha_too_small"]),
        (0.01, None, [None] * 5, [*["not_calibrated"] * 3, "non_finite", "not_calibrated"]),
    ],
)
def test_no_decision_has_its_reason(alpha, images, verdicts, statuses):
    """Also where the score is a number but a statistic is none, so that there is no p-value."""
    assert decide(P, FINITE, ALTERED, alpha, images) == (verdicts, statuses)


def test_a_p_value_that_is_alpha_is_anomalous():
    """Of 99 calibration images the smallest is 0.01: all that alpha = 0.01 can ever find."""
    p = np.array([1 / 100, 2 / 100])
    assert decide(p, np.ones(2, bool), None, 0.01, 99) == ([True, False], ["ok", "ok"])
    assert decide(p, np.ones(2, bool), None, 0.01, 98)[1] == ["alpha_too_small"] * 2


@pytest.mark.parametrize(("n", "said"), [(250, 1), (251, 2), (5000, 20), (200, 1)])
def test_the_note_says_how_many_it_takes_for_a_discovery(n, said):
    """One fewer of the smallest p-values that there are, and nothing is discovered."""
    p = np.ones(n)
    p[:said] = 1 / 2501
    assert discoveries(p, 0.1)[:said].all()
    p[said - 1] = 1.0
    assert not discoveries(p, 0.1).any()
    notes = fdr_notes(n, 0.1, 2500)
    assert notes == () if said == 1 else f"unless {said} have" in notes[0]


def test_where_it_takes_all_images_the_note_does_not_say_that_none_can_be():
    p = np.full(3, 1 / 100)
    assert discoveries(p, 0.01).all()
    assert "unless 3 have" in fdr_notes(3, 0.01, 99)[0]
    assert not discoveries(p, 0.009).any()
    assert "discovers nothing among 3 images" in fdr_notes(3, 0.009, 99)[0]


def test_nothing_is_said_of_discoveries_that_nobody_asked_for():
    assert fdr_notes(300, None, 99) == fdr_notes(300, 0.01, None) == ()
    assert discovered(P, None) == [None] * 5
    assert discovered(P, 0.1) == [True, False, None, False, True]
