"""`iafvae-train fit`: its options, and what it says at the end."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from model.config import ConfigError, preset_names
from training.cli.options import (
    AsJson,
    DataDir,
    RuntimeOptions,
    console,
    data_name,
    errors,
    option,
    say,
    stopping,
    with_options,
)
from training.config import RunConfig, overridden, run_preset
from training.errors import TrainingError
from training.fit.signals import EXIT_CODES
from training.overrides import with_settings

if TYPE_CHECKING:
    from training.fit.fit import FitResult

__all__ = ["FitOptions", "fit"]

DIVERGED = (
    "the training has diverged: the validation bound is no number. Begin anew with a lower "
    "--learning-rate"
)


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Which run: every one that changes its numbers is in `training.runs.provenance.OPTIONS`."""

    out: Path = option(..., "The run directory to write.")
    preset: str | None = option(
        None, f"Architecture and settings: {', '.join(preset_names())}. Default: mnist."
    )
    data: str | None = option(
        None, "mnist, mnist-static, fashion-mnist, cifar10, or folder:PATH of your own images."
    )
    data_dir: DataDir = None
    size: str | None = option(None, "With folder: resize images to N or HEIGHTxWIDTH.")
    channels: int | None = option(None, "With folder: 1 (grey) or 3 (RGB).")
    flips: bool | None = option(
        None,
        "Mirror every second training image, drawn anew at each presentation "
        "(on for cifar10-*, off for digits).",
        "--flips/--no-flips",
        show_default=False,
    )
    distorted: float | None = option(
        None,
        "Turn, stretch and slant this share of the training images a little, drawn anew at each "
        "presentation, where a model learns its images by heart: 0 (none) to 1 (0).",
    )
    with_validation: bool | None = option(
        None,
        "Train on the validation images too: for a model's last epochs, when nothing is left to "
        "choose by them. Cannot be undone.",
        "--with-validation",
    )
    likelihood: str | None = option(
        None, "bernoulli (binary), discretized_logistic or logistic_mixture (8-bit)."
    )
    epochs: int | None = option(None, "How many epochs in all.")
    batch_size: int | None = option(None, "Images a step, over all processes (the preset's).")
    accumulate: int | None = option(
        None,
        "Compute a step's batch as this many micro-batches, one after another, for less "
        "memory (1). Their gradients add up to the batch's, but not under free bits: each "
        "micro-batch then has its own mean, which is another objective.",
    )
    learning_rate: float | None = option(
        None, "Its highest value, after the warm-up (the preset's)."
    )
    warmup_steps: int | None = option(
        None, "Steps over which the learning rate rises (400, or a tenth of the run)."
    )
    optimizer: str | None = option(None, "adamax or adam.")
    schedule: str | None = option(
        None,
        "trapezoid, cosine, constant, or budget: a trapezoid that falls at the end of "
        "--budget-minutes.",
    )
    decay_fraction: float | None = option(
        None,
        "Over which part of the run, at its end, the rate of a trapezoid falls to zero: "
        "0 (never) to 1 (0.4). Of a budget: over which part of its minutes.",
    )
    weight_decay: float | None = option(None, "L2 penalty of the optimiser (0).")
    clip_norm: float | None = option(None, "Cut gradients to this norm (0: leave them).")
    ema_decay: float | None = option(None, "Polyak averaging of the weights (0.999).")
    free_bits: float | None = option(None, "Minimum nats of each latent part (paper, C.8).")
    kl_warmup_epochs: float | None = option(
        None, "Epochs over which the KL's weight rises to 1 (5)."
    )
    importance_samples: int | None = option(
        None,
        "Train on the importance-weighted bound of this many draws an image, without free "
        "bits (1: the ELBO).",
    )
    seed: int | None = option(None, "Of the weights, the order, the binarisation, the noise (0).")
    settings: list[str] | None = option(
        None,
        "Any other field of config.json, PATH=VALUE, as often as needed: "
        "model.z_channels=8, model.levels=[3,3].",
        "--set",
    )
    resume: bool = option(
        False,
        "Go on with the run in --out, as it was configured; only --epochs, --learning-rate, "
        "--decay-fraction, --distorted, --with-validation and --importance-samples may differ, "
        "the number of processes, with --data the place of a folder that was moved, and without "
        "free bits --accumulate.",
        "--resume",
    )

    def config(self) -> RunConfig:
        """What the run was started with, or the preset, with what is given here."""
        from training.runs.directory import CONFIG_FILE, read_config

        begun = self.resume and self.preset is None
        if begun and not (self.out / CONFIG_FILE).exists():
            raise ConfigError(f"{self.out} holds no run; start one without --resume")
        base = read_config(self.out) if begun else run_preset(self.preset or "mnist")
        config = with_settings(overridden(base, self._overrides()), self.settings or [])
        falls = config.optim.schedule in ("trapezoid", "budget")
        if self.decay_fraction is not None and not falls:
            raise ConfigError(
                f"--decay-fraction is the fall of a trapezoid: the schedule "
                f"{config.optim.schedule} has none"
            )
        return config

    def _overrides(self) -> dict[str, dict[str, Any]]:
        """What is given, by the configuration's part and field."""
        from training.runs.provenance import OPTIONS

        given: dict[str, dict[str, Any]] = {
            "data": {
                "name": data_name(self.data, self.data_dir),
                "horizontal_flips": self.flips,
                "with_validation": self.with_validation,
            }
        }
        for name, (part, key) in OPTIONS.items():
            value = getattr(self, name.removeprefix("--").replace("-", "_"))
            given.setdefault(part, {})[key] = _size(value) if name == "--size" else value
        return given


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    numbers = text.lower().split("x")
    if not all(n.isdecimal() for n in numbers) or len(numbers) not in (1, 2):
        raise ConfigError(f"--size is a number or HEIGHTxWIDTH, not {text!r}")
    return int(numbers[0]), int(numbers[-1])


