"""A row's figure over its runs, for tables and pictures alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

__all__ = ["summary"]


def summary(row: Mapping[str, Any], measure: str, unit: str) -> dict[str, Any] | None:
    """A row's figure over its runs, `{"value", "error"}`; None: nothing is measured.

    The error is the standard deviation over the runs; of one run, the standard error over images.
    """
    figures = [_figure(run["measured"], measure, unit) for run in row["runs"] if run["measured"]]
    if not figures:
        return None
    if len(figures) == 1:
        value, error = figures[0]
        return {"value": value, "error": error}
    values = [value for value, _ in figures]
    return {"value": statistics.fmean(values), "error": statistics.stdev(values)}


def _figure(measured: Mapping[str, Any], measure: str, unit: str) -> tuple[float, float | None]:
    estimate, nats = measured[measure], measured[measure]["standard_error_nats"]
    if unit == "nats":
        return estimate["value_nats"], nats
    error = None if nats is None else nats / (measured["dims"] * math.log(2))
    return estimate["bits_per_dim"], error
