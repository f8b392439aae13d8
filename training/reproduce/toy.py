"""Figure 1 of the paper: four data points, two latents, and posteriors that must fit together.

The data are the four images of 2x2 binary pixels with one pixel lit, the model the program's own
(`model.conv_vae`) at its smallest. Two latents can be integrated on a grid, so that log p(x), the
true posterior p(z|x) and the divergences from it are known without sampling: the figures here
are exact but for the grid's spacing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ConvVaeConfig, DiagonalPosterior, FlatPosterior, IafPosterior
from model.contract import DensityModel
from model.conv_vae import ConvVae
from model.densities import gaussian_log_prob, standard_normal_log_prob
from model.layers import data_dependent_init
from training.config import OptimConfig
from training.errors import TrainingError
from training.fit.optim import build_optimizer
from training.schedules import learning_rate_at

__all__ = [
    "POSTERIORS",
    "Grid",
    "ToyFigures",
    "data_points",
    "fit_toy",
    "measure",
    "posterior_samples",
]

POSTERIORS: dict[str, FlatPosterior] = {
    "diagonal": DiagonalPosterior(),
    "iaf": IafPosterior(steps=8, hidden=(64,), update="affine"),
}
OPTIM = OptimConfig(learning_rate=0.02, warmup_steps=0, decay_fraction=0.6)
WARMUP_STEPS = 50  # however few steps there are: eight flow steps at the full rate may overflow
DRAWS = 64  # latents for each data point and step
KL_WARMUP = 0.1  # the share of the steps over which the KL's weight rises from a tenth to 1


def data_points() -> Tensor:
    """The four images, float `[4, 1, 2, 2]`, each with one pixel of 1."""
    return torch.eye(4).view(4, 1, 2, 2)


def fit_toy(
    posterior: str,
    *,
    seed: int,
    steps: int,
    told: Callable[[int], None] | None = None,
) -> ConvVae:
    """Maximise the ELBO (paper, eq. 2) for `steps` steps; a pure function of its arguments.

    `told` is called after each step with the number of steps done. Raises `TrainingError` where
    the weights are no longer finite.
    """
    torch.manual_seed(seed)  # of the weights
    config = ConvVaeConfig(
        image_shape=(1, 2, 2),
        channels=(16,),
        hidden=64,
        latent_dim=2,
        posterior=POSTERIORS[posterior],
    )
    model = ConvVae(config)
    noise = torch.Generator().manual_seed(seed)
    x = data_points().repeat(DRAWS, 1, 1, 1)
    with torch.no_grad(), data_dependent_init(model):
        model(x, torch.randn(len(x), 2, generator=noise))
    optimizer = build_optimizer(OPTIM, model)
    for step in range(steps):
        log_px_z, kl = model(x, torch.randn(len(x), 2, generator=noise))
        log_px_z, kl = log_px_z.mean(), kl.sum(dim=1).mean()
        optimizer.zero_grad(set_to_none=True)
        kl_weight = min(1.0, 0.1 + 0.9 * step / max(1.0, KL_WARMUP * steps))
        (kl_weight * kl - log_px_z).backward()
        for group in optimizer.param_groups:
            rate = learning_rate_at(OPTIM, step, steps)
            group["lr"] = rate * min(1.0, (step + 1) / WARMUP_STEPS)
        optimizer.step()
        if told is not None:
            told(step + 1)
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise TrainingError(f"the toy with {posterior} posteriors diverged from seed {seed}")
    return model.eval()


class Grid:
    """n x n points `z [n^2, 2]` over the latents in [-extent, extent]^2, each for a cell of `area`.

    For smooth densities that vanish at its edge the plain sum over such a lattice converges
    faster than any power of the spacing.
    """

    def __init__(self, n: int = 241, extent: float = 6.0) -> None:
        axis = torch.linspace(-extent, extent, n, dtype=torch.float64)
        self.z = torch.cartesian_prod(axis, axis)
        self.area = (2 * extent / (n - 1)) ** 2

    def integral(self, density: Tensor) -> Tensor:
        """Integrate the last axis, `[..., n^2] -> [...]`."""
        return density.sum(dim=-1) * self.area


@dataclass(frozen=True)
class ToyFigures:
    """What a fitted toy comes to, in nats, each a mean over the four data points.

    `log_px` is exact (quadrature), `elbo` a Monte-Carlo mean with its `elbo_standard_error`;
    `kl_to_posterior` is KL(q(z|x) || p(z|x)), by quadrature too and hence independent of the
    ELBO, although log p(x) - ELBO must equal it (paper, eq. 3). `kl_to_prior` = `information` +
    `aggregate_kl`: the mutual information of x and z under q, at most log 4, and the divergence
    KL(q(z) || p(z)) of the four posteriors' mean from the prior, the gaps and overlaps of the
    figure. `overlap` is the share of q(z)'s mass that the other points' posteriors hold: the
    mean probability of guessing x wrongly from z. `mass_error` tells how well the grid serves:
    how far the worst posterior's integral is from 1.
    """

    log_px: float
    elbo: float
    elbo_standard_error: float
    kl_to_posterior: float
    kl_to_prior: float
    information: float
    aggregate_kl: float
    overlap: float
    mass_error: float


@torch.inference_mode()
def measure(
    model: ConvVae, *, grid: Grid | None = None, draws: int = 20_000, seed: int = 0
) -> ToyFigures:
    """Integrate a fitted toy on `grid`; the ELBO from `draws` latents a data point."""
    grid = grid or Grid()
    model = model.fold().double()
    x = data_points().double()
    log_joint = _log_joint(model, x, grid)  # [4, n^2]
    log_px = torch.logsumexp(log_joint, dim=1) + math.log(grid.area)  # [4]
    log_q = log_posterior(model, x, grid.z)  # [4, n^2]
    q = log_q.exp()
    log_aggregate = torch.logsumexp(log_q, dim=0) - math.log(len(x))  # [n^2]
    log_prior = standard_normal_log_prob(grid.z).sum(dim=1)  # [n^2]
    kl_to_prior = _divergence(grid, q, log_q - log_prior).mean()
    aggregate_kl = _divergence(grid, log_aggregate.exp(), log_aggregate - log_prior)
    elbo = _elbo(model, x, draws, seed)  # [draws]
    return ToyFigures(
        log_px=log_px.mean().item(),
        elbo=elbo.mean().item(),
        elbo_standard_error=(elbo.std() / math.sqrt(draws)).item(),
        kl_to_posterior=_divergence(grid, q, log_q - log_joint + log_px[:, None]).mean().item(),
        kl_to_prior=kl_to_prior.item(),
        information=(kl_to_prior - aggregate_kl).item(),
        aggregate_kl=aggregate_kl.item(),
        overlap=1 - grid.integral(q.max(dim=0).values / len(x)).item(),
        mass_error=(grid.integral(q) - 1).abs().max().item(),
    )


@torch.inference_mode()
def posterior_samples(model: ConvVae, count: int, seed: int) -> Tensor:
    """`count` latents of each point's posterior, `[4, count, 2]`."""
    x = data_points().repeat_interleave(count, dim=0)
    eps = torch.randn(len(x), 2, generator=torch.Generator().manual_seed(seed))
    return model.infer(model.bottom_up(x), eps).z.view(4, count, 2)


