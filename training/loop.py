"""The training loop: exact to resume, safe to interrupt.

Every random number of step t is a function of (seed, t) and the order of an epoch of (seed,
epoch), so that a checkpoint needs no generator's state and a resumed run takes the same steps.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model import build_model
from model.contract import DensityModel
from model.layers import data_dependent_init
from model.objective import ElboTerms, bits_per_dim, free_bits_objective
from training.checkpoint import Checkpoint, save_checkpoint
from training.config import RunConfig, Runtime
from training.data import ImageData, epoch_order
from training.device import Backend, prepare
from training.errors import TrainingError
from training.optim import (
    Ema,
    StepGuard,
    build_optimizer,
    kl_weight_at,
    learning_rate_at,
    load_optimizer_tensors,
    optimizer_tensors,
)

# Images whose activations set the weights' gains and biases before the first step.
INIT_IMAGES = 512
# Generators are seeded per step; the stream keeps training, initialisation and validation apart.
STREAM_TRAIN, STREAM_INIT, STREAM_VALIDATION = 0, 1, 2
LOG_EVERY_STEPS = 50


class Observer(Protocol):
    """What a run tells while it goes on; `training.progress` shows it to people."""

    def train(self, step: int, figures: dict[str, float]) -> None:
        """Figures averaged since the last call."""

    def skipped(self, step: int, loss: float, norm: float) -> None:
        """A step was not taken."""

    def validation(self, step: int, epoch: int, figures: dict[str, float]) -> None:
        """An epoch ended and the averaged model was measured on the validation split."""


def step_generator(device: torch.device, seed: int, stream: int, step: int) -> torch.Generator:
    """A generator for one step's noise, determined by its arguments (splitmix64's mixing)."""
    x = (seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03 + step + 1) & (2**64 - 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ (x >> shift)) * factor) & (2**64 - 1)
    generator = torch.Generator(device)
    generator.manual_seed((x ^ (x >> 31)) & (2**63 - 1))
    return generator


def presented(model: DensityModel, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """One presentation of uint8 pixels: binarised anew for a Bernoulli model (1 where u < p)."""
    if model.likelihood.kind != "bernoulli":
        return model.likelihood.from_pixels(pixels)
    u = torch.rand(pixels.shape, generator=generator, device=pixels.device)
    return (u < pixels.float() / 255).float()


class Trainer:
    """A run in progress: model, average, optimiser, and the step it has come to."""

    def __init__(self, config: RunConfig, runtime: Runtime, data: ImageData) -> None:
        self.config = config
        torch.manual_seed(config.train.seed)
        self.backend: Backend = prepare(runtime)
        self.pixels = torch.from_numpy(data.pixels).to(self.backend.device)
        self.steps_per_epoch = max(1, len(self.pixels) // config.optim.batch_size)
        self.total_steps = config.train.epochs * self.steps_per_epoch
        self.model = self.backend.place(build_model(config.model))
        self.step = 0
        self.guard = StepGuard(config.optim.skip_factor)
        self._initialize()
        self.average = copy.deepcopy(self.model).eval()
        self.ema = Ema(self.model, self.average, config.optim.ema_decay)
        self.optimizer = build_optimizer(config.optim, self.model.parameters())
        self.forward: nn.Module = self.backend.compile(self.model, self.total_steps)
        self._order_epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def _initialize(self) -> None:
        order = epoch_order(len(self.pixels), self.config.train.seed, 0)[:INIT_IMAGES]
        generator = step_generator(self.backend.device, self.config.train.seed, STREAM_INIT, 0)
        pixels = self.pixels[torch.from_numpy(order).to(self.pixels.device)]
        x = presented(self.model, pixels, generator)
        with torch.no_grad(), data_dependent_init(self.model):
            self.model(self.backend.layout(x), self._noise(len(x), generator))

    def _noise(self, rows: int, generator: torch.Generator) -> Tensor:
        shape = (rows, self.model.layout.dim)
        return torch.randn(shape, generator=generator, device=self.backend.device)

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the next step belongs to."""
        return self.step // self.steps_per_epoch

    def batch(self) -> Tensor:
        """The pixels of the next step, `[batch_size, C, H, W]` uint8."""
        if self._order_epoch != self.epoch:
            order = epoch_order(len(self.pixels), self.config.train.seed, self.epoch)
            self._order = torch.from_numpy(order).to(self.pixels.device)
            self._order_epoch = self.epoch
        size = self.config.optim.batch_size
        start = (self.step % self.steps_per_epoch) * size
        return self.pixels[self._order[start : start + size]]

    def train_step(self) -> tuple[ElboTerms, float, bool]:
        """Take the next step; gives the bound's parts, the gradient's norm, and if it was taken."""
        config = self.config
        generator = step_generator(self.backend.device, config.train.seed, STREAM_TRAIN, self.step)
        x = self.backend.layout(presented(self.model, self.batch(), generator))
        eps = self._noise(len(x), generator)
        with self.backend.autocast():
            terms = ElboTerms(*self.forward(x, eps))
        weight = kl_weight_at(config.train, self.step, self.steps_per_epoch)
        loss = -free_bits_objective(terms, config.train.free_bits_nats, weight)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.model.parameters() if p.grad is not None]
        ).item()
        taken = self.guard.allows(loss.item(), norm)
        if taken:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate_at(config.optim, self.step, self.total_steps)
            self.optimizer.step()
            self.ema.update(self.guard.taken)
        self.step += 1
        return ElboTerms(terms.log_px_z.detach(), terms.kl.detach()), norm, taken

    @torch.no_grad()
    def validate(self, data: ImageData, batch_size: int = 500) -> dict[str, float]:
        """Mean bound of the averaged model on `data`, in float32, with fixed noise."""
        elbo, kl = 0.0, 0.0
        for start in range(0, len(data.pixels), batch_size):
            pixels = torch.from_numpy(data.pixels[start : start + batch_size])
            pixels = pixels.to(self.backend.device)
            generator = step_generator(self.backend.device, 0, STREAM_VALIDATION, start)
            x = self.backend.layout(presented(self.average, pixels, generator))
            terms = ElboTerms(*self.average(x, self._noise(len(x), generator)))
            elbo += terms.elbo.double().sum().item()
            kl += terms.kl.double().sum().item()
        return self._figures(elbo / len(data.pixels), kl / len(data.pixels))

    def _figures(self, elbo: float, kl: float) -> dict[str, float]:
        bits = bits_per_dim(torch.tensor(elbo, dtype=torch.float64), self.model.dims).item()
        return {"elbo_nats": elbo, "kl_nats": kl, "bits_per_dim": bits}

    def run(
        self, observer: Observer, stop: Callable[[], str], validation: ImageData
    ) -> Iterator[str]:
        """Train to the end, yielding a reason each time a checkpoint is due.

        `stop` is asked before each step and gives a reason to stop now, or an empty string.
        Yields "step" from time to time within an epoch, "epoch" after each, that reason when it
        stops early, and "done" after the last step. Speeds are of steps alone: what is done
        between two yields, and validation, is not counted.
        """
        window = _Window(self.model.dims)
        while self.step < self.total_steps:
            reason = stop() or self._step(observer, window, stop)
            if reason:
                yield reason
                return
            epoch_ends = self.step % self.steps_per_epoch == 0
            if not epoch_ends and self.step % LOG_EVERY_STEPS:
                continue
            self._report(observer, window)
            if epoch_ends:
                observer.validation(self.step, self.epoch, self.validate(validation))
            yield self._milestone(epoch_ends)
            window.restart()

    def _milestone(self, epoch_ends: bool) -> str:
        if self.step == self.total_steps:
            return "done"
        return "epoch" if epoch_ends else "step"

    def _step(self, observer: Observer, window: _Window, stop: Callable[[], str]) -> str:
        """Take a step and tell of it; gives the reason to stop where a wish to stop broke it.

        Ctrl-C in a terminal also reaches the C++ compiler that the first step may have started.
        """
        try:
            terms, norm, taken = self.train_step()
        except RuntimeError:
            if reason := stop():
                return reason
            raise
        if not taken:
            observer.skipped(self.step, -float(terms.elbo.mean()), norm)
        window.add(terms, norm, taken=taken)
        return ""

    def _report(self, observer: Observer, window: _Window) -> None:
        rate = learning_rate_at(self.config.optim, self.step - 1, self.total_steps)
        counts = {"learning_rate": rate, "skipped": self.guard.skipped}
        observer.train(self.step, {**window.figures(), **counts})

    def save(self, run_dir: Path, *, optimizer: bool = True) -> Path:
        """Write a checkpoint; without the optimiser's state it is a third of the size."""
        return save_checkpoint(
            run_dir,
            self.step,
            model_state=self.model.state_dict(),
            ema_state=dict(self.average.named_parameters()),
            optim_tensors=optimizer_tensors(self.optimizer, self.model) if optimizer else {},
            state={"guard": self.guard.state(), "time": time.time(), "images": self._images},
        )

    @functools.cached_property
    def _images(self) -> dict[str, Any]:
        """What tells these training images from others."""
        digest = hashlib.sha256(self.pixels.cpu().numpy().tobytes()).hexdigest()
        return {"count": len(self.pixels), "sha256": digest}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to exactly where `checkpoint` was written.

        Raises `TrainingError` where the training images are not those of then: their order and
        the number of steps an epoch would be others.
        """
        before = checkpoint.state.get("images")  # older checkpoints do not tell
        if before is not None and before != (now := self._images):
            raise TrainingError(
                f"the training images are not those that the run was started with "
                f"({before['count']} then, {now['count']} now): put them back, or start a new run"
            )
        self.model.load_state_dict(checkpoint.model)
        self.average.load_state_dict({**checkpoint.model, **checkpoint.ema})
        load_optimizer_tensors(self.optimizer, self.model, checkpoint.optim)
        self.guard.restore(checkpoint.state["guard"])
        self.step = checkpoint.step


class _Window:
    """Averages over the steps since the last report; on the device, so that no step waits."""

    def __init__(self, dims: int) -> None:
        self.dims = dims
        self.restart()

    def restart(self) -> None:
        """Forget all steps so far, and the time until now."""
        self.sums: Tensor | None = None  # [3] float64: ELBO, KL, gradient's norm
        self.steps = self.images = 0
        self.since = time.perf_counter()

    def add(self, terms: ElboTerms, norm: float, *, taken: bool) -> None:
        """Count a step; the figures of one that was skipped are no part of the averages."""
        self.images += len(terms.kl)
        if not taken:
            return
        elbo, kl = terms.elbo.mean().double(), terms.kl.sum(dim=1).mean().double()
        values = torch.stack([elbo, kl, elbo.new_tensor(norm)])
        self.sums = values if self.sums is None else self.sums + values
        self.steps += 1

    def figures(self) -> dict[str, float]:
        """The averages, in nats; nan where every step was skipped."""
        sums = [math.nan] * 3 if self.sums is None else (self.sums / self.steps).tolist()
        elbo, kl, norm = sums
        bits = bits_per_dim(torch.tensor(elbo, dtype=torch.float64), self.dims).item()
        seconds = time.perf_counter() - self.since
        return {
            "elbo_nats": elbo,
            "kl_nats": kl,
            "bits_per_dim": bits,
            "gradient_norm": norm,
            "images_per_second": self.images / seconds,
        }
