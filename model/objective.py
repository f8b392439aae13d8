"""What is maximised and what is reported: the bound's parts, free bits, the IW bound, units."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ElboTerms:
    """The parts of the evidence lower bound for one draw of the latents, in nats.

    `log_px_z [B]` is log p(x|z); `kl [B, F]` the Monte-Carlo log q(z|x) - log p(z) of each
    free-bits part. A single draw of `kl` may be negative; its expectation may not. Of K draws an
    image: `[K, B]` and `[K, B, F]`.
    """

    log_px_z: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """Lower bound on log p(x), `[B]`, higher is better (paper, eq. 2)."""
        return self.log_px_z - self.kl.sum(dim=-1)

    @property
    def log_weight(self) -> Tensor:
        """log p(x, z) - log q(z|x) of this draw, `[B]`: the importance weight's logarithm."""
        return self.elbo


def _mean(rows: Tensor) -> Tensor:
    return rows.mean(dim=0)


def free_bits_objective(
    terms: ElboTerms,
    minimum_nats: float,
    kl_weight: float = 1.0,
    batch_mean: Callable[[Tensor], Tensor] = _mean,
) -> Tensor:
    """The objective with free bits, a scalar to be maximised (paper, eq. 15 of Appendix C.8).

    L~ = E[log p(x|z)] - sum_j max(lambda, E[kl_j]), both means over the batch, lambda =
    `minimum_nats` for each part j: a part pays for its nats only above the minimum. `kl_weight`
    in [0, 1] scales the penalty for warm-up. The KL that is reported is `terms.kl`, unclamped.
    `batch_mean` maps `[B, ...] -> [...]`: where a batch is divided among processes, theirs is
    the mean over the whole of it, for a minimum of means is no mean of minima.
    """
    kl = batch_mean(terms.kl)  # [F]
    if minimum_nats > 0:
        kl = kl.clamp_min(minimum_nats)
    return terms.log_px_z.mean() - kl_weight * kl.sum()


def importance_weighted_bound(log_weight: Tensor) -> Tensor:
    """log (1/K) sum_k w_k, `[K, B] -> [B]` (Burda et al. 2016, arXiv:1509.00519).

    In expectation a lower bound on log p(x) that tightens with K; at K = 1 it is the ELBO.
    """
    return torch.logsumexp(log_weight, dim=0) - math.log(log_weight.shape[0])


def bits_per_dim(log_likelihood_nats: Tensor, dims: int) -> Tensor:
    """Turn a log-likelihood in nats into bits for each of `dims` subpixels (lower is better)."""
    return -log_likelihood_nats / (dims * math.log(2))
