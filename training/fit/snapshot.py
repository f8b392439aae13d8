"""A trainer's state as a checkpoint, and back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import TrainingError
from training.fit.optim import load_optimizer_tensors, optimizer_tensors
from training.runs.checkpoint import Checkpoint, save_checkpoint

if TYPE_CHECKING:
    from training.fit.trainer import Trainer

__all__ = ["restore", "save"]


def save(trainer: Trainer, run_dir: Path, *, optimizer: bool) -> Path:
    """Write a checkpoint; `optimizer=False` leaves the optimiser's state out, half of its size."""
    tensors = optimizer_tensors(trainer.optimizer, trainer.model) if optimizer else {}
    return save_checkpoint(
        run_dir,
        trainer.step,
        model_state=trainer.model.state_dict(),
        ema_state=dict(trainer.average.named_parameters()),
        optim_tensors=tensors,
        state={
            "guard": trainer.guard.state(),
            "time": time.time(),
            "images": trainer.images,
            "optimizer_since": trainer.optimizer_since,
        },
    )


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Go back to exactly where `checkpoint` was written; without its state, a fresh optimiser.

    Raises `TrainingError` where the training images are not those of then: their order and the
    number of steps an epoch would be others.
    """
    before = checkpoint.state.get("images")  # older checkpoints do not tell
    if before is not None and before != (now := trainer.images):
        raise TrainingError(
            f"the training images are not those that the run was started with "
            f"({before['count']} then, {now['count']} now): put them back, or start a new run"
        )
    trainer.model.load_state_dict(checkpoint.model)
    trainer.average.load_state_dict({**checkpoint.model, **checkpoint.ema})
    load_optimizer_tensors(trainer.optimizer, trainer.model, checkpoint.optim)
    trainer.guard.restore(checkpoint.state["guard"])
    trainer.step = checkpoint.step
    since = checkpoint.state.get("optimizer_since", 0)  # older checkpoints do not tell
    trainer.optimizer_since = int(since) if checkpoint.optim else checkpoint.step
