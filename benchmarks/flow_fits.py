"""Fitting one posterior to one target: how tight it becomes, and what a step costs.

Targets are densities with a known normaliser over maps of latents `[C, S, S]`, flattened: `Linear`
is a posterior that a VAE really has to match; `Bent` is the same, no longer Gaussian. KL(q || p) is
then an absolute number of nats: no constant is missing, and zero is perfect.

A posterior is a diagonal Gaussian and a flow of `model.flows` under a context, as in a VAE, where
every row of a batch has a context of its own; here all rows have the same, learned one, which an
encoder could have given. The flow computes its conditions for every row all the same: the cost is
that of training.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

LOG_2PI = math.log(2 * math.pi)
NOISE, BEND = 0.05, 0.5  # of the targets
CONTEXT, MAPS = 64, 64  # units of a flat context; maps of a convolutional one
INIT_ROWS, EVALUATION_ROWS = 256, 1024
AVERAGE_DECAY = 0.98
ROWS, RATE = 64, 0.003  # of every fit: Adamax, a constant rate, averaged weights, seed 0


def lattice(dim: int) -> tuple[int, int, int]:
    """Maps (C, S, S) of `dim` latents: S the largest power of two that leaves 8 channels."""
    size = 1
    while 8 * (2 * size) ** 2 <= dim:
        size *= 2
    if dim % size**2:
        raise ValueError(f"{dim} latents do not fill maps of {size} x {size}")
    return dim // size**2, size, size


class Linear:
    """p(z|x) at x = 0 of the linear VAE z ~ N(0, I), x = A z + noise of variance NOISE.

    A is a random 3x3 convolution from C to C / 2 maps, so that latents near each other explain
    the same pixels and become dependent ("explaining away"). p(z|x) is Gaussian with precision
    I + A'A / NOISE: no order of the latents is special to it.
    """

    def __init__(self, dim: int) -> None:
        self.shape = lattice(dim)
        channels = self.shape[0]
        generator = torch.Generator().manual_seed(0)
        outputs = max(1, channels // 2)
        kernel = torch.randn(outputs, channels, 3, 3, generator=generator, dtype=torch.float64)
        self.kernel = kernel / math.sqrt(9 * outputs * NOISE)  # A / sqrt(NOISE), A'A near I
        _, log_det = torch.linalg.slogdet(self.precision())
        self.log_normaliser = 0.5 * (log_det.item() - dim * LOG_2PI)
        self.kernel = self.kernel.float()

    def _decoded(self, z: Tensor) -> Tensor:
        return F.conv2d(z.view(-1, *self.shape), self.kernel.to(z), padding=1).flatten(1)

    def precision(self) -> Tensor:
        """The precision matrix `[D, D]`, float64."""
        eye = torch.eye(math.prod(self.shape), dtype=torch.float64)
        decoded = self._decoded(eye)  # [D, outputs S S] = A'
        return eye + decoded @ decoded.T

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), `[B]`, in nats, normalised, of z `[B, D]`."""
        energy = z.square().sum(dim=1) + self._decoded(z).square().sum(dim=1)
        log_p: Tensor = self.log_normaliser - 0.5 * energy
        return log_p


class Bent:
    """`Linear`, bent: z_i = w_i + BEND cos(3 z_{i-1}) along a chain through all latents.

    The chain runs against the order of the flows, from the last latent to the first. It is
    unit-triangular, so p(z) = p_linear(w): volumes and the normaliser stay.
    """

    def __init__(self, dim: int) -> None:
        self.straight = Linear(dim)
        self.shape = self.straight.shape

    def straightened(self, z: Tensor) -> Tensor:
        """w `[B, D]` from z: all at once."""
        before = F.pad(z[:, 1:], (0, 1))  # z_{i-1} of the chain; the first has none
        return z - BEND * torch.cos(3 * before)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), `[B]`, in nats, normalised, of z `[B, D]`."""
        return self.straight.log_prob(self.straightened(z))


Target = Linear | Bent
TARGETS: dict[str, Callable[[int], Target]] = {"linear": Linear, "bent": Bent}


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


def gap(posterior: nn.Module, target: Target, eps: Tensor, rows: int) -> tuple[float, float]:
    """KL(q || p) by Monte Carlo, and its standard error, from noise `eps [N, D]`."""
    with torch.no_grad():
        parts = []
        for part in torch.split(eps, rows):
            z, log_q = posterior(part)
            parts.append((log_q - target.log_prob(z)).double())
        values = torch.cat(parts)
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def fit(
    posterior: Posterior,
    target: Target,
    seconds: float,
    *,
    rows: int = ROWS,
    rate: float = RATE,
    least_steps: int = 8,
) -> dict[str, float]:
    """Minimise KL(q || p) for `seconds` of processor time.

    Gives the steps, and the gap of the averaged weights in nats, all latents together, with its
    standard error; nan where the fit has diverged.
    """
    generator = torch.Generator().manual_seed(0)
    test_eps = torch.randn(EVALUATION_ROWS, math.prod(target.shape), generator=generator)
    average = copy.deepcopy(posterior)
    ema = Ema(posterior, average, AVERAGE_DECAY)
    optimizer = torch.optim.Adamax(posterior.parameters(), lr=rate, foreach=True)
    started, step = time.process_time(), 0
    while step < least_steps or time.process_time() - started < seconds:
        train_step(posterior, target, optimizer, rows, generator)
        step += 1
        ema.update(step)
    value, error = gap(average, target, test_eps, rows)
    return {"step": step, "gap_nats": value, "standard_error_nats": error}


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


def cost_ms(posterior: Posterior, rows: int) -> float:
    """Processor milliseconds of a forward and backward pass of q alone, the median of some."""
    eps = torch.randn(rows, len(posterior.mean))
    times = []
    for _ in range(6):  # the first warms up
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
