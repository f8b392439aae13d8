"""The training loop: exact to resume, safe to interrupt, the same in one process and in many.

Every random number of step t is a function of (seed, t) and the order of an epoch of (seed,
epoch), so that a checkpoint needs no generator's state and a resumed run takes the same steps.
Where several processes train, each computes its rows of the same batch; all learn the same
figures, and so come to the same decisions.
"""

import copy
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model import build_model
from model.layers import data_dependent_init
from model.objective import ElboTerms, free_bits_objective, importance_weighted_bound
from training.config import UNENDING_EPOCHS, RunConfig, Runtime
from training.data import ImageData
from training.data.images import identity
from training.errors import TrainingError
from training.fit.averages import Step, Window
from training.fit.batches import (
    STREAM_INIT,
    STREAM_TRAIN,
    Batches,
    noise,
    presented,
    step_generator,
)
from training.fit.device import Backend, prepare
from training.fit.distributed import PeerError, World, unsynchronised
from training.fit.optim import (
    Ema,
    StepGuard,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_rate,
)
from training.fit.progress import Observer
from training.fit.validate import validate
from training.runs.checkpoint import Checkpoint, save_checkpoint
from training.schedules import kl_weight_at, learning_rate_at, rewarming_at

# Images whose activations set the weights' gains and biases before the first step: as many as have
# so many pixels, at least a batch; their activations are in memory at once.
INIT_IMAGES, INIT_PIXELS = 512, 2**19
LOG_EVERY_STEPS = 50
# A wish to stop, as a number among those that all processes add up at every step.
WISHES = ("SIGINT", "SIGTERM", "budget")


