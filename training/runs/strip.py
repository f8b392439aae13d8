"""A run's newest checkpoint without what only an exact resume needs: small enough to carry."""

import shutil
from pathlib import Path

import torch

from training.files import new_folder
from training.runs.checkpoint import AVERAGED_ONLY, load_checkpoint, run_directory, save_checkpoint
from training.runs.directory import CONFIG_FILE, read_config, refuse_taken
from training.runs.metrics import copy_metrics

__all__ = ["size_in_bytes", "strip_run"]


def strip_run(run: Path, out: Path, *, ema_only: bool = False, bf16: bool = False) -> Path:
    """Write `run`'s newest checkpoint (or the checkpoint `run`) to the new run directory `out`.

    The optimiser's state is left out, which halves the size; with `ema_only` the last weights
    too, which halves it again: the averaged ones stand for both. `bf16` keeps the averaged
    weights in bfloat16, for half of theirs, at a relative error of 2^-9 a weight. Records of
    the steps until then go along: minutes of a run that goes on are counted from them. The new
    directory is a run: it is evaluated, exported and resumed (with a fresh optimiser). Returns
    the checkpoint's directory. Raises `TrainingError` where `run` is none or `out` is taken.
    """
    run_dir = run_directory(run)
    read_config(run_dir)
    checkpoint = load_checkpoint(run)
    refuse_taken(out)
    averaged = checkpoint.ema or checkpoint.model
    if bf16:
        averaged = {
            name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
            for name, tensor in averaged.items()
        }
    state = dict(checkpoint.state)
    model_state = checkpoint.model
    if ema_only:
        # Buffers are in the last weights' file alone; parameters are the averaged ones'.
        model_state, averaged = {**model_state, **averaged}, {}
        state[AVERAGED_ONLY] = True
    with new_folder(out) as folder:
        path = save_checkpoint(
            folder,
            checkpoint.step,
            model_state=model_state,
            ema_state=averaged,
            optim_tensors={},
            state=state,
        )
        shutil.copyfile(run_dir / CONFIG_FILE, folder / CONFIG_FILE)
        copy_metrics(run_dir, folder, checkpoint.step)
    return out / path.relative_to(folder)


def size_in_bytes(folder: Path) -> int:
    """The size of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
