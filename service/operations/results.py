"""What operations give: arrays, the options that were in force, and the time it took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.verdicts.reference import Box

__all__ = ["AnomalyMaps", "Images", "Latents", "LogLikelihoods", "Rendered", "Result", "Scores"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """What every answer says.

    queue_seconds, compute_seconds: that its rows waited, and that its batches took (shared ones in
    whole); seed: of the noise, None where none was used; resolved: the options in force, with what
    stood in for those that were left out, as JSON holds them; notes: what a reader must know.
    """

    queue_seconds: float
    compute_seconds: float
    seed: int | None = None
    resolved: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Images(Result):
    """uint8 ``[n, C, H, W]``; `finite` ``[n]``: whether the means they show were numbers (if not,
    pixels are 0).
    """

    images: NDArray[np.uint8]
    finite: NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class Rendered(Result):
    """Means as pixels, drawn pixels, and means in [0, 1]: ``[n, C, H, W]`` each; `finite` ``[n]``:
    whether the means are numbers.
    """

    images: NDArray[np.uint8]
    draw: NDArray[np.uint8]
    mean: F32
    finite: NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class Latents(Result):
    """Float32 ``[n, D]``: latents, and the prior noise that gives them."""

    latents: F32
    prior_eps: F32


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores(Result):
    """Float64 ``[n]`` but for `kl_nats` (``[n, G]``) and lists.

    standard_error_nats is no number at one importance sample, p_value where that many
    were not calibrated. anomalous: None where no decision is possible, for the reason in `status`,
    "ok" or a key of `service.verdicts.decisions.REASONS`; discovery: with `fdr` alone; evidence:
    the p-value ``[n]`` of each statistic, by name.
    """

    log_likelihood_nats: F64
    bits_per_dim: F64
    elbo_nats: F64
    standard_error_nats: F64
    effective_sample_size: F64
    p_value: F64
    anomalous: list[bool | None]
    discovery: list[bool | None]
    status: list[str]
    evidence: dict[str, F64]
    kl_nats: F64


@dataclass(frozen=True, eq=False, kw_only=True)
class AnomalyMaps(Result):
    """Float32 ``[n, H, W]`` in deviations of what is usual at each pixel, and the largest `boxes`
    of each image."""

    maps: F32
    boxes: list[list[Box]]


@dataclass(frozen=True, eq=False, kw_only=True)
class LogLikelihoods(Result):
    """Of `Scores` the log-likelihoods alone: float64 ``[n]`` in nats."""

    nats: F64
