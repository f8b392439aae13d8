"""One call of `iafvae-train fit`: a run directory that starts, stops and goes on cleanly."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from training.config import RunConfig, Runtime, for_images
from training.data import ImageData, load_splits
from training.data.folder import FolderOptions
from training.errors import TrainingError, in_words
from training.fit.distributed import World
from training.fit.progress import Budget
from training.fit.session import Session
from training.fit.trainer import Trainer
from training.runs.checkpoint import Checkpoint, has_checkpoint, load_checkpoint
from training.runs.directory import (
    CONFIG_FILE,
    known_data_dir,
    locked,
    open_run,
    read_config,
    remember_data_dir,
    write_config,
)
from training.runs.history import rate_note, read_environment, with_call
from training.runs.metrics import Recorder
from training.runs.provenance import fit_command, git_revision, processor

__all__ = ["FitResult", "environment_of", "fit", "run_images"]

ACCUMULATED_FREE_BITS = (
    "note: with --accumulate each micro-batch of {rows} images has its own mean under free bits: "
    "the objective is not that of batches of {batch}"
)


@dataclass(frozen=True)
class FitResult:
    """How a call ended: `reason` is "done", "budget", "SIGINT" or "SIGTERM".

    `minutes` are those that count, from the first step done; `start_seconds` what came before
    them, compilation above all; `seen`: whether the validation images, whose bound this is, were
    trained on.
    """

    reason: str
    step: int
    total_steps: int
    elbo_nats: float
    bits_per_dim: float
    skipped: int
    minutes: float = 0.0
    start_seconds: float = 0.0
    seen: bool = False


def run_images(
    config: RunConfig, data_dir: Path | None, tell: Callable[[str], None]
) -> list[ImageData]:
    """The images to train on and to choose by; `tell` hears what a folder holds.

    Where the latter are trained on, too, they come behind the others.
    """
    data = config.data
    options = FolderOptions(size=data.size, channels=data.channels, fit=data.fit)
    train, validation = load_splits(
        data.name, ("train", "validation"), data_dir, options, tell=tell
    )
    if data.with_validation:
        both = np.concatenate([train.pixels, validation.pixels])
        fitted = train.fitted or validation.fitted
        train = replace(train, pixels=both, fitted=fitted, joined=len(validation))
    return [train, validation]


def environment_of(trainer: Trainer) -> dict[str, Any]:
    """What computed the run, for its model card."""
    return {
        "command": fit_command(trainer.config),
        "git_revision": git_revision(),
        "processor": processor(),
        "torch": torch.__version__,
        "device": str(trainer.backend.device),
        "bf16": trainer.backend.bf16,
        "compiled": trainer.forward is not trainer.parallel,
        "threads": torch.get_num_threads(),
        "processes": trainer.world.size,
    }


def fit(
    config: RunConfig,
    run_dir: Path,
    *,
    runtime: Runtime,
    data_dir: Path | None,
    resume: bool,
    budget_minutes: float | None = None,
    optimizer_state: bool = True,
    console: Console,
    world: World = World(),  # noqa: B008  frozen
) -> FitResult:
    """Train `config` in `run_dir` until its last epoch, a signal, or the end of the budget.

    A checkpoint is written at most every minute at an epoch's end, every ten minutes within an
    epoch, and always at the end of the call, with the optimiser's state or without. The budget
    counts from the first step. Of several processes the first alone writes. Raises
    `TrainingError` before anything is written where the images, the options or the directory do
    not allow the run.
    """
    if budget_minutes is not None and not budget_minutes >= 0:  # nan too
        raise TrainingError(f"--budget-minutes must not be negative, not {budget_minutes}")
    if config.optim.schedule == "budget" and not budget_minutes:
        raise TrainingError(
            "the schedule budget falls at the end of the call's minutes: say how many, with "
            "--budget-minutes"
        )
    data_dir = known_data_dir(run_dir, data_dir)
    notes = Console(stderr=True, quiet=console.quiet, soft_wrap=True, highlight=False, markup=False)
    train, validation = world.machine_by_machine(lambda: run_images(config, data_dir, notes.print))
    config = _fitted(config, train, world)
    world.from_first(lambda: open_run(run_dir, config, resume=resume))
    trainer = Trainer(config, runtime, train, world)
    if not world.alone:
        world.check_same("the training images", trainer.images)
    with contextlib.ExitStack() as held:
        world.from_first(lambda: _claim(held, run_dir, config, resume=resume))
        if resume:
            _restore(trainer, world.from_first(lambda: _newest(run_dir, console)), console)
        recorders: list[Recorder] = []  # one, in the first process
        world.from_first(lambda: recorders.append(_record(held, trainer, run_dir, data_dir)))
        recorder = next(iter(recorders), None)
        batch, parts = config.optim.batch_size, config.optim.accumulate
        if parts > 1 and config.train.has_free_bits:
            note = ACCUMULATED_FREE_BITS.format(rows=batch // parts, batch=batch)
            console.print(note, style="yellow", soft_wrap=True)
        notes.print(_plan(trainer, len(train.pixels), len(validation.pixels)))
        budget = Budget(budget_minutes)
        session = Session(trainer, run_dir, validation, recorder, console, optimizer_state)
        reason = session.train(budget)
        minutes = budget.spent
    final = trainer.validate(validation)
    return FitResult(
        reason=reason,
        step=trainer.step,
        total_steps=trainer.total_steps,
        elbo_nats=final["elbo_nats"],
        bits_per_dim=final["bits_per_dim"],
        skipped=trainer.guard.skipped,
        minutes=minutes,
        start_seconds=budget.start_seconds,
        seen=config.data.with_validation,
    )


def _fitted(config: RunConfig, train: ImageData, world: World) -> RunConfig:
    """The configuration for images of this shape; raises where a step cannot be made of them."""
    _, channels, height, width = train.pixels.shape
    config = for_images(config, (channels, height, width))
    batch = config.optim.batch_size
    if len(train.pixels) < batch:
        raise TrainingError(
            f"{len(train.pixels)} training images do not fill one batch of {batch}; give a smaller "
            "--batch-size or more images"
        )
    world.share(batch // config.optim.accumulate)
    return config


def _claim(held: contextlib.ExitStack, run_dir: Path, config: RunConfig, *, resume: bool) -> None:
    with _writable(run_dir):
        held.enter_context(locked(run_dir))
    open_run(run_dir, config, resume=resume)  # another run may have come in between


def _record(
    held: contextlib.ExitStack, trainer: Trainer, run_dir: Path, data_dir: Path | None
) -> Recorder:
    before = read_config(run_dir) if (run_dir / CONFIG_FILE).exists() else None
    environment = with_call(
        read_environment(run_dir), before, trainer.config, environment_of(trainer), trainer.step
    )
    with _writable(run_dir):
        write_config(run_dir, trainer.config, environment)
        remember_data_dir(run_dir, data_dir)
        recorder = Recorder(run_dir, trainer.step)
    held.callback(recorder.close)
    return recorder


@contextlib.contextmanager
def _writable(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{run_dir} cannot be written to ({in_words(error)}): make room there, or give another "
            "--out"
        ) from error


def _newest(run_dir: Path, console: Console) -> Checkpoint | None:
    """The newest good checkpoint; None where a run ended before its first."""
    if not has_checkpoint(run_dir):
        console.print(f"{run_dir} has no checkpoint yet: starting it again", soft_wrap=True)
        return None
    checkpoint = load_checkpoint(run_dir)
    for fault in checkpoint.faults:
        console.print(fault, style="yellow", soft_wrap=True, highlight=False)
    return checkpoint


def _restore(trainer: Trainer, checkpoint: Checkpoint | None, console: Console) -> None:
    if checkpoint is None:
        return
    run_dir = checkpoint.run_dir
    trainer.restore(checkpoint)
    if trainer.step > trainer.total_steps:
        raise TrainingError(
            f"{run_dir} has come to step {trainer.step}, epoch {trainer.epoch}: --epochs "
            f"{trainer.config.train.epochs} lies behind it"
        )
    whole = f" of {trainer.total_steps}" if trainer.ends else ""
    console.print(f"resuming {run_dir} at step {trainer.step}{whole}", soft_wrap=True)
    if trainer.world.first:  # alone has the run's directory
        before = read_config(run_dir)
        note = rate_note(before, trainer.config, trainer.step, trainer.steps_per_epoch)
        if note:
            console.print(note, style="yellow", soft_wrap=True, highlight=False)
    if not checkpoint.optim:
        console.print(
            "its checkpoint holds no optimiser state: the optimiser starts afresh, and the steps "
            "are not those of an uninterrupted run",
            style="yellow",
            soft_wrap=True,
        )


def _plan(trainer: Trainer, train: int, validation: int) -> str:
    config = trainer.config
    held_out = f"{validation:,} to validate on"
    if config.data.with_validation:
        held_out = f"the {validation:,} to validate on among them"
    text = (
        f"{train:,} images to train on, {held_out}; "
        f"{trainer.steps_per_epoch:,} steps of {config.optim.batch_size} images an epoch"
    )
    if not trainer.ends:
        return text
    epochs = config.train.epochs
    plural = "" if epochs == 1 else "s"
    return f"{text}, {trainer.total_steps:,} steps in {epochs} epoch{plural}"
