"""A prior's flow fitted to the aggregate posterior of a trained model, which stays as it is.

Of all densities p(z) the one that maximises the mean bound is q(z), the average of q(z|x) over the
images (Hoffman & Johnson 2016): a flow that is fitted by maximum likelihood to draws z ~ q(z|x)
lowers the KL by as much as it gains over N(0, I). Training then goes on with all parts.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.contract import DensityModel
from model.densities import standard_normal_log_prob
from model.flows.prior import Prior
from training.data import ImageData, epoch_order
from training.errors import TrainingError
from training.fit.batches import STREAM_PRIOR, noise, presented, step_generator
from training.fit.device import Backend
from training.fit.optim import OPTIMIZERS, Ema
from training.fit.progress import Budget

__all__ = ["PriorObserver", "PriorPlan", "fit_flow"]

CHUNK, CHUNK_OF_LARGE, LARGE_LATENT = 500, 50, 4096  # images encoded at once
POOL_BYTES = 2**28  # of latents at a time, at most
DRAWS = 16  # of each image in a pool, at most
POOL_SHARE = 0.2  # of the minutes, that one pool may take
CHECK_EVERY_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class PriorPlan:
    """How a flow is fitted: Adam at `learning_rate`, which falls to zero over the last
    `decay_fraction` of the minutes; gradients cut to `clip_norm`; the average of the weights."""

    minutes: float = 2.0
    learning_rate: float = 1e-3
    batch_size: int = 512
    decay_fraction: float = 0.6
    clip_norm: float = 5.0
    ema_decay: float = 0.998
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise TrainingError(f"--minutes must be finite and positive, not {self.minutes}")


@dataclass
class PriorObserver:
    """Hears how the fit goes, and may end it; by default neither.

    `stop` gives a reason to end the fit, "" while there is none; `step` hears how many steps are
    done in how many minutes, `checked` the mean log p(z) of held-out latents, less N(0, I)'s.
    """

    stop: Callable[[], str] = lambda: ""
    step: Callable[[int, float], None] = lambda *_: None
    checked: Callable[[float], None] = lambda *_: None


SILENT = PriorObserver()


def fit_flow(
    model: DensityModel,
    train: ImageData,
    validation: ImageData,
    plan: PriorPlan,
    backend: Backend,
    *,
    flips: bool = False,
    observer: PriorObserver = SILENT,
) -> str:
    """Fit `model.prior` in place; gives why it ended: "done", or the reason the observer gave.

    It keeps the averaged weights that were best on latents of the validation images, looked at
    every 200 steps: more steps than the training images bear do no harm. Raises `TrainingError`
    where the model has no flow, or its time is over before the first step.
    """
    flow = model.prior
    if not list(flow.parameters()):
        raise TrainingError("the model's prior has nothing to fit: it is standard normal")
    budget = Budget(plan.minutes)
    encoder = _Encoder(model, backend, plan.seed, flips=flips)
    held_out = torch.cat(list(encoder.latents(validation, range(len(validation)), draws=1)))
    best = _Best(flow, held_out)
    average = copy.deepcopy(flow)
    ema = Ema(flow, average, plan.ema_decay)
    adam, fastest = OPTIMIZERS["adam"]
    optimizer = adam(flow.parameters(), lr=plan.learning_rate, **fastest)
    reason, taken = "", 0
    budget.begin()
    batches = _batches(encoder, train, plan, budget, observer.stop)
    for z in batches:
        reason = observer.stop() or ("done" if budget.spent_up else "")
        if reason:
            break
        fall = min(1.0, (1 - budget.share) / plan.decay_fraction)
        optimizer.param_groups[0]["lr"] = fall * plan.learning_rate
        _step(flow, optimizer, z, plan.clip_norm)
        taken += 1
        ema.update(taken)
        observer.step(taken, budget.spent)
        if taken % CHECK_EVERY_STEPS == 0:
            observer.checked(best.offer(average))
    if not taken:
        raise TrainingError("the fit was over before its first step: give it more --minutes")
    observer.checked(best.offer(average))
    flow.load_state_dict(best.state)
    return reason or observer.stop() or "done"


def _step(flow: Prior, optimizer: torch.optim.Optimizer, z: Tensor, clip_norm: float) -> None:
    optimizer.zero_grad(set_to_none=True)
    (-log_density(flow, z).mean()).backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(flow.parameters(), clip_norm)
    if math.isfinite(float(norm)):
        optimizer.step()


def log_density(flow: Prior, z: Tensor) -> Tensor:
    """log p(z) in nats, `[B]`."""
    eps, log_det = flow.inverse(z)
    return standard_normal_log_prob(eps).sum(dim=1) + log_det.squeeze(1)


class _Best:
    """The weights that were best on held-out latents, from the first ones on."""

    def __init__(self, flow: Prior, held_out: Tensor) -> None:
        self.held_out = held_out
        self.normal = standard_normal_log_prob(held_out).sum(dim=1).double().mean().item()
        self.state, self.gain = copy.deepcopy(flow.state_dict()), self._gain(flow)

    @torch.no_grad()
    def _gain(self, flow: Prior) -> float:
        parts = torch.cat([log_density(flow, z).double() for z in torch.split(self.held_out, 4096)])
        return parts.mean().item() - self.normal

    def offer(self, flow: Prior) -> float:
        """Keep its weights if they are better than all before; gives its gain in nats."""
        gain = self._gain(flow)
        if gain > self.gain:
            self.state, self.gain = copy.deepcopy(flow.state_dict()), gain
        return gain


class _Encoder:
    """Draws from q(z|x) of images, in the noise that the prior's flow gives out."""

    def __init__(self, model: DensityModel, backend: Backend, seed: int, *, flips: bool) -> None:
        self.model = model.eval()
        self.backend = backend
        self.seed = seed
        self.flips = flips
        self.chunk = CHUNK if model.layout.dim <= LARGE_LATENT else CHUNK_OF_LARGE
        self.calls = 0

    @torch.no_grad()
    def latents(self, data: ImageData, indices: Sequence[int], *, draws: int) -> Iterator[Tensor]:
        """`[draws * n, D_top]` of n images after another, each presented and drawn anew."""
        device = self.backend.device
        for start in range(0, len(indices), self.chunk):
            generator = step_generator(device, self.seed, STREAM_PRIOR, self.calls)
            self.calls += 1
            chosen = data.pixels[list(indices[start : start + self.chunk])]
            pixels = torch.from_numpy(chosen).to(device)
            x = presented(self.model, pixels, generator, flips=self.flips)
            features = self.model.bottom_up(self.backend.layout(x))
            noises = (noise(self.model, len(x), generator) for _ in range(draws))
            yield torch.cat([self.model.prior_data(features, eps) for eps in noises])


def _batches(
    encoder: _Encoder, train: ImageData, plan: PriorPlan, budget: Budget, stop: Callable[[], str]
) -> Iterator[Tensor]:
    """Batches of latents without an end but that of the minutes: pools of many images' draws, each
    shuffled and shown once."""
    size = encoder.model.layout.groups[0].size
    most = max(1, POOL_BYTES // (4 * size))
    draws = max(1, min(DRAWS, most // len(train)))
    round_ = 0
    while not (budget.spent_up or stop()):
        order = epoch_order(len(train), plan.seed, round_).tolist()
        begun, pool = budget.spent, []
        for part in encoder.latents(train, order, draws=draws):
            pool.append(part)
            full = sum(map(len, pool)) >= most
            if full or stop() or budget.spent - begun > POOL_SHARE * plan.minutes:
                break
        z = torch.cat(pool)
        generator = step_generator(z.device, plan.seed, STREAM_PRIOR, 2**40 + round_)
        shuffled = torch.randperm(len(z), generator=generator, device=z.device)
        for rows in torch.split(shuffled, plan.batch_size):
            yield z[rows]
        round_ += 1