@dataclass(frozen=True, kw_only=True)
class CallOptions:
    """How far this call goes, and what it keeps."""

    budget_minutes: float | None = option(
        None,
        "Stop cleanly after this many minutes of steps; the first one, which compiles, "
        "comes on top.",
    )
    optimizer_state: bool = option(
        True,
        "Keep the optimiser's state in checkpoints. Without it they have half the size, "
        "and a resumed run is close to an uninterrupted one, not equal to it.",
    )
    cuda_graphs: str = option("off", "on or off: replay a compiled step on one GPU as CUDA graphs.")
    timeout_minutes: float = option(
        10.0, "Under torchrun: how long a process waits for the others."
    )
    as_json: AsJson = False


@dataclass(frozen=True, kw_only=True)
class FitOptions(RuntimeOptions, CallOptions, RecipeOptions):
    """All options of `fit`."""


@with_options(FitOptions)
def fit(options: FitOptions) -> None:
    """Train a model.

    Ctrl-C saves and stops, --resume goes on exactly.

    Under torchrun the processes share every batch, and get the numbers of one process.

    \b
    Examples:
      iafvae-train fit --preset mnist --out runs/mnist
      iafvae-train fit --resume --out runs/mnist
      iafvae-train fit --resume --epochs 170 --decay-fraction 0.15 --out \\
        runs/mnist
      iafvae-train fit --preset cifar10-small --set model.levels=[2,2,2] \\
        --out runs/ladder
      iafvae-train fit --preset fashion-mnist --data folder:photos \\
        --size 32 --out runs/photos
      iafvae-train fit --preset cifar10-small --budget-minutes 60 --out \\
        runs/small
      torchrun --nproc-per-node 8 -m training fit --preset cifar10-paper \\
        --out runs/paper
    """
    from training.fit.distributed import joined  # torch takes seconds to import
    from training.fit.fit import fit as run_fit

    runtime = options.runtime()
    # By a signal before the first step, or by a second one.
    at_once = "stopped at once: steps since the last checkpoint, if any, are lost"
    with stopping(at_once), joined(options.timeout_minutes) as world:
        loud = errors if options.as_json else console
        teller = loud if world.first else Console(quiet=True)
        result = run_fit(
            world.from_first(options.config),
            options.out,
            runtime=runtime,
            data_dir=options.data_dir,
            resume=options.resume,
            budget_minutes=options.budget_minutes,
            optimizer_state=options.optimizer_state,
            console=teller,
            world=world,
        )
    for line in _ending(options, result):
        say(line, teller)
    if options.as_json and not teller.quiet:
        facts = {"run": str(options.out), **asdict(result)}
        # JSON knows no numbers that are not finite.
        strange = {k for k, v in facts.items() if isinstance(v, float) and not math.isfinite(v)}
        console.print_json(data=facts | dict.fromkeys(strange))
    stopped = EXIT_CODES.get(result.reason, 0)
    if not stopped and not math.isfinite(result.elbo_nats):
        raise TrainingError(DIVERGED)
    raise typer.Exit(stopped)


def _ending(options: FitOptions, result: FitResult) -> list[str]:
    ended = (
        f"{result.reason}: step {result.step} of {result.total_steps}, "
        f"{'seen' if result.seen else 'validation'} ELBO "
        f"{result.elbo_nats:.2f} nats, {result.bits_per_dim:.4f} bits/dim, "
        f"{result.skipped} steps skipped"
    )
    lines = [ended]
    if options.budget_minutes is not None and not math.isnan(result.start_seconds):
        lines.append(
            f"{result.minutes:.2f} minutes of steps; before them {result.start_seconds:.0f} s for "
            "the first one, compilation included"
        )
    if result.reason != "done":
        lines.append(f"saved; go on with: iafvae-train fit --resume --out {options.out}")
    return lines