def log_posterior(model: ConvVae, x: Tensor, z: Tensor) -> Tensor:
    """log q(z|x) of every image at every latent `z [M, 2]`, `[N, M]`, through the flow's inverse.

    log q(z|x) = log q(z_0|x) - log|det dz/dz_0| (paper, eq. 5). Far from all of q's mass the
    inverse may overflow; where the flow does not lead back to z the density counts as 0.
    """
    rows = []
    for features in zip(*(torch.split(part, 1) for part in model.bottom_up(x)), strict=True):
        mean, log_scale, *conditions = (part.expand(len(z), *part.shape[1:]) for part in features)
        z_0 = model.flow.inverse(z, tuple(conditions))
        back, log_det = model.flow(z_0, tuple(conditions))
        log_q = gaussian_log_prob(z_0, mean, log_scale).sum(dim=1) - log_det.sum(dim=1)
        reached = torch.isclose(back, z, rtol=0, atol=1e-6).all(dim=1) & log_q.isfinite()
        rows.append(torch.where(reached, log_q, -math.inf))
    return torch.stack(rows)


def _log_joint(model: DensityModel, x: Tensor, grid: Grid) -> Tensor:
    """log p(x, z) of every image on the grid, `[N, n^2]`."""
    params = model.decode(grid.z)
    log_prior = standard_normal_log_prob(grid.z).sum(dim=1)
    images = (one.expand(len(grid.z), *one.shape[1:]) for one in torch.split(x, 1))
    return torch.stack([model.likelihood.log_prob(params, one) + log_prior for one in images])


def _elbo(model: DensityModel, x: Tensor, draws: int, seed: int) -> Tensor:
    """Monte-Carlo estimates of the mean ELBO of all images, `[draws]`."""
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(draws * len(x), 2, generator=generator, dtype=torch.float64)
    log_px_z, kl = model(x.repeat(draws, 1, 1, 1), eps)
    elbo: Tensor = (log_px_z - kl.sum(dim=1)).view(draws, len(x)).mean(dim=1)
    return elbo


def _divergence(grid: Grid, q: Tensor, log_ratio: Tensor) -> Tensor:
    """Integrate q log(q / p); where q is 0 there is nothing to integrate."""
    return grid.integral(torch.where(q > 0, q * log_ratio, 0.0))
