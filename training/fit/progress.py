"""Shows a run to people: a bar with nats, bits/dim, images/s and time left, and a line an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from training.runs.metrics import Recorder

# Many steps skipped at once are one piece of news: say it again only after as many seconds.
SKIP_NEWS_SECONDS = 5.0
EPOCHS_TOLD = 10  # the first ones, whatever they take
EPOCH_NEWS_SECONDS = 5.0
STEP_NEWS_SECONDS = 60.0  # within an epoch, where no terminal shows a bar


class Budget:
    """The minutes of a call, counted from `begin`; `minutes` None is no limit."""

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self._made, self._since = time.monotonic(), math.nan

    def begin(self) -> None:
        """Count from now, unless it is counting already."""
        if math.isnan(self._since):
            self._since = time.monotonic()

    @property
    def start_seconds(self) -> float:
        """How long it took to come to `begin`; nan before it."""
        return self._since - self._made

    @property
    def spent(self) -> float:
        """Minutes since `begin`; 0 before it."""
        return 0.0 if math.isnan(self._since) else (time.monotonic() - self._since) / 60

    @property
    def share(self) -> float:
        """The part of it that is over, in [0, 1]; 0 where there is no limit."""
        return min(1.0, self.spent / self.minutes) if self.minutes else 0.0

    @property
    def spent_up(self) -> bool:
        """Whether it is over: never before it began, nor where there is no limit."""
        begun = not math.isnan(self._since)
        return begun and self.minutes is not None and self.spent >= self.minutes


class Observer:
    """What a run tells while it goes on; this one is for processes that leave the talking."""

    def train(self, step: int, figures: dict[str, float]) -> None:
        """Hear figures averaged since the last call."""

    def skipped(self, step: int, loss: float, norm: float) -> None:
        """Hear that a step was not taken."""

    def validation(self, step: int, epoch: int, figures: dict[str, float]) -> None:
        """Hear how the averaged model did on the validation split at the end of an epoch."""


@dataclass
class ConsoleObserver(Observer):
    """Tells a console and a recorder what a `Trainer` reports."""

    console: Console
    recorder: Recorder
    progress: Progress
    task: TaskID
    scale: Scale
    seen: bool  # whether the validation images are trained on
    images_per_second: float = 0.0
    skips_untold: int = 0
    skip_told_at: float = -SKIP_NEWS_SECONDS
    epochs_told: int = 0
    epoch_told_at: float = 0.0
    told_at: float = field(default_factory=lambda: time.monotonic())

    def train(self, step: int, figures: dict[str, float]) -> None:
        """Record the figures and show the last ones in the bar, or once a minute in a line."""
        self.recorder.write(step, "train", figures)
        self.images_per_second = figures["images_per_second"]
        self.progress.update(
            self.task,
            **self.scale.at(step),
            nats=f"{figures['elbo_nats']:.2f} nats",
            bits=f"{figures['bits_per_dim']:.4f} bits/dim",
            speed=f"{figures['images_per_second']:.0f} images/s",
        )
        if not self.console.is_terminal and time.monotonic() - self.told_at >= STEP_NEWS_SECONDS:
            self._say(step, f"step {step}  ", figures)

    def skipped(self, step: int, loss: float, norm: float) -> None:
        """Record it; many at once are one line."""
        self.recorder.write(step, "skipped", {"neg_elbo_nats": loss, "gradient_norm": norm})
        self.skips_untold += 1
        if time.monotonic() - self.skip_told_at >= SKIP_NEWS_SECONDS:
            self.console.print(
                f"step {step}: skipped {self.skips_untold} bad step(s); the last had a gradient "
                f"of norm {norm:.3g} at {loss:.3g} nats",
                style="yellow",
                soft_wrap=True,
            )
            self.skips_untold, self.skip_told_at = 0, time.monotonic()

    def validation(self, step: int, epoch: int, figures: dict[str, float]) -> None:
        """Record the figures and print a line: of many short epochs one every few seconds."""
        kind = "seen" if self.seen else "validation"
        self.recorder.write(step, kind, figures)
        self.progress.update(self.task, **self.scale.at(step))
        now = time.monotonic()
        if self.epochs_told >= EPOCHS_TOLD and now - self.epoch_told_at < EPOCH_NEWS_SECONDS:
            return
        self.epochs_told, self.epoch_told_at = self.epochs_told + 1, now
        whole = "" if self.scale.epochs is None else f"/{self.scale.epochs}"
        self._say(step, f"epoch {epoch}{whole}  {kind} ", figures)

    def _say(self, step: int, where: str, figures: dict[str, float]) -> None:
        self.told_at = time.monotonic()
        self.console.print(
            f"{where}ELBO {figures['elbo_nats']:.2f} nats  "
            f"KL {figures['kl_nats']:.2f}  {figures['bits_per_dim']:.4f} bits/dim  "
            f"({self.images_per_second:.0f} images/s{self.scale.left(step)})",
            highlight=False,
            soft_wrap=True,  # one line, also in a file, where there is no width
        )


@dataclass(frozen=True)
class Scale:
    """What the bar measures: the minutes of a call that has a budget, else the run's steps."""

    budget: Budget
    total_steps: int | None
    epochs: int | None
    first: int = 0  # the step that the call began at

    @property
    def total(self) -> float | None:
        """The end of the bar; None where nobody knows."""
        return self.total_steps if self.budget.minutes is None else self.budget.minutes

    def at(self, step: int) -> dict[str, Any]:
        """The bar's fields at a step."""
        minutes = self.budget.minutes
        if minutes is None:
            whole = "" if self.total_steps is None else f"/{self.total_steps}"
            return {"completed": step, "place": f"{step}{whole}"}
        spent = min(self.budget.spent, minutes)
        return {"completed": spent, "place": f"{spent:.1f}/{minutes:g} min, step {step}"}

    def left(self, step: int) -> str:
        """ ", 12 min left" at a step, or "" where nobody knows."""
        ends = []
        if self.budget.minutes is not None:
            ends.append(max(0.0, self.budget.minutes - self.budget.spent))
        counted = step - self.first - 1  # the budget counts from the end of the first step
        if self.total_steps is not None and counted > 0:
            ends.append(self.budget.spent / counted * (self.total_steps - step))
        if not ends:
            return ""
        minutes = min(ends)
        if minutes < 1:
            return f", {60 * minutes:.0f} s left"
        return f", {minutes:.0f} min left" if minutes < 120 else f", {minutes / 60:.1f} h left"


@contextmanager
def shown(
    console: Console,
    recorder: Recorder,
    *,
    total_steps: int | None,
    step: int,
    epochs: int | None,
    budget: Budget,
    seen: bool = False,
) -> Iterator[ConsoleObserver]:
    """Show a bar while the run goes on inside: from `step` to `total_steps`, or over the minutes
    of the budget, where there is one.

    `total_steps` and `epochs` are None for a run that its minutes alone end. Only on a terminal:
    a log file gets the lines of the epochs, with the time that is left. Where the validation images
    are trained on, their figures are called "seen".
    """
    scale = Scale(budget, total_steps, epochs, step)
    columns = (
        TextColumn("training"),
        BarColumn(),
        *(TextColumn(f"{{task.fields[{name}]}}") for name in ("place", "nats", "bits", "speed")),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(
            "training", total=scale.total, nats="", bits="", speed="", **scale.at(step)
        )
        yield ConsoleObserver(console, recorder, progress, task, scale, seen)
