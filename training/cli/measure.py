"""What the measuring commands share: which model, interruptions, results as files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress, TaskID
from rich.table import Table

from model.config import ConfigError
from training.cli.options import (
    DataDir,
    Device,
    Weights,
    argument,
    console,
    errors,
    one_of,
    option,
    say,
    stopping,
)
from training.fit.signals import stoppable

if TYPE_CHECKING:
    from training.evaluate.subject import Subject

__all__ = ["MEASURED", "ModelOptions", "keep", "progress_bar", "resumable", "show"]

MEASURED = ("test", "validation")
LINE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model is measured, and how it is computed."""

    run: Path | None = argument(None, "A run directory, or one checkpoint in it.")
    bundle: Path | None = option(None, "Measure an exported bundle instead of a run.")
    data: str | None = option(
        None, "With --bundle: other images than it was trained on, or folder:PATH."
    )
    seed: int = option(0, "Of the latents, of binarised and of made images.", min=0)
    weights: Weights = "ema"
    data_dir: DataDir = None
    device: Device = "auto"
    memory_gib: float = option(2.0, "About how much memory the draws may take at once.", min=0.01)
    as_json: bool = option(False, "Print JSON, not a table.", "--json")

    def subject(self) -> Subject:
        """The model. Raises `ConfigError` where it is named twice or not at all."""
        from training.evaluate.subject import bundle_subject, run_subject

        if (self.run is None) == (self.bundle is None):
            raise ConfigError("give either a run directory or --bundle DIRECTORY")
        if self.run is not None and self.data is not None:
            raise ConfigError("--data goes with --bundle: a run is measured on its own images")
        weights = one_of("--weights", self.weights, ("ema", "raw"))
        shared: dict[str, Any] = {"data_dir": self.data_dir, "device": self.device}
        if self.bundle is not None:
            return bundle_subject(self.bundle, data=self.data, **shared)
        return run_subject(self.run or Path(), weights=weights, **shared)


class Lines(Progress):
    """A line a minute, where no terminal could show a bar."""

    def __init__(self) -> None:
        super().__init__(disable=True)
        self._next = time.monotonic() + LINE_SECONDS

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As `Progress` has it."""
        super().advance(task_id, advance)
        self._tell(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As `Progress` has it."""
        super().update(task_id, **changes)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_SECONDS
            task = next(task for task in self.tasks if task.id == task_id)
            say(f"{task.description}: {task.completed:,.0f} of {task.total or 0:,.0f}")


def progress_bar() -> Progress:
    """A bar beside the results, or lines."""
    return Progress(console=errors) if errors.is_terminal else Lines()


@contextmanager
def resumable(command: str) -> Iterator[Progress]:
    """A bar of what Ctrl-C and SIGTERM may interrupt: what was measured is on the disk."""
    kept = f"stopped; what was measured is kept: the same iafvae-train {command} goes on from there"
    with stopping(kept), stoppable(), progress_bar() as progress:
        yield progress


def keep(
    folder: Path, name: str, document: Mapping[str, Any], markdown: str, picture: bytes
) -> None:
    """Write NAME.md, NAME.png and, last, NAME.json: where it stands, all of it does."""
    from training.files import write_bytes, write_json, write_text

    write_text(folder / f"{name}.md", markdown)
    write_bytes(folder / f"{name}.png", picture)
    write_json(folder / f"{name}.json", document)
    say(f"written to {folder / name}.json, .md and .png")


def show(
    document: Mapping[str, Any], table: Callable[[Mapping[str, Any]], Table], *, as_json: bool
) -> None:
    """Print a document as JSON, or the table made of it."""
    if as_json:
        console.print_json(data=document)
    else:
        console.print(table(document))
