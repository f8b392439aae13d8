"""Reproduce a table or figure of the paper: train what is missing, measure, write it down.

OUT/runs/KEY             a run of `iafvae-train fit` for each row (KEY-seed1, ... for more seeds)
OUT/table1.json          all that the report needs; table1.md and table1.png are drawn from it

All that is known is on the disk: a call that was interrupted goes on when it is repeated.
"""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from training.config import DataConfig, RunConfig, Runtime, for_images
from training.data import FOLDER_PREFIX, public_name
from training.data.images import identity
from training.errors import TrainingError
from training.fit.device import choose_device
from training.fit.fit import fit, run_images
from training.fit.signals import SIGNALS
from training.reproduce.experiments import Experiment, Row
from training.reproduce.measures import Measurement
from training.reproduce.plan import Plan, Slice, Standing
from training.reproduce.report import FORMAT, reproduced, write_report
from training.reproduce.state import (
    checkpoint_step,
    name_command,
    progressed,
    read_slices,
    record_slice,
)
from training.runs.checkpoint import has_checkpoint, load_checkpoint
from training.runs.directory import CONFIG_FILE, known_data_dir, open_run, read_config
from training.runs.provenance import git_revision, machine

__all__ = ["Reproduction", "Run"]

SHARED = "The rows of a table share their settings: repeat those of before, or give another --out"


