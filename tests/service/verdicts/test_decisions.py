"""Decisions: true, false, or none with the reason."""

from __future__ import annotations

import numpy as np
import pytest

from service.verdicts.decisions import decide

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
