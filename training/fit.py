"""One call of `iafvae-train fit`: a run directory that starts, stops and goes on cleanly."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from training.checkpoint import load_checkpoint
from training.config import RunConfig, Runtime, for_images, run_config_from_dict, run_preset
from training.data import ImageData, load_dataset
from training.errors import TrainingError
from training.loop import Trainer
from training.progress import shown
from training.records import Recorder
from training.sheets import reconstruction_sheet, sample_sheet, save_sheet

CONFIG_FILE = "config.json"
CHECKPOINT_EVERY_SECONDS = 60.0
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


class Interrupts:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop; a second one stops at once."""

    def __init__(self) -> None:
        self.reason = ""

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        signal.signal(number, signal.default_int_handler)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch both signals inside, where this is the main thread."""
        before: dict[signal.Signals, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread: nobody's signals to take
            pass
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def write_config(run_dir: Path, config: RunConfig, environment: dict[str, Any]) -> None:
    """Write `config.json`, whole or not at all."""
    temporary = run_dir / f".{CONFIG_FILE}.tmp"
    content = {**config.to_dict(), "environment": environment}
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(run_dir / CONFIG_FILE)


def read_config(run_dir: Path) -> RunConfig:
    """Read a run's `config.json`; raises `TrainingError` saying what to do where it cannot."""
    path = run_dir / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(
            f"{run_dir} holds no run ({CONFIG_FILE} is missing); start one without --resume"
        ) from None
    except ValueError as error:
        raise TrainingError(f"{path} is not readable JSON: {error}") from error
    values.pop("environment", None)
    return run_config_from_dict(values)


def open_run(run_dir: Path, config: RunConfig, *, resume: bool) -> None:
    """Check that `run_dir` can hold this run; raises `TrainingError` saying what to do."""
    exists = (run_dir / CONFIG_FILE).exists()
    if exists and not resume:
        raise TrainingError(
            f"{run_dir} already holds a run; go on with --resume, or give another --out"
        )
    if not exists and run_dir.exists() and any(run_dir.iterdir()):
        raise TrainingError(f"{run_dir} is not empty and not a run; give another --out")
    if exists:
        before = replace(read_config(run_dir), preset=config.preset)
        same_length = replace(before, train=replace(before.train, epochs=config.train.epochs))
        if same_length != config:
            raise TrainingError(
                f"{run_dir} was started with another configuration ({_difference(before, config)})"
                "; only --epochs may change at a resume"
            )


def _difference(before: RunConfig, after: RunConfig) -> str:
    old, new = before.to_dict(), after.to_dict()
    return "; ".join(
        f"{part}.{key}: {old[part].get(key)} then, {value} now"
        for part in ("model", "data", "optim", "train")
        for key, value in new[part].items()
        if old[part].get(key) != value and (part, key) != ("train", "epochs")
    )


def load_images(config: RunConfig, split: Any, data_dir: Path | None) -> ImageData:
    """The images of one split of the run's data set."""
    data = config.data
    return load_dataset(data.name, split, data_dir, size=data.size, channels=data.channels)


def fit_command(config: RunConfig) -> str:
    """The command that starts this run anew, its paths left to the reader."""
    base = run_preset(config.preset or "mnist")
    words = ["iafvae-train fit", f"--preset {config.preset or 'mnist'}"]
    options = {
        "--batch-size": (config.optim.batch_size, base.optim.batch_size),
        "--learning-rate": (config.optim.learning_rate, base.optim.learning_rate),
        "--optimizer": (config.optim.kind, base.optim.kind),
        "--schedule": (config.optim.schedule, base.optim.schedule),
        "--ema-decay": (config.optim.ema_decay, base.optim.ema_decay),
        "--epochs": (config.train.epochs, base.train.epochs),
        "--seed": (config.train.seed, base.train.seed),
        "--free-bits": (config.train.free_bits_nats, base.train.free_bits_nats),
        "--kl-warmup-epochs": (config.train.kl_warmup_epochs, base.train.kl_warmup_epochs),
        "--likelihood": (config.model.likelihood, base.model.likelihood),
    }
    if config.data.name.startswith("folder:"):
        words.append("--data folder:PATH")
    elif config.data != base.data:
        words.append(f"--data {config.data.name}")
    words += [f"{option} {now}" for option, (now, before) in options.items() if now != before]
    return " ".join([*words, "--out RUN"])


def environment_of(trainer: Trainer) -> dict[str, Any]:
    """What computed the run, for its model card."""
    return {
        "command": fit_command(trainer.config),
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

    A checkpoint is written at most every minute at an epoch's end, and always at the end of the
    call. The budget counts from the first step.
    """
    train = load_images(config, "train", data_dir)
    validation = load_images(config, "validation", data_dir)
    _, *shape = train.pixels.shape
    config = for_images(config, (shape[0], shape[1], shape[2]))
    if len(train.pixels) < config.optim.batch_size:
        raise TrainingError(
            f"{len(train.pixels)} training images do not fill one batch of "
            f"{config.optim.batch_size}; give a smaller --batch-size or more images"
        )
    open_run(run_dir, config, resume=resume)
    trainer = Trainer(config, runtime, train)
    if resume:
        checkpoint = load_checkpoint(run_dir)
        for fault in checkpoint.faults:
            console.print(fault, style="yellow")
        trainer.restore(checkpoint)
        console.print(f"resuming {run_dir} at step {trainer.step} of {trainer.total_steps}")
    run_dir.mkdir(parents=True, exist_ok=True)
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
            if reason == "epoch" and time.monotonic() - saved_at < CHECKPOINT_EVERY_SECONDS:
                continue
            trainer.save(run_dir)
            saved_at = time.monotonic()
            sheets.write(trainer)
    return reason


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
