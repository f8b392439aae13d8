"""Estimates from importance weights, on the host in float64, and what they say about an image.

For one image with log-weights ``log w_k = log p(x, z_k) - log q(z_k | x)``, k = 1..K (Burda,
Grosse and Salakhutdinov, *Importance Weighted Autoencoders*, 2016, arXiv:1509.00519):

    log_likelihood = log (1/K) sum_k w_k      a lower bound on log p(x) in expectation
    elbo           = (1/K) sum_k log w_k      below it for the same draws
    standard error = sd(w) / (sqrt(K) mean(w))      delta method; no number at K = 1
    effective sample size = (sum w)^2 / sum w^2     from 1 to K
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimates", "estimate", "log_likelihoods"]

F64 = NDArray[np.float64]
ONE_DRAW = (
    "a standard error means nothing where the effective sample size is below 2, as one draw has "
    "most of the weight: ask for more importance samples"
)


@dataclass(frozen=True, eq=False)
class Estimates:
    """Float64 ``[n]`` each, in nats but for the effective sample size."""

    log_likelihood_nats: F64
    elbo_nats: F64
    standard_error_nats: F64
    effective_sample_size: F64

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Where the estimates are numbers, bool ``[n]``."""
        return np.isfinite(self.log_likelihood_nats) & np.isfinite(self.elbo_nats)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the standard errors must know."""
        # Below 2, by the sum of squares, one draw has more than half of the weight.
        alone = np.isfinite(self.standard_error_nats) & (self.effective_sample_size < 2.0)
        return (ONE_DRAW,) if alone.any() else ()


def estimate(log_weight: NDArray[np.floating]) -> Estimates:
    """Estimates from ``log_weight`` ``[n, K]`` in nats."""
    lw = log_weight.astype(np.float64)
    n, k = lw.shape
    if k == 1:
        one = lw[:, 0]
        return Estimates(one, one, np.full(n, np.nan), np.ones(n))
    with np.errstate(all="ignore"):  # infinite weights give no numbers, which `finite` says
        shift, w = _weights(lw)
        mean = w.mean(axis=1)
        return Estimates(
            log_likelihood_nats=np.log(mean) + shift,
            elbo_nats=lw.mean(axis=1),
            standard_error_nats=w.std(axis=1, ddof=1) / (math.sqrt(k) * mean),
            effective_sample_size=w.sum(axis=1) ** 2 / np.square(w).sum(axis=1),
        )


def log_likelihoods(log_weight: NDArray[np.floating]) -> F64:
    """Of `estimate` the log-likelihoods alone, ``[n]``."""
    if log_weight.shape[1] == 1:
        return log_weight[:, 0].astype(np.float64)
    with np.errstate(all="ignore"):  # as above
        shift, w = _weights(log_weight.astype(np.float64))
        return np.asarray(np.log(w.mean(axis=1)) + shift)


def _weights(lw: F64) -> tuple[F64, F64]:
    """``shift [n]`` and ``w [n, K]``, the largest of each row 1: ``exp(lw) = w exp(shift)``."""
    top = lw.max(axis=1)
    shift = np.where(np.isfinite(top), top, 0.0)
    return shift, np.exp(lw - shift[:, None])
