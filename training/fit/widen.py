"""`iafvae-train widen`: a run of a wider model that computes just what a trained one computes.

Net2Net (Chen, Goodfellow & Shlens 2016, arXiv:1511.05641), by zeros in place of copies: old units
keep their weights and read none of the new ones; the new ones read everything, through fresh
weights whose gains and biases the data set. Since every product that takes part of a unit is
normalised by that unit's own weights (`model.layers`), zeros beside them change nothing. Training
then puts the new units to use.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from model.contract import DensityModel
from model.layers import WeightNormLayer
from training.config import RunConfig, Runtime
from training.data import ImageData
from training.errors import TrainingError
from training.fit.batches import noise, presented
from training.fit.fit import run_images
from training.fit.trainer import Trainer
from training.overrides import with_settings
from training.runs.checkpoint import load_run, run_directory
from training.runs.derive import write_derived
from training.runs.directory import known_data_dir, read_config, refuse_taken

__all__ = ["widen"]

COMPARED_IMAGES = 64
# Of sums over all pixels, in float32: what another order of adding may change.
RTOL, ATOL_NATS = 1e-4, 0.02


def widen(
    run: Path,
    out: Path,
    settings: Sequence[str],
    *,
    threads: int = 0,
    data_dir: Path | None = None,
    tell: Callable[[str], None],
) -> tuple[int, int]:
    """Write the averaged model of `run`, widened as `settings` (``model.channels=[16,48,64]``)
    say, as the new run `out`; give the numbers of parameters before and after.

    `out` is evaluated, exported and gone on with as any run; its optimiser starts afresh. Raises
    `TrainingError` where `run` is none, `out` is taken, or the settings change something else than
    widths or change what the model computes, and `ConfigError` where they are no configuration.
    """
    run_dir = run_directory(run)
    before = read_config(run_dir)
    refuse_taken(out)
    config = with_settings(before, settings)
    if config == before or replace(config, model=before.model) != before:
        raise TrainingError(
            "widen takes --set with wider layers of the model, such as model.channels=[16,48,64]"
        )
    data_dir = known_data_dir(run_dir, data_dir)
    train, validation = run_images(before, data_dir, tell)
    _, old, checkpoint = load_run(run)
    new = _widened(old, config, train, threads)
    _check_same(old, new, validation)
    write_derived(
        checkpoint,
        out,
        config,
        command=f"iafvae-train widen RUN {' '.join(f'--set {s}' for s in settings)} --out RUN",
        model_state=new.state_dict(),
        ema_state=dict(new.named_parameters()),
        data_dir=data_dir,
    )
    return _size(old), _size(new)


def _widened(old: DensityModel, config: RunConfig, train: ImageData, threads: int) -> DensityModel:
    """The model of `config`, initialised from data as for a first step, with `old` in it."""
    runtime = Runtime(device="cpu", threads=threads, compile="off", bf16="off")
    new = Trainer(config, runtime, train).model.eval()
    outputs = {
        f"{name}.v": layer.out_dim
        for name, layer in new.named_modules()
        if isinstance(layer, WeightNormLayer)
    }
    kept, fresh = old.state_dict(), new.state_dict()
    if kept.keys() != fresh.keys():
        raise TrainingError("widen changes widths alone: with these settings other layers come")
    new.load_state_dict(
        {name: _inside(kept[name], fresh[name], outputs.get(name)) for name in fresh}
    )
    return new


def _inside(kept: Tensor, fresh: Tensor, outputs: int | None) -> Tensor:
    """`fresh` with `kept` in its first places, and zero where a kept unit would read a new one;
    outputs: the axis of units, of a weight."""
    if kept.shape == fresh.shape:
        return kept
    same_axes = kept.dim() == fresh.dim()
    if same_axes and any(a > b for a, b in zip(kept.shape, fresh.shape, strict=True)):
        raise TrainingError("these settings make a layer narrower: widen only makes layers wider")
    if not same_axes or (outputs is None and kept.dim() > 1):
        raise TrainingError(
            "these settings change more than the widths of weight-normalised layers"
        )
    wide = fresh.clone()
    if outputs is not None:
        wide.narrow(outputs, 0, kept.shape[outputs]).zero_()
    wide[tuple(slice(size) for size in kept.shape)] = kept
    return wide


@torch.no_grad()
def _check_same(old: DensityModel, new: DensityModel, images: ImageData) -> None:
    """Raise where the two differ on images and noise: a layer's outputs may be cut into parts."""
    if new.layout != old.layout:
        raise TrainingError("widen leaves the latents as they are: start a new run for others")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.from_numpy(images.pixels[:COMPARED_IMAGES])
    x, eps = presented(old, pixels, generator), noise(old, len(pixels), generator)
    for was, now in zip(old(x, eps), new(x, eps), strict=True):
        if was.shape != now.shape or not torch.allclose(was, now, rtol=RTOL, atol=ATOL_NATS):
            raise TrainingError(
                "with these settings the model would compute something else: what they widen is "
                "not the number of units of its layers alone"
            )


def _size(model: DensityModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
