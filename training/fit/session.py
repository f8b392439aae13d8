"""A `fit` call between its first step and its last: steps, checkpoints, sheets, news."""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from training.data import ImageData
from training.fit.distributed import PeerError
from training.fit.progress import Budget, Observer, shown
from training.fit.signals import Interrupts
from training.fit.trainer import Trainer
from training.plots import reconstruction_sheet, sample_sheet, save_sheet
from training.runs.metrics import Recorder

__all__ = ["Session"]

# A checkpoint costs a second or so: at an epoch's end one a minute, within long epochs one in ten.
# A reason that only passes by -> how old the last checkpoint must be for another.
LEAST_AGE_SECONDS = {"epoch": 60.0, "step": 600.0}
SHEET_IMAGES = 64


@dataclass(frozen=True)
class Session:
    """Drives a trainer and keeps what it yields; `recorder` is None in all processes but one."""

    trainer: Trainer
    run_dir: Path
    validation: ImageData
    recorder: Recorder | None
    console: Console
    optimizer_state: bool

    def train(self, budget: Budget) -> str:
        """Train until a reason to stop, and give it: the last epoch, a signal, or the budget.

        The last checkpoint is of the last step, also where another process's failure ends the
        run (`PeerError`): nothing is wrong with what this one holds.
        """
        trainer, first = self.trainer, self.trainer.step
        # The first step may compile for minutes; where others wait for it, it is finished.
        interrupts = Interrupts(
            told=self.recorder is not None,
            at_once=lambda: trainer.world.alone and trainer.step == first,
        )

        def stop() -> str:
            if trainer.step > first:
                budget.begin()
            return interrupts.reason or ("budget" if budget.spent_up else "")

        reason, saved_at = "done", time.monotonic()
        with interrupts.watched(), self._observer(budget) as observer:
            try:
                for reason in trainer.run(observer, stop, self.validation, lambda: budget.share):
                    age = time.monotonic() - saved_at
                    if age < LEAST_AGE_SECONDS.get(reason, -math.inf):
                        continue
                    self._keep(sheets=True)
                    saved_at = time.monotonic()
            except PeerError:
                self._keep(sheets=False)  # still watched: torchrun sends SIGTERM meanwhile
                raise
        return reason

    def _keep(self, *, sheets: bool) -> None:
        """Write a checkpoint, then the sheets: where the disk is full the former matters more."""
        if self.recorder is None:
            return
        trainer = self.trainer
        trainer.save(self.run_dir, optimizer=self.optimizer_state)
        if not sheets:
            return
        pixels = self.validation.pixels[: SHEET_IMAGES // 2]
        for kind, sheet in (
            ("samples", sample_sheet(trainer.average, count=SHEET_IMAGES)),
            ("reconstructions", reconstruction_sheet(trainer.average, pixels)),
        ):
            save_sheet(self.run_dir / "sheets" / f"{kind}-{trainer.step:08d}.png", sheet)
            self.recorder.image(trainer.step, kind, sheet)

    def _observer(self, budget: Budget) -> AbstractContextManager[Observer]:
        if self.recorder is None:
            return nullcontext(Observer())
        trainer = self.trainer
        return shown(
            self.console,
            self.recorder,
            total_steps=trainer.total_steps if trainer.ends else None,
            step=trainer.step,
            epochs=trainer.config.train.epochs if trainer.ends else None,
            budget=budget,
            seen=trainer.config.data.with_validation,
        )
