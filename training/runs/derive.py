"""A run made of another one's newest checkpoint by other means than steps of training."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from training.config import RunConfig
from training.files import new_folder
from training.runs.checkpoint import AVERAGED_ONLY, Checkpoint, save_checkpoint
from training.runs.directory import remember_data_dir, write_config
from training.runs.history import read_environment, with_command
from training.runs.metrics import copy_metrics

__all__ = ["write_derived"]


def write_derived(
    checkpoint: Checkpoint,
    out: Path,
    config: RunConfig,
    *,
    command: str,
    model_state: Mapping[str, Tensor],
    ema_state: Mapping[str, Tensor],
    data_dir: Path | None,
    averaged: bool = False,
) -> Path:
    """Write, whole, the run `out` of `config` at the checkpoint's step, and return its checkpoint.

    `command`, which made the weights, joins the run's history; records of the steps until then go
    along. The optimiser starts afresh. averaged: whether `model_state` is the average, too.
    """
    run_dir = checkpoint.run_dir
    with new_folder(out) as folder:
        path = save_checkpoint(
            folder,
            checkpoint.step,
            model_state=model_state,
            ema_state=ema_state,
            optim_tensors={},
            state=checkpoint.state | ({AVERAGED_ONLY: True} if averaged else {}),
        )
        environment = with_command(read_environment(run_dir), checkpoint.step, command)
        write_config(folder, config, environment)
        remember_data_dir(folder, data_dir)
        copy_metrics(run_dir, folder, checkpoint.step)
    return out / path.relative_to(folder)
