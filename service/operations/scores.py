"""What the engine gives for ``score``, as the scores that callers get."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import Bundle
from service.estimators import estimate, log_likelihoods, p_values, statuses
from service.operations.results import LogLikelihoods, Scores, timing_of
from service.scheduler.jobs import BatchResult

__all__ = ["log_likelihoods_of", "scores_of"]


def scores_of(
    result: BatchResult, images: int, bundle: Bundle, *, seed: int, alpha: float
) -> Scores:
    """Estimates for `images` images, and how unusual they are among the bundle's calibration."""
    log_weight, kl = _weights(result, images)
    k = log_weight.shape[1]
    estimates = estimate(log_weight)
    reference = bundle.calibration.get(k)
    p_value = p_values(estimates.log_likelihood_nats, reference)
    dims = bundle.manifest.image.dims
    return Scores(
        log_likelihood_nats=estimates.log_likelihood_nats,
        bits_per_dim=-estimates.log_likelihood_nats / (dims * math.log(2.0)),
        elbo_nats=estimates.elbo_nats,
        standard_error_nats=estimates.standard_error_nats,
        effective_sample_size=estimates.effective_sample_size,
        p_value=p_value,
        anomalous=p_value <= alpha,
        status=statuses(estimates, reference is not None),
        estimator="elbo" if k == 1 else "importance_weighted",
        importance_samples=k,
        seed=seed,
        kl_nats=kl.mean(axis=1, dtype=np.float64) if k > 1 else kl[:, 0].astype(np.float64),
        timing=timing_of(result),
    )


def log_likelihoods_of(result: BatchResult, images: int, seed: int) -> LogLikelihoods:
    """Of `scores_of` the log-likelihoods alone."""
    log_weight, _ = _weights(result, images)
    return LogLikelihoods(log_likelihoods(log_weight), seed, timing_of(result))


def _weights(result: BatchResult, images: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Log-weights ``[n, K]`` and KLs ``[n, K, G]``."""
    log_weight = result.arrays["log_weight"].reshape(images, -1)
    return log_weight, result.arrays["kl"].reshape(*log_weight.shape, -1)
