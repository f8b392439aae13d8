"""`iafvae-train widen`: a run of a wider model that computes just what a trained one computes.

Net2Net (Chen, Goodfellow & Shlens 2016, arXiv:1511.05641), by zeros in place of copies: old units
keep their weights and read none of the new ones; the new ones read everything, through fresh
weights whose gains and biases the data set. Since every product that takes part of a unit is
normalised by that unit's own weights (`model.layers`), zeros beside them change nothing. The units
of an autoregressive network stay among those of their own degree. Training then puts the new units
to use.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from model.contract import DensityModel
from model.flows.made import AutoregressiveNet, Made
from model.flows.masks import hidden_degrees
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

NARROWER = "these settings make a layer narrower: widen only makes layers wider"
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
    same_images = config.model.image_shape == before.model.image_shape
    if config == before or not same_images or replace(config, model=before.model) != before:
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
        averaged=True,
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
    places = _by_degree(old, new)
    new.load_state_dict(
        {
            name: _inside(kept[name], fresh[name], outputs.get(name), places.get(name, {}))
            for name in fresh
        }
    )
    return new


def _by_degree(old: DensityModel, new: DensityModel) -> dict[str, dict[int, Tensor]]:
    """Where old units go that are not the first: by a tensor's name, the places along its axes."""
    places: dict[str, dict[int, Tensor]] = {}
    nets = dict(old.named_modules())
    for name, net in new.named_modules():
        if not isinstance(net, AutoregressiveNet):
            continue
        dim = _units(net.m)
        units: Tensor | None = None  # of the layer below
        for i, layer in enumerate(net.hidden):
            before = _units(nets[f"{name}.hidden.{i}"])
            of = _among(hidden_degrees(before, dim), hidden_degrees(_units(layer), dim))
            places |= _axes(f"{name}.hidden.{i}", layer, of, units)
            if i == 0 and isinstance(net, Made):
                places |= _axes(f"{name}.context", net.context, of, None)
            units = of
        for head in ("m", "s"):
            layer = getattr(net, head)
            if layer is not None and units is not None:
                places |= _axes(f"{name}.{head}", layer, None, units)
    return places


def _units(layer: nn.Module) -> int:
    assert isinstance(layer, WeightNormLayer)  # noqa: S101  for the type checker
    return layer.v.shape[layer.out_dim]


def _among(old: Tensor, new: Tensor) -> Tensor:
    """For each old unit the place of a new one of its degree, the first to the first; both are
    sorted. Raises where a degree has fewer than before."""
    if len(new) < len(old):
        raise TrainingError(NARROWER)
    nth = torch.arange(len(old)) - torch.searchsorted(old, old)
    place = torch.searchsorted(new, old) + nth
    if not torch.equal(new[place], old):
        raise TrainingError(
            "these settings leave an autoregressive layer fewer units of some degree: give a "
            "multiple of the width that it has, or of the number of latents"
        )
    return place


def _axes(
    name: str, layer: nn.Module, units: Tensor | None, read: Tensor | None
) -> dict[str, dict[int, Tensor]]:
    """The places in a layer's weight, along the axis of its units and that of what they read, and
    in its gains and biases."""
    assert isinstance(layer, WeightNormLayer)  # noqa: S101  for the type checker
    weight, rest = {}, {}
    if units is not None:
        weight[layer.out_dim], rest[0] = units, units
    if read is not None:
        weight[1 - layer.out_dim] = read
    return {
        f"{name}.{part}": weight if part == "v" else rest for part, _ in layer.named_parameters()
    }


def _inside(
    kept: Tensor, fresh: Tensor, outputs: int | None, places: Mapping[int, Tensor]
) -> Tensor:
    """`fresh` with `kept` in its places, the first where none are given, and zero where a kept
    unit would read a new one; outputs: the axis of units, of a weight."""
    if kept.shape == fresh.shape:
        return kept
    same_axes = kept.dim() == fresh.dim()
    if same_axes and any(a > b for a, b in zip(kept.shape, fresh.shape, strict=True)):
        raise TrainingError(NARROWER)
    if not same_axes or (outputs is None and kept.dim() > 1):
        raise TrainingError(
            "these settings change more than the widths of weight-normalised layers"
        )
    wide = fresh.clone()
    at = [places.get(axis, torch.arange(size)) for axis, size in enumerate(kept.shape)]
    if outputs is not None:
        wide.index_fill_(outputs, at[outputs], 0)
    wide[torch.meshgrid(*at, indexing="ij")] = kept
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
