"""What operations take beside their arguments, and what they give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.scheduler.jobs import BatchResult

__all__ = [
    "Call",
    "Images",
    "Latents",
    "LogLikelihoods",
    "Rendered",
    "Scores",
    "Timing",
    "images_of",
    "rendered_of",
    "timing_of",
]


@dataclass(frozen=True)
class Call:
    """Who calls (a key or a connection), and until when the answer is of use.

    deadline: on the clock of `time.monotonic`, in seconds.
    """

    caller: str = ""
    deadline: float | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds that a request waited, and that its batches took (shared ones in whole)."""

    queue_seconds: float
    compute_seconds: float

    def __add__(self, later: Timing) -> Timing:
        return Timing(
            self.queue_seconds + later.queue_seconds, self.compute_seconds + later.compute_seconds
        )


@dataclass(frozen=True, eq=False)
class Images:
    """uint8 ``[n, C, H, W]``; `finite` ``[n]``: whether the means they show were numbers (if not,
    pixels are 0).
    """

    images: NDArray[np.uint8]
    finite: NDArray[np.bool_]
    timing: Timing


@dataclass(frozen=True, eq=False)
class Rendered:
    """Means as pixels, drawn pixels, and means in [0, 1]: ``[n, C, H, W]`` each."""

    images: NDArray[np.uint8]
    draw: NDArray[np.uint8]
    mean: NDArray[np.float32]
    timing: Timing


@dataclass(frozen=True, eq=False)
class Latents:
    """Float32 ``[n, D]``: latents, and the prior noise that gives them."""

    latents: NDArray[np.float32]
    prior_eps: NDArray[np.float32]
    timing: Timing


@dataclass(frozen=True, eq=False)
class Scores:
    """Float64 ``[n]`` but for `status`, `anomalous` (bool) and `kl_nats` (``[n, G]``).

    standard_error_nats is no number at one importance sample; p_value where `importance_samples`
    was not calibrated, and `anomalous` is False there. status: "ok", "not_calibrated",
    "non_finite".
    """

    log_likelihood_nats: NDArray[np.float64]
    bits_per_dim: NDArray[np.float64]
    elbo_nats: NDArray[np.float64]
    standard_error_nats: NDArray[np.float64]
    effective_sample_size: NDArray[np.float64]
    p_value: NDArray[np.float64]
    anomalous: NDArray[np.bool_]
    status: list[str]
    estimator: str
    importance_samples: int
    seed: int
    kl_nats: NDArray[np.float64]
    timing: Timing


@dataclass(frozen=True, eq=False)
class LogLikelihoods:
    """Of `Scores` the log-likelihoods alone: float64 ``[n]`` in nats."""

    nats: NDArray[np.float64]
    seed: int
    timing: Timing


def timing_of(result: BatchResult) -> Timing:
    """What a work's rows took."""
    return Timing(queue_seconds=result.queue_seconds, compute_seconds=result.compute_seconds)


def images_of(result: BatchResult, before: Timing | None = None) -> Images:
    """The rows of ``sample`` or ``decode`` where one kind of pixels was asked for.

    before: what an operation took that came first.
    """
    timing, arrays = timing_of(result), result.arrays
    whole = timing if before is None else before + timing
    return Images(arrays["images"], arrays["finite"], whole)


def rendered_of(result: BatchResult) -> Rendered:
    """The rows of ``sample`` or ``decode`` with all there is of them."""
    arrays = result.arrays
    return Rendered(arrays["images"], arrays["draw"], arrays["mean"], timing_of(result))
