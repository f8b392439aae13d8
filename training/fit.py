"""One call of `iafvae-train fit`: a run directory that starts, stops and goes on cleanly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from training.checkpoint import has_checkpoint, load_checkpoint
from training.config import RunConfig, Runtime, for_images
from training.data import ImageData, Split, load_dataset
from training.errors import TrainingError
from training.interrupts import Interrupts
from training.loop import Trainer
from training.progress import shown
from training.provenance import fit_command, git_revision, processor
from training.records import Recorder
from training.rundir import locked, open_run, write_config
from training.sheets import reconstruction_sheet, sample_sheet, save_sheet

# A checkpoint costs a second or so: at an epoch's end one a minute, within long epochs one in ten.
CHECKPOINT_AT_EPOCH_SECONDS = 60.0
CHECKPOINT_WITHIN_EPOCH_SECONDS = 600.0
SHEET_IMAGES = 64


@dataclass(frozen=True)
class FitResult:
    """How a call ended: `reason` is "done", "budget", "SIGINT" or "SIGTERM"."""

    reason: str
    step: int
    total_steps: int
    elbo_nats: float
    bits_per_dim: float
    skipped: int


def load_images(config: RunConfig, split: Split, data_dir: Path | None) -> ImageData:
    """The images of one split of the run's data set."""
    data = config.data
    return load_dataset(data.name, split, data_dir, size=data.size, channels=data.channels)


def environment_of(trainer: Trainer) -> dict[str, Any]:
    """What computed the run, for its model card."""
    return {
        "command": fit_command(trainer.config),
        "git_revision": git_revision(),
        "processor": processor(),
        "torch": torch.__version__,
        "device": str(trainer.backend.device),
        "bf16": trainer.backend.bf16,
        "compiled": trainer.forward is not trainer.model,
        "threads": torch.get_num_threads(),
    }


class _Sheets:
    """Samples and reconstructions of the averaged model, as PNG files and in TensorBoard."""

    def __init__(self, run_dir: Path, recorder: Recorder, images: ImageData) -> None:
        self.folder = run_dir / "sheets"
        self.recorder = recorder
        self.pixels = images.pixels[: SHEET_IMAGES // 2]

    def write(self, trainer: Trainer) -> None:
        name = f"{trainer.step:08d}"
        sheets = {
            "samples": sample_sheet(trainer.average, count=SHEET_IMAGES),
            "reconstructions": reconstruction_sheet(trainer.average, self.pixels),
        }
        for kind, sheet in sheets.items():
            save_sheet(self.folder / f"{kind}-{name}.png", sheet)
            self.recorder.image(trainer.step, kind, sheet)


def fit(
    config: RunConfig,
    run_dir: Path,
    *,
    runtime: Runtime,
    data_dir: Path | None,
    resume: bool,
    budget_minutes: float | None = None,
    console: Console,
) -> FitResult:
    """Train `config` in `run_dir` until its last epoch, a signal, or the end of the budget.

    A checkpoint is written at most every minute at an epoch's end, every ten minutes within an
    epoch, and always at the end of the call. The budget counts from the first step. Raises
    `TrainingError` before anything is written where the images, the options or the directory do
    not allow the run.
    """
    if budget_minutes is not None and not budget_minutes >= 0:  # nan too
        raise TrainingError(f"--budget-minutes must not be negative, not {budget_minutes}")
    train = load_images(config, "train", data_dir)
    validation = load_images(config, "validation", data_dir)
    _, channels, height, width = train.pixels.shape
    config = for_images(config, (channels, height, width))
    if len(train.pixels) < config.optim.batch_size:
        raise TrainingError(
            f"{len(train.pixels)} training images do not fill one batch of "
            f"{config.optim.batch_size}; give a smaller --batch-size or more images"
        )
    open_run(run_dir, config, resume=resume)
    trainer = Trainer(config, runtime, train)
    with locked(run_dir):
        open_run(run_dir, config, resume=resume)  # another run may have come in between
        if resume:
            _restore(trainer, run_dir, console)
        write_config(run_dir, config, environment_of(trainer))
        recorder = Recorder(run_dir, trainer.step)
        try:
            sheets = _Sheets(run_dir, recorder, validation)
            reason = _train(trainer, run_dir, recorder, sheets, validation, budget_minutes, console)
        finally:
            recorder.close()
    final = trainer.validate(validation)
    return FitResult(
        reason=reason,
        step=trainer.step,
        total_steps=trainer.total_steps,
        elbo_nats=final["elbo_nats"],
        bits_per_dim=final["bits_per_dim"],
        skipped=trainer.guard.skipped,
    )


def _restore(trainer: Trainer, run_dir: Path, console: Console) -> None:
    """Go back to the newest good checkpoint; a run that ended before its first starts anew."""
    if not has_checkpoint(run_dir):
        console.print(f"{run_dir} has no checkpoint yet: starting it again", soft_wrap=True)
        return
    checkpoint = load_checkpoint(run_dir)
    for fault in checkpoint.faults:
        console.print(fault, style="yellow", soft_wrap=True, highlight=False)
    trainer.restore(checkpoint)
    if trainer.step > trainer.total_steps:
        raise TrainingError(
            f"{run_dir} has come to step {trainer.step}, epoch {trainer.epoch}: --epochs "
            f"{trainer.config.train.epochs} lies behind it"
        )
    console.print(
        f"resuming {run_dir} at step {trainer.step} of {trainer.total_steps}", soft_wrap=True
    )


def _train(
    trainer: Trainer,
    run_dir: Path,
    recorder: Recorder,
    sheets: _Sheets,
    validation: ImageData,
    budget_minutes: float | None,
    console: Console,
) -> str:
    interrupts = Interrupts()
    stop = _stopper(interrupts, trainer, budget_minutes)
    epochs = trainer.config.train.epochs
    reason, saved_at = "done", time.monotonic()
    with (
        interrupts.watched(),
        shown(
            console, recorder, total_steps=trainer.total_steps, step=trainer.step, epochs=epochs
        ) as observer,
    ):
        for reason in trainer.run(observer, stop, validation):
            age = time.monotonic() - saved_at
            if age < _LEAST_AGE_SECONDS.get(reason, -math.inf):
                continue
            trainer.save(run_dir)
            saved_at = time.monotonic()
            sheets.write(trainer)
    return reason


# A reason that only passes by -> how old the last checkpoint must be for another.
_LEAST_AGE_SECONDS = {
    "epoch": CHECKPOINT_AT_EPOCH_SECONDS,
    "step": CHECKPOINT_WITHIN_EPOCH_SECONDS,
}


def _stopper(
    interrupts: Interrupts, trainer: Trainer, budget_minutes: float | None
) -> Callable[[], str]:
    started: list[float] = []  # set after the first step, which may compile for a minute
    first = trainer.step

    def reason() -> str:
        if trainer.step > first and not started:
            started.append(time.monotonic())
        if interrupts.reason:
            return interrupts.reason
        if budget_minutes is None or not started:
            return ""
        return "budget" if time.monotonic() - started[0] >= 60 * budget_minutes else ""

    return reason
