"""Shows a run to people: a bar with nats, bits/dim, images/s and time left, and a line an epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from training.records import Recorder

# Many steps skipped at once are one piece of news: say it again only after as many seconds.
SKIP_NEWS_SECONDS = 5.0


class ConsoleObserver:
    """Tells a console and a recorder what a `Trainer` reports."""

    def __init__(
        self, console: Console, recorder: Recorder, progress: Progress, task: TaskID, epochs: int
    ) -> None:
        self.console = console
        self.recorder = recorder
        self.progress = progress
        self.task = task
        self.epochs = epochs
        self.images_per_second = 0.0
        self.skips_untold = 0
        self.skip_told_at = -SKIP_NEWS_SECONDS

    def train(self, step: int, figures: dict[str, float]) -> None:
        """See `training.loop.Observer`."""
        self.recorder.write(step, "train", figures)
        self.images_per_second = figures["images_per_second"]
        self.progress.update(
            self.task,
            completed=step,
            nats=f"{figures['elbo_nats']:.2f} nats",
            bits=f"{figures['bits_per_dim']:.4f} bits/dim",
            speed=f"{figures['images_per_second']:.0f} images/s",
        )

    def skipped(self, step: int, loss: float, norm: float) -> None:
        """See `training.loop.Observer`."""
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
        """See `training.loop.Observer`."""
        self.recorder.write(step, "validation", figures)
        self.progress.update(self.task, completed=step)
        self.console.print(
            f"epoch {epoch}/{self.epochs}  validation ELBO {figures['elbo_nats']:.2f} nats  "
            f"KL {figures['kl_nats']:.2f}  {figures['bits_per_dim']:.4f} bits/dim  "
            f"({self.images_per_second:.0f} images/s)",
            highlight=False,
            soft_wrap=True,  # one line, also in a file, where there is no width
        )


class SilentObserver:
    """Tells nobody: for processes that leave the talking to another."""

    def train(self, step: int, figures: dict[str, float]) -> None:
        """See `training.loop.Observer`."""

    def skipped(self, step: int, loss: float, norm: float) -> None:
        """See `training.loop.Observer`."""

    def validation(self, step: int, epoch: int, figures: dict[str, float]) -> None:
        """See `training.loop.Observer`."""


@contextmanager
def shown(
    console: Console, recorder: Recorder, *, total_steps: int, step: int, epochs: int
) -> Iterator[ConsoleObserver]:
    """Show a bar from `step` to `total_steps` while the run goes on inside.

    Only on a terminal: a log file gets the lines of the epochs alone.
    """
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[nats]}"),
        TextColumn("{task.fields[bits]}"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(
            "training", total=total_steps, completed=step, nats="", bits="", speed=""
        )
        yield ConsoleObserver(console, recorder, progress, task, epochs)