@dataclass(frozen=True)
class Run:
    """One training: a row's, from one seed, in a directory of its own."""

    row: Row
    seed: int
    folder: Path
    config: RunConfig

    @property
    def key(self) -> str:
        """The directory's name."""
        return self.folder.name

    @property
    def exists(self) -> bool:
        """Whether it was ever started."""
        return (self.folder / CONFIG_FILE).exists()


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """An experiment in a directory: `rows` of it are trained now, all that there are are shown.

    `command` is what was typed, and `row_command` the same without `--rows`, for people.
    """

    experiment: Experiment
    rows: Sequence[Row]
    out: Path
    plan: Plan
    measurement: Measurement
    runtime: Runtime
    console: Console
    seeds: int
    data_dir: Path | None
    command: str
    row_command: str

    def run(self) -> tuple[str, dict[str, Any]]:
        """Train, measure and write, see `reproduced`.

        Raises `TrainingError` or `ConfigError` before anything is trained where the directory
        holds rows of other settings.
        """
        self._check()
        return reproduced(self.out, self._work, self.document)

    def _work(self) -> str:
        reason = self._train()
        if reason not in SIGNALS:
            self._measure(self._wanted())
        return reason

    def runs_of(self, row: Row, seeds: Sequence[int]) -> list[Run]:
        """The runs of a row from the given seeds."""
        runs = []
        for seed in seeds:
            name = row.key if seed == 0 else f"{row.key}-seed{seed}"
            config = self.plan.configured(row.config)
            config = replace(config, train=replace(config.train, seed=seed))
            runs.append(Run(row, seed, self.out / "runs" / name, config))
        return runs

    def _wanted(self) -> list[Run]:
        return [run for row in self.rows for run in self.runs_of(row, range(self.seeds))]

    def _found(self, row: Row) -> list[Run]:
        """The runs of a row that were ever started, whatever this call asks for."""
        folders = (self.out / "runs").glob(f"{row.key}-seed*")
        numbers = (path.name.removeprefix(f"{row.key}-seed") for path in folders)
        seeds = [0, *sorted(int(number) for number in numbers if number.isdigit())]
        return [run for run in self.runs_of(row, seeds) if run.exists]

    def _check(self) -> None:
        """Refuse a directory whose rows have other settings: the table would mix them."""
        found: dict[DataConfig, dict[str, Any]] = {}
        for run in (run for row in self.experiment.rows for run in self._found(row)):
            before = read_config(run.folder)
            config = for_images(run.config, before.model.image_shape)
            rates = before.optim.learning_rate, config.optim.learning_rate
            if rates[0] != rates[1]:  # `fit` may go on at another one
                raise TrainingError(
                    f"{run.folder} was started with another optim.learning_rate: {rates[0]} then, "
                    f"{rates[1]} now. {SHARED}"
                )
            try:
                open_run(run.folder, config, resume=True)
            except TrainingError as error:
                raise TrainingError(f"{error}. {SHARED}") from error
            if config.data.name.startswith(FOLDER_PREFIX):
                self._check_images(run, found)
            done = progressed(run.folder, config.optim.batch_size).done_epochs
            if done > config.train.epochs:
                raise TrainingError(
                    f"{run.folder} has been trained for {done} epochs, more than --epochs "
                    f"{config.train.epochs}. {SHARED}"
                )

    def _check_images(self, run: Run, found: dict[DataConfig, dict[str, Any]]) -> None:
        """Refuse other images than a row was trained on; their folder may have been moved.

        found: what is there now, which this adds to.
        """
        if not has_checkpoint(run.folder):
            return
        data, data_dir = run.config.data, known_data_dir(run.folder, self.data_dir)
        if data not in found:
            images, _ = run_images(run.config, data_dir, lambda _: None)
            found[data] = identity(images.pixels)
        if found[data] != load_checkpoint(run.folder).state["images"]:
            raise TrainingError(f"{run.folder} was trained on other images. {SHARED}")

    def _standing(self, run: Run) -> Standing:
        if not run.exists:
            return Standing(run.key)
        so_far = progressed(run.folder, run.config.optim.batch_size)
        done = so_far.done_epochs >= run.config.train.epochs
        return Standing(run.key, so_far.minutes, done)

    def _train(self) -> str:
        """Train slice after slice until the plan has no more; gives the reason to stop."""
        runs = {run.key: run for run in self._wanted()}
        used = 0.0
        while True:
            standings = [self._standing(run) for run in runs.values()]
            piece = self.plan.next_slice(standings, used)
            if piece is None:
                return "budget" if self.plan.remaining(standings) else "done"
            run = runs[piece.key]
            reason, minutes = self._fit(run, piece)
            used += minutes
            if reason in SIGNALS:
                return reason
            if self.measurement.each_slice:
                self._measure([run])
            write_report(self.out, self.document(), plot=False)

    def _fit(self, run: Run, piece: Slice) -> tuple[str, float]:
        """Train a slice; gives why it ended, and its minutes."""
        so_far = progressed(run.folder, run.config.optim.batch_size)
        length = "to its end" if piece.minutes is None else f"for {piece.minutes:.3g} minutes"
        self._say(
            f"{self.experiment.name}: {run.key} {length}, after {so_far.minutes:.3g} minutes "
            f"and {so_far.step} steps"
        )
        # Earlier models' memory and compiled code: the compiler gives up after a few of them.
        gc.collect()
        torch.compiler.reset()
        result = fit(
            run.config,
            run.folder,
            runtime=self.runtime,
            data_dir=self.data_dir,
            resume=run.exists,
            budget_minutes=piece.minutes,
            console=self.console,
        )
        # What a killed call trained, the ledger does not know yet.
        unrecorded = so_far.minutes - sum(line["minutes"] for line in read_slices(run.folder))
        minutes = result.minutes if piece.minutes is None else min(result.minutes, piece.minutes)
        record_slice(
            run.folder,
            first_step=so_far.step,
            step=result.step,
            epochs=run.config.train.epochs,
            steps_per_epoch=result.total_steps // run.config.train.epochs,
            reason=result.reason,
            minutes=minutes + max(0.0, unrecorded),
            machine=machine(choose_device(self.runtime.device), self.runtime.threads),
        )
        name_command(run.folder, f"{self.row_command} --rows {run.row.key}")
        return result.reason, minutes

    def _measure(self, runs: Sequence[Run]) -> None:
        waiting = [
            run
            for run in runs
            if checkpoint_step(run.folder) > 0 and self.measurement.missing(run.folder)
        ]
        for number, run in enumerate(waiting, 1):
            self._say(f"{self.experiment.name}: measuring {run.key} ({number} of {len(waiting)})")
            with Progress(console=self.console, disable=not self.console.is_terminal) as progress:
                self.measurement.measure(run.folder, self.runtime, self.data_dir, progress)
            write_report(self.out, self.document(), plot=False)

    def _say(self, text: str) -> None:
        self.console.print(text, style="bold", highlight=False, soft_wrap=True)

    def document(self) -> dict[str, Any]:
        """All that the report is drawn from, as JSON."""
        rows = [self._row(row) for row in self.experiment.rows]
        data = {public_name(row.config.data.name) for row in self.experiment.rows}
        return {
            "format": FORMAT,
            "kind": self.measurement.kind,
            "experiment": self.experiment.name,
            "title": self.experiment.title,
            "columns": list(self.experiment.columns),
            "across": self.experiment.across,
            "unit": self.experiment.unit,
            "measures": dict(self.experiment.measures),
            "dataset": self.experiment.dataset,
            "trained_on": sorted(data),
            "notes": list(self.experiment.notes),
            "plan": self.plan.describe(),
            "protocol": self.measurement.protocol(),
            "command": self.command,
            "git_revision": git_revision(),
            "rows": rows,
        }

    def _row(self, row: Row) -> dict[str, Any]:
        paper = {name: asdict(published) for name, published in row.paper.items()}
        runs = [self._run(run) for run in self._found(row)]
        return {"key": row.key, "cells": list(row.cells), "paper": paper, "runs": runs}

    def _run(self, run: Run) -> dict[str, Any]:
        batch = run.config.optim.batch_size
        measured = self.measurement.found(run.folder)
        now = progressed(run.folder, batch)
        then = progressed(run.folder, batch, step=measured["step"]) if measured else now
        slices = read_slices(run.folder)
        per_epoch = slices[-1]["steps_per_epoch"] if slices else 0
        return {
            "seed": run.seed,
            "step": now.step,
            "measured_step": then.step if measured else None,
            "images_seen": then.step * batch,
            "epochs": then.step / per_epoch if per_epoch else None,
            "steps_per_epoch": per_epoch,
            "minutes": then.minutes,
            "machines": list(now.machines),
            "measured": measured,
        }
