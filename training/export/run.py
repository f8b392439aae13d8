"""A run's bundle: its newest weights, the figures measured of them, and what made them."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import Progress

from service.bundle import Bundle
from training.config import RunConfig
from training.data import FOLDER_PREFIX, ImageData, Split, public_name
from training.data.images import FOLDER_NAME
from training.errors import DataError, ExportError, TrainingError
from training.evaluate.subject import run_images
from training.export.export import BundleDetails, check_place, export_bundle
from training.export.findings import gather
from training.runs.checkpoint import Checkpoint, Weights, load_run, weights_used
from training.runs.directory import known_data_dir
from training.runs.history import read_environment, until_step
from training.runs.metrics import minutes_clock, read_metrics
from training.runs.provenance import git_revision, processor

__all__ = ["export_run", "training_facts"]

UNSTATED = "none stated"  # whoever took the images may say
SHOWN: tuple[Split, ...] = ("validation", "calibration", "test")


def export_run(
    run: Path,
    out: Path,
    *,
    name: str | None = None,
    version: str = "1.0.0",
    description: str | None = None,
    license_name: str | None = None,
    weights: Weights = "ema",
    data_dir: Path | None = None,
    calibrate: bool = True,
    progress: Progress | None = None,
) -> Bundle:
    """Write the bundle of a run's newest checkpoint (or of the checkpoint `run`) to `out`.

    The figures of every full evaluation of these weights go with it, and what `bound` and
    `evaluate-anomaly` found of them, and the curve of its training. `calibrate=False` needs no
    images and gives a bundle without p-values.
    """
    config, model, checkpoint = load_run(run, weights=weights)
    run_dir = checkpoint.run_dir
    data = public_name(config.data.name)
    name = name or _default_name(run_dir, config)
    check_place(out, name)  # before the images are read, and the graphs made
    details = BundleDetails(
        name=name,
        version=version,
        description=description or f"An IAF-VAE (arXiv:1606.04934) trained on {data}.",
        license=license_name or (UNSTATED if data == FOLDER_NAME else "MIT"),
        fit=config.data.fit,
        evaluation=tuple(_figures(run_dir, checkpoint, weights)),
        training=training_facts(run_dir, config, checkpoint, weights),
        findings=gather(run_dir, weights_used(checkpoint, weights), f"{name} {version}"),
    )
    images = _shown_images(config, known_data_dir(run_dir, data_dir)) if calibrate else {}
    return export_bundle(
        model,
        out,
        details,
        calibration=images.get("calibration"),
        fit=images.get("validation"),
        examples=images.get("test"),
        progress=progress,
    )


def _default_name(run_dir: Path, config: RunConfig) -> str:
    """The preset's, unless it was fitted to somebody's own images: then the run directory's."""
    if config.preset and not config.data.name.startswith(FOLDER_PREFIX):
        return config.preset
    return re.sub(r"[^A-Za-z0-9_-]+", "-", run_dir.resolve().name).strip("-_")[:64] or "model"


def _shown_images(config: RunConfig, data_dir: Path | None) -> dict[str, ImageData]:
    try:
        return {split: run_images(config, split, data_dir) for split in SHOWN}
    except DataError as error:
        raise ExportError(
            f"{error} Or export with --no-calibration: the bundle then gives no p-values."
        ) from error


def training_facts(
    run_dir: Path,
    config: RunConfig,
    checkpoint: Checkpoint,
    weights: Weights,
) -> dict[str, Any]:
    """What made the weights, for the manifest: numbers and words, no path of this machine."""
    made = until_step(read_environment(run_dir), checkpoint.step)
    environment = {"processor": processor(), **made}
    recorded = environment.pop("command", "")  # said once, above
    calls = environment.pop("calls", [])
    clock = minutes_clock(read_metrics(run_dir), config.optim.batch_size)
    return {
        "command": recorded or "iafvae-train fit --out RUN",
        "data": public_name(config.data.name),
        **({"with_validation": True} if config.data.with_validation else {}),
        "preset": config.preset,
        "git_revision": environment.pop("git_revision", None) or git_revision(),
        **weights_used(checkpoint, weights),
        "minutes": round(clock(checkpoint.step), 1),
        "model": config.model.to_dict(),
        "optim": asdict(config.optim),
        "train": asdict(config.train),
        "environment": environment,
        **({"calls": calls} if len(calls) > 1 else {}),
    }


def _figures(run_dir: Path, checkpoint: Checkpoint, weights: Weights) -> Iterator[dict[str, Any]]:
    """Manifest entries of all evaluations of exactly these weights on all of a split's images."""
    wanted = weights_used(checkpoint, weights)
    for path in sorted(run_dir.glob("evaluation-*.json")):
        try:
            content = json.loads(path.read_bytes())
            used = {key: content[key] for key in wanted}
            entries, command = list(content["manifest"]), str(content["command"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{path} is no evaluation ({error!r}): remove it.") from error
        if used == wanted and "--limit" not in command:
            yield from entries
