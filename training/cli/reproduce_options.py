"""The options of `iafvae-train reproduce`, written down once for all its commands.

A command takes a dataclass of them (`training.cli.options.with_options`).
"""

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from training.cli.options import AsJson, DataDir, RuntimeOptions, data_name, option
from training.reproduce.experiments import FREE_BITS, SIZES
from training.reproduce.plan import Plan

__all__ = [
    "Figure1Options",
    "Figure7Options",
    "LadderOptions",
    "Options",
    "ReportOptions",
    "TableOptions",
    "command_line",
]


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What every command has."""

    out: Path = option(..., "Where the report and the runs (OUT/runs/ROW) are written.")
    redraw: bool = option(
        False, "Only draw OUT/NAME.md and .png again from OUT/NAME.json.", "--redraw"
    )
    as_json: AsJson = False


@dataclass(frozen=True, kw_only=True)
class Options(RuntimeOptions, ReportOptions):
    """What the commands that train rows have in common."""

    epochs: int | None = option(
        None,
        "Train every row for this many epochs, by its preset's schedule; default: the "
        "preset's number.",
    )
    row_minutes: float | None = option(
        None,
        "Train every row for this many minutes instead, at a constant learning rate. They "
        "count from the first step: start, compilation and measuring come on top.",
    )
    budget_minutes: float | None = option(
        None,
        "Train for this many minutes in this call, shared so that the rows come to equal "
        "minutes, then measure; the same command goes on.",
    )
    slice_minutes: float = option(
        10.0,
        "Rows take turns of this many minutes, the one furthest behind next: whenever you "
        "stop, they have come about equally far.",
    )
    rows: list[str] | None = option(
        None,
        "Only these rows, by key or pattern ('4-*'), commas between; the others keep "
        "what they have. An unknown key lists them all.",
    )
    seeds: int = option(1, "Train every row from the seeds 0 to N-1.", min=1)
    data: str | None = option(
        None, "Other images than the paper's: mnist, fashion-mnist, cifar10, folder:PATH."
    )
    data_dir: DataDir = None
    batch_size: int | None = option(None, "Images a step (the preset's).")
    learning_rate: float | None = option(None, "Its highest value (the preset's).")
    warmup_steps: int | None = option(
        None,
        "Steps over which the learning rate rises (400; at most a tenth of --epochs, but "
        "not of --row-minutes: give fewer where these are few steps).",
    )

    def plan(self) -> Plan:
        """How long the rows are trained; raises `ConfigError` for what contradicts itself."""
        return Plan(
            epochs=self.epochs,
            row_minutes=self.row_minutes,
            budget_minutes=self.budget_minutes,
            slice_minutes=self.slice_minutes,
        )

    def overrides(self) -> dict[str, dict[str, Any]]:
        """What differs from the presets, for `training.config.overridden`."""
        optim = {
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
        }
        return {"data": {"name": data_name(self.data, self.data_dir)}, "optim": optim}


@dataclass(frozen=True, kw_only=True)
class TableOptions(Options):
    """What the tables have: how they are measured."""

    split: str = option("test", "Measure on test (final figures) or validation (while you choose).")
    importance_samples: int | None = option(
        None, "K of the importance-weighted bound (MNIST: 128, CIFAR-10: 1).", min=1
    )
    evaluation_seed: int = option(0, "Of the measurement's binarisation and latents.", min=0)
    limit: int | None = option(None, "Measure on the first N images only.", min=1)


@dataclass(frozen=True, kw_only=True)
class LadderOptions(Options):
    """What the ladders of CIFAR-10 have: their size."""

    size: str = option("small", f"Widths of the preset cifar10-SIZE: {', '.join(SIZES)}.")
    channels: int | None = option(None, "Feature maps of a layer, instead of the size's.")
    z_channels: int | None = option(None, "Latent maps of a layer, instead of the size's.")

    def overrides(self) -> dict[str, dict[str, Any]]:
        """With the widths of a ladder."""
        model = {"channels": self.channels, "z_channels": self.z_channels}
        return {**super().overrides(), "model": model}


@dataclass(frozen=True, kw_only=True)
class LadderTableOptions(TableOptions, LadderOptions):
    """A table of ladders."""


@dataclass(frozen=True, kw_only=True)
class Figure7Options(LadderOptions):
    """Figure 7: the minima, and the ladder's depth."""

    free_bits: str = option(
        ",".join(f"{minimum:g}" for minimum in FREE_BITS), "The minima λ in nats, commas between."
    )
    depth: int | None = option(None, "Stochastic layers (small 8, medium 12, paper 24).", min=1)


@dataclass(frozen=True, kw_only=True)
class Figure1Options(ReportOptions):
    """Figure 1: a toy of its own."""

    seeds: int = option(3, "Fit both posteriors from the seeds 0 to N-1.", min=1)
    steps: int = option(1500, "Steps of each fit.", min=1)
    budget_minutes: float | None = option(
        None, "Start no further fit after this many minutes; the same command goes on."
    )
    threads: int = option(1, "CPU threads; 0 leaves it to torch.", min=0)


PLACES = ("out", "data_dir", "redraw", "as_json")


def command_line(name: str, options: ReportOptions, *, without: tuple[str, ...] = ()) -> str:
    """What was typed, as others may repeat it in a shell: without the places of this machine."""
    parts = [f"iafvae-train reproduce {name} --out OUT"]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in (*PLACES, *without) or value in (field.default, []):
            continue
        text = ",".join(value) if isinstance(value, list) else str(value)
        text = "folder:PATH" if text.startswith("folder:") else text
        parts.append(f"--{field.name.replace('_', '-')} {shlex.quote(text)}")
    return " ".join(parts)