class Trainer:
    """A run in progress: model, average, optimiser, and the step it has come to."""

    def __init__(
        self,
        config: RunConfig,
        runtime: Runtime,
        data: ImageData,
        world: World = World(),  # noqa: B008  frozen
    ) -> None:
        self.config = config
        self.world = world
        self.micro = self._micro_batches()
        torch.manual_seed(config.train.seed)
        self.backend: Backend = prepare(runtime, world, config.optim.accumulate)
        self.pixels = torch.from_numpy(data.pixels).to(self.backend.device)
        self.joined = data.joined
        self.batches = Batches(self.pixels, config.optim.batch_size, config.train.seed)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.total_steps = config.train.epochs * self.steps_per_epoch
        self.model = self.backend.place(build_model(config.model))
        self.step = self.optimizer_since = 0
        self.spent = 0.0  # of the call's minutes, a share on which all processes agree
        self.guard = StepGuard(config.optim.skip_factor)
        self._initialize()
        self.average = copy.deepcopy(self.model).eval()
        self.ema = Ema(self.model, self.average, config.optim.ema_decay)
        self.optimizer = build_optimizer(config.optim, self.model)
        self.parallel: nn.Module = world.parallel(self.model, self.backend.device)
        self.forward: nn.Module = self.backend.compile(self.parallel, self.total_steps)
        self.settled = world.size <= 2

    def _micro_batches(self) -> list[slice]:
        """This process's rows of the batch, one micro-batch after another."""
        size, parts = self.config.optim.batch_size, self.config.optim.accumulate
        own = self.world.share(size // parts)
        starts = range(0, size, size // parts)
        return [slice(start + own.start, start + own.stop) for start in starts]

    @functools.cached_property
    def images(self) -> dict[str, Any]:
        """What tells these training images from others."""
        return identity(self.pixels.cpu().numpy())

    def _initialize(self) -> None:
        generator = step_generator(self.backend.device, self.config.train.seed, STREAM_INIT, 0)
        fitting = INIT_PIXELS // (self.pixels.shape[-2] * self.pixels.shape[-1])
        count = max(self.config.optim.batch_size // self.config.optim.accumulate, fitting)
        pixels = self.pixels[self.batches.order(0)[: min(INIT_IMAGES, count)]]
        x = presented(self.model, pixels, generator)
        with torch.no_grad(), data_dependent_init(self.model):
            self.model(self.backend.layout(x), noise(self.model, len(x), generator))
        self.world.spread(self.model)

    @property
    def ends(self) -> bool:
        """Whether the run has a last step, and is not for its minutes alone to end."""
        return self.config.train.epochs < UNENDING_EPOCHS

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the next step belongs to."""
        return self.step // self.steps_per_epoch

    def train_step(self, wish: str = "") -> Step:
        """Take the next step; `wish` is this process's reason to stop after it, if any.

        Nothing is changed by a step that another process's failure broke off (`PeerError`).
        """
        with self.world.peers():
            self._settle()
            self.backend.begin_step()
            self.optimizer.zero_grad(set_to_none=True)
            step = self._agreed(self._backward(), wish)
        if step.taken:
            self._clip(step.norm)
            set_rate(self.optimizer, self._learning_rate(self.step))
            self.optimizer.step()
            self.ema.update(self.guard.taken)
        self.step += 1
        return step

    def _clip(self, norm: float) -> None:
        limit = self.config.optim.clip_norm
        if limit and norm > limit:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, limit / norm)

    def _settle(self) -> None:
        """Compute gradients once for nothing, before the first step of three processes or more.

        DistributedDataParallel puts gradients into other buckets after its first pass, and the
        order in which three numbers are added depends on their place: without this, a resumed
        run's first step would differ from the uninterrupted one's in last bits.
        """
        if not self.settled:
            self._backward()
            self.settled = True

    def _learning_rate(self, step: int) -> float:
        config, total = self.config.optim, self.total_steps
        warmth = rewarming_at(config, step, self.optimizer_since, total)
        return warmth * learning_rate_at(config, step, total, self.spent)

    def _backward(self) -> Tensor:
        """Gradients of the step's loss; gives `[3]`: loss, ELBO and KL, means in nats."""
        config, pixels = self.config, self.batches.at(self.step)
        generator = step_generator(self.backend.device, config.train.seed, STREAM_TRAIN, self.step)
        # The numbers of the whole batch are drawn once, and each micro-batch takes its rows.
        flips, distorted = config.data.horizontal_flips, config.data.distorted
        shown = presented(self.model, pixels, generator, flips=flips, distorted=distorted)
        x = self.backend.layout(shown)
        eps = self._noise(len(pixels), generator)
        weight = kl_weight_at(config.train, self.step, self.steps_per_epoch)
        parts = [
            self._backward_micro(x[rows], eps[..., rows, :], weight, last=rows is self.micro[-1])
            for rows in self.micro
        ]
        return torch.stack(parts).mean(dim=0)

    def _backward_micro(self, x: Tensor, eps: Tensor, weight: float, *, last: bool) -> Tensor:
        with unsynchronised(self.parallel, last=last):
            with self.backend.autocast():
                terms = ElboTerms(*self.forward(x, eps))
            loss = -self._objective(terms, weight)
            (loss / len(self.micro)).backward()  # type: ignore[no-untyped-call]
        parts = (loss.detach(), terms.elbo.detach().mean(), terms.kl.detach().sum(dim=-1).mean())
        return torch.stack([part.double() for part in parts])

    def _noise(self, count: int, generator: torch.Generator) -> Tensor:
        """`[B, D]`, or `[K, B, D]` where the objective takes K draws of each image."""
        draws = self.config.train.importance_samples
        eps = noise(self.model, draws * count, generator)
        return eps if draws == 1 else eps.view(draws, count, -1)

    def _objective(self, terms: ElboTerms, weight: float) -> Tensor:
        if terms.log_px_z.dim() == 2:
            return importance_weighted_bound(terms.log_weight).mean()
        minimum = self.config.train.free_bits_nats
        return free_bits_objective(terms, minimum, weight, self.world.batch_mean)

    def _agreed(self, parts: Tensor, wish: str) -> Step:
        """The whole batch's figures, the decision that they lead to, and everybody's wishes."""
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.model.parameters() if p.grad is not None]
        )
        wishes = parts.new_tensor([wish == reason for reason in WISHES])
        more = parts.new_tensor([self.spent])
        shared = self.world.mean(torch.cat([parts, norm.double()[None], more, wishes]))
        # The one time that the device is awaited:
        loss, elbo, kl, size, self.spent, *wished = shared.tolist()
        taken = self.guard.allows(loss, size)
        stop = next((reason for reason, votes in zip(WISHES, wished, strict=True) if votes), "")
        return Step(loss, elbo, kl, size, taken, stop)

    def validate(self, data: ImageData) -> dict[str, float]:
        """Mean bound of the averaged model on `data`, in float32, with fixed noise."""
        return validate(self.average, data, self.backend, self.world)

    def run(
        self,
        observer: Observer,
        stop: Callable[[], str],
        validation: ImageData,
        spent: Callable[[], float] = lambda: 0.0,
    ) -> Iterator[str]:
        """Train to the end, yielding a reason each time a checkpoint is due.

        `stop` is asked before each step and gives a reason to stop now, or an empty string; of
        several processes all stop after the step at which one had a reason. `spent` tells the share
        of the call's minutes that is over, for the schedule "budget". Yields "step" from
        time to time within an epoch, "epoch" after each, that reason when it stops early, and
        "done" after the last step. Speeds are of steps alone: what is done between two yields,
        and validation, is not counted.
        """
        window, agreed = Window(self.model.dims), ""
        while self.step < self.total_steps:
            wish = stop()
            if reason := wish if self.world.alone else agreed:
                yield reason
                return
            self.spent = spent()
            agreed, broken = self._step(observer, window, wish, stop)
            if broken:
                yield broken
                return
            epoch_ends = self.step % self.steps_per_epoch == 0
            if not epoch_ends and self.step % LOG_EVERY_STEPS:
                continue
            rate, skipped = self._learning_rate(self.step - 1), self.guard.skipped
            figures = {**window.figures(), "learning_rate": rate, "skipped": skipped}
            observer.train(self.step, figures)
            if epoch_ends:
                observer.validation(self.step, self.epoch, self.validate(validation))
            passing = "epoch" if epoch_ends else "step"
            yield "done" if self.step == self.total_steps else passing
            window.restart()

    def _step(
        self, observer: Observer, window: Window, wish: str, stop: Callable[[], str]
    ) -> tuple[str, str]:
        """Take a step and tell of it; gives everybody's wish, and the wish that broke the step.

        Ctrl-C in a terminal also reaches the C++ compiler that the first step may have started.
        """
        try:
            step = self.train_step(wish)
        except RuntimeError as error:
            if not (reason := stop()):
                raise
            if self.world.alone:
                return "", reason
            raise PeerError(f"{reason} broke off a step of process {self.world.rank}") from error
        if not step.taken:
            observer.skipped(self.step, -step.elbo_nats, step.norm)
        window.add(step, self.config.optim.batch_size)
        return step.stop, ""

    def save(self, run_dir: Path, *, optimizer: bool = True) -> Path:
        """Write a checkpoint; without the optimiser's state it is half the size."""
        return save_checkpoint(
            run_dir,
            self.step,
            model_state=self.model.state_dict(),
            ema_state=dict(self.average.named_parameters()),
            optim_tensors=optimizer_tensors(self.optimizer, self.model) if optimizer else {},
            state={
                "guard": self.guard.state(),
                "time": time.time(),
                "images": self.images,
                "optimizer_since": self.optimizer_since,
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to exactly where `checkpoint` was written; a fresh optimiser where it has none.

        Raises `TrainingError` where the training images are not those of then: their order and
        the number of steps an epoch would be others.
        """
        before, now = checkpoint.state["images"], self.images
        own = len(self.pixels) - self.joined
        # A run may have been without the validation images, which come last.
        if before != now and before != identity(self.pixels[:own].cpu().numpy()):
            raise TrainingError(
                f"the training images are not those that the run was started with "
                f"({before['count']} then, {now['count']} now): put them back, or start a new run"
            )
        checkpoint.check_fits(self.model)
        self.model.load_state_dict(checkpoint.model)
        self.average.load_state_dict({**checkpoint.model, **checkpoint.ema})
        load_optimizer_tensors(self.optimizer, self.model, checkpoint.optim)
        self.guard.restore(checkpoint.state["guard"])
        self.step = checkpoint.step
        since = checkpoint.state["optimizer_since"]
        # A run none of whose steps was taken has no optimiser's state, and loses none.
        kept = checkpoint.optim or not self.guard.taken
        self.optimizer_since = since if kept else checkpoint.step
