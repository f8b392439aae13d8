"""From p-values to true, false, or no decision, with the reason."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from service.verdicts.conformal import discoveries, possible_discoveries

__all__ = ["REASONS", "alpha_reachable", "decide", "discovered", "fdr_notes"]

REASONS = {
    "not_calibrated": "the model, or this number of importance samples, has no calibration, so "
    "nothing says how usual a score is: GET /v1/models lists what has one",
    "non_finite": "an estimate or a statistic is no number",
    "alpha_too_small": "too few calibration images for a p-value as small as alpha: ask with a "
    "larger alpha, or calibrate on more",
    "altered": "the image was resized or converted, calibration images were not: a model of such "
    "images decides (`iafvae-train inspect FOLDER`)",
}


def alpha_reachable(alpha: float, images: int) -> bool:
    """Whether a p-value among so many calibration images can be at most `alpha`."""
    return 1.0 / (1.0 + images) <= alpha


def decide(
    p_values: NDArray[np.float64],
    finite: NDArray[np.bool_],
    altered: NDArray[np.bool_] | None,
    alpha: float,
    images: int | None,
) -> tuple[list[bool | None], list[str]]:
    """Whether each image is anomalous (None: no decision), and "ok" or a key of `REASONS`.

    finite: whether its estimates are numbers; altered: images that the calibration says nothing of;
    images: how many it has, None without one.
    """
    usual = "not_calibrated" if images is None else "ok"
    if images is not None and not alpha_reachable(alpha, images):
        usual = "alpha_too_small"
    changed = [False] * len(p_values) if altered is None else altered.tolist()
    verdicts: list[bool | None] = []
    statuses: list[str] = []
    for p, sound, other in zip(p_values.tolist(), finite.tolist(), changed, strict=True):
        known = usual != "ok" or not math.isnan(p)
        status = usual if sound and known else "non_finite"
        if other and usual == "ok":
            status = "altered"
        decided = not math.isnan(p) and usual == "ok" and status != "altered"
        verdicts.append(p <= alpha if decided else None)
        statuses.append(status)
    return verdicts, statuses


def discovered(p_values: NDArray[np.float64], fdr: float | None) -> list[bool | None]:
    """Benjamini and Hochberg's discoveries at `fdr`; None where none was asked for, or no p-value
    is there."""
    if fdr is None:
        return [None] * len(p_values)
    found = discoveries(p_values, fdr).tolist()
    return [None if math.isnan(p) else one for p, one in zip(p_values.tolist(), found, strict=True)]


def fdr_notes(n: int, fdr: float | None, images: int | None) -> tuple[str, ...]:
    """What a reader must know of discoveries among `n` images."""
    if fdr is None or images is None:
        return ()
    least = possible_discoveries(n, fdr, images)
    if least == 1:
        return ()
    smallest = f"the smallest p-value that {images} calibration images can give"
    if least > n:
        return (f"fdr={fdr:g} discovers nothing among {n} images: {smallest} is too large",)
    return (f"fdr={fdr:g} among {n} images discovers none unless {least} have {smallest}",)
