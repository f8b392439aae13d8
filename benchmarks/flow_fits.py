"""Fitting one posterior to one target: how tight it becomes, and what a step costs.

A posterior is a diagonal Gaussian and a flow of `model.flows` under a context, as in a VAE, where
every row of a batch has a context of its own; here all rows have the same, learned one, which an
encoder could have given. The flow computes its conditions for every row all the same: the cost is
that of training.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.flow_targets import Target
from model.config import (
    ConvIafPosterior,
    CouplingPosterior,
    DiagonalPosterior,
    IafPosterior,
    LinearIafPosterior,
    PlanarPosterior,
    PosteriorConfig,
)
from model.densities import gaussian_log_prob
from model.flows.flow import build_conv_flow, build_flow, conv_context_channels
from model.layers import data_dependent_init
from training.fit.optim import Ema

CONTEXT, MAPS = 64, 64  # units of a flat context; maps of a convolutional one
INIT_ROWS, EVALUATION_ROWS = 256, 1024
AVERAGE_DECAY = 0.98
STEP_GROWTH = 1.5  # between two evaluations


def candidates(width: int) -> dict[str, PosteriorConfig]:
    """The posteriors that are compared; networks' hidden layers have `width` units."""
    two = (width, width)
    return {
        "diagonal": DiagonalPosterior(),
        "linear IAF": LinearIafPosterior(),
        "IAF, 1 step": IafPosterior(steps=1, hidden=two),
        "IAF, 2 steps": IafPosterior(steps=2, hidden=two),
        "conv IAF, 1 step": ConvIafPosterior(steps=1),
        "conv IAF, 2 steps": ConvIafPosterior(steps=2),
        "planar, 16 steps": PlanarPosterior(steps=16),
        "planar, 64 steps": PlanarPosterior(steps=64),
        "coupling, 4 steps": CouplingPosterior(steps=4, hidden=two),
        "coupling, 8 steps": CouplingPosterior(steps=8, hidden=two),
    }


class Posterior(nn.Module):
    """q(z): a diagonal Gaussian through a flow; `shape` (C, S, S) is that of the latents."""

    def __init__(self, config: PosteriorConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        dim = math.prod(shape)
        self.mean = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.full((dim,), -1.0))
        self.latents: tuple[int, ...]
        context: tuple[int, ...]
        if isinstance(config, ConvIafPosterior):
            channels = conv_context_channels(config, shape[0], MAPS)
            self.latents, context = shape, (channels, *shape[1:])
            self.flow = build_conv_flow(config, shape[0], MAPS)
        else:
            self.latents, context = (dim,), (CONTEXT,)
            self.flow = build_flow(config, dim, CONTEXT)
        self.context = nn.Parameter(torch.randn(context))
        self._initialize(shape)

    def _initialize(self, shape: tuple[int, int, int]) -> None:
        """Set the layers as training does, from rows whose contexts differ."""
        h = torch.randn(INIT_ROWS, *self.context.shape)
        eps = torch.randn(INIT_ROWS, math.prod(shape))
        with torch.no_grad(), data_dependent_init(self.flow):
            self._through(self._start(eps), h)

    def _start(self, eps: Tensor) -> Tensor:
        return self.mean + torch.exp(self.log_scale) * eps

    def _through(self, z_0: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = self.flow(z_0.view(-1, *self.latents), self.flow.condition(h))
        return z.flatten(1), log_det.sum(dim=1)

    def forward(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Give z `[B, D]` and log q(z) `[B]`, in nats, from eps `[B, D]`."""
        z_0 = self._start(eps)
        z, log_det = self._through(z_0, self.context.expand(len(eps), *self.context.shape))
        log_q = gaussian_log_prob(z_0, self.mean, self.log_scale).sum(dim=1)
        return z, log_q - log_det


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How every posterior is fitted: Adamax, a constant rate, averaged weights."""

    batch_size: int = 64
    learning_rate: float = 0.002
    seed: int = 0


@dataclass(frozen=True)
class Point:
    """KL(q || p) after so many steps, which took so many seconds; nats, all latents together."""

    step: int
    seconds: float
    gap_nats: float
    standard_error_nats: float


def gap(posterior: nn.Module, target: Target, eps: Tensor, rows: int) -> tuple[float, float]:
    """KL(q || p) by Monte Carlo, and its standard error, from noise `eps [N, D]`."""
    with torch.no_grad():
        parts = []
        for part in torch.split(eps, rows):
            z, log_q = posterior(part)
            parts.append((log_q - target.log_prob(z)).double())
        values = torch.cat(parts)
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def evaluation_steps(last: int | None = None) -> Callable[[int], bool]:
    """After which steps all posteriors are measured: 8, then 1.5 times as many each time."""
    grid, step = set(), 8.0
    while step < 1e9:
        grid.add(round(step))
        step *= STEP_GROWTH
    return lambda done: done in grid or done == last


def fit(
    posterior: Posterior,
    target: Target,
    settings: FitSettings,
    seconds: float,
    least_steps: int = 8,
) -> list[Point]:
    """Minimise KL(q || p) for `seconds` of processor time, without those of the measurements.

    Gives the gap of the averaged weights on the way; the last point is the end's. Ends early,
    with a gap of nan, where the fit has diverged.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    dim = math.prod(target.shape)
    test_eps = torch.randn(EVALUATION_ROWS, dim, generator=generator)
    average = copy.deepcopy(posterior)
    ema = Ema(posterior, average, AVERAGE_DECAY)
    optimizer = torch.optim.Adamax(posterior.parameters(), lr=settings.learning_rate, foreach=True)
    due, points, step, spent = evaluation_steps(), [], 0, 0.0
    while True:
        started = time.process_time()
        train_step(posterior, target, optimizer, settings.batch_size, generator)
        step += 1
        ema.update(step)
        spent += time.process_time() - started
        done = spent >= seconds and step >= least_steps
        if done or due(step):
            value, error = gap(average, target, test_eps, settings.batch_size)
            points.append(Point(step, spent, value, error))
        if done or not math.isfinite(points[-1].gap_nats if points else 0.0):
            return points


def train_step(
    posterior: Posterior,
    target: Target,
    optimizer: torch.optim.Optimizer,
    rows: int,
    generator: torch.Generator,
) -> None:
    """One step of stochastic optimisation of E_q[log q - log p]."""
    eps = torch.randn(rows, len(posterior.mean), generator=generator)
    z, log_q = posterior(eps)
    loss = (log_q - target.log_prob(z)).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def cost_ms(posterior: Posterior, rows: int, repeats: int = 5) -> float:
    """Processor milliseconds of a forward and backward pass of q alone, the median of some."""
    eps = torch.randn(rows, len(posterior.mean))
    times = []
    for _ in range(repeats + 1):
        started = time.process_time()
        z, log_q = posterior(eps)
        (z.sum() + log_q.sum()).backward()
        times.append(1e3 * (time.process_time() - started))
    posterior.zero_grad(set_to_none=True)
    return statistics.median(times[1:])


def parameters_of(config: PosteriorConfig, shape: tuple[int, int, int]) -> int:
    """The number of weights of a posterior's flow, without memory for those of a large one."""
    flow: nn.Module
    if isinstance(config, ConvIafPosterior):  # small, whatever the size of the maps
        flow = build_conv_flow(config, shape[0], MAPS)
    else:
        with torch.device("meta"):
            flow = build_flow(config, math.prod(shape), CONTEXT)
    return sum(p.numel() for p in flow.parameters())
