"""Figures against minutes of training: how fast runs learn, and what the last hour was worth.

A run records steps and speeds, not times of day, so that pauses between slices do not count:
minutes are the sum over its records of images / (images per second). The first step of a slice,
which may compile for a minute, is in them; validation, checkpoints and the start are not.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from model.config import BINARY_LIKELIHOODS, require
from training.data import public_name
from training.errors import TrainingError
from training.plots import PALETTE, rendered
from training.runs.directory import read_config
from training.runs.metrics import minutes_clock, read_metrics

__all__ = ["curve_document", "curve_picture", "run_curve"]

Record = Mapping[str, Any]
Document = Mapping[str, Any]

TRAIN_POINTS = 200  # of the training's own figures: means over as many stretches
EPOCH_ENDS = ("validation", "seen")  # kinds of records
UNITS = {"nats": "elbo_nats", "bits/dim": "bits_per_dim"}
NOTE = (
    "Minutes of steps by the speeds that the run recorded: slices add up, the first step's "
    "compilation is in them, validation and checkpoints are not. Validation: averaged weights, one "
    "draw an image, fixed noise; training: the weights of the moment, means over many steps."
)


def run_curve(run_dir: Path, last_step: int | None = None) -> dict[str, Any]:
    """One run's figures by minutes as JSON values, up to `last_step` (None: all).

    Raises `TrainingError` where `run_dir` holds no run, or one that has recorded nothing.
    """
    config = read_config(run_dir)
    records = [
        record
        for record in read_metrics(run_dir)
        if last_step is None or record["step"] <= last_step
    ]
    clock = minutes_clock(records, config.optim.batch_size)
    train = [record for record in records if record["kind"] == "train"]
    if not train:
        raise TrainingError(f"{run_dir} has recorded no step in metrics.jsonl: nothing to draw")
    last = max(record["step"] for record in records)
    speeds = [record["images_per_second"] for record in train if record.get("images_per_second")]
    return {
        "run": run_dir.resolve().name,
        "preset": config.preset,
        "dataset": public_name(config.data.name),
        "unit": "nats" if config.model.likelihood in BINARY_LIKELIHOODS else "bits/dim",
        "step": last,
        "epochs": _epochs(records, last),
        "minutes": clock(last),
        "images_per_second": statistics.median(speeds) if speeds else None,
        "batch_size": config.optim.batch_size,
        "validation": _points([r for r in records if r["kind"] == "validation"], clock),
        "training": _thinned(_points(train, clock)),
    }


def _epochs(records: Sequence[Record], last: int) -> int:
    """How many there were in `last` steps: each, whole, ends with a validation."""
    ends = sorted({record["step"] for record in records if record["kind"] in EPOCH_ENDS})
    if not ends:
        return 0
    each = float(statistics.median(b - a for a, b in pairwise([0, *ends])))
    return round(last / each)


def _points(records: Sequence[Record], clock: Callable[[int], float]) -> list[dict[str, Any]]:
    """Step, minutes and figures of records whose figures are numbers; each step once."""
    points = {
        int(record["step"]): {
            "step": int(record["step"]),
            "minutes": clock(record["step"]),
            **{name: float(record[name]) for name in UNITS.values()},
        }
        for record in records
        if all(isinstance(record.get(name), int | float) for name in UNITS.values())
    }
    return [points[step] for step in sorted(points)]


def _thinned(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over stretches of neighbours, so many that a picture shows no more."""
    size = math.ceil(len(points) / TRAIN_POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        {
            "step": group[-1]["step"],
            **{
                name: statistics.fmean(point[name] for point in group)
                for name in ("minutes", *UNITS.values())
            },
        }
        for group in groups
    ]


def curve_document(runs: Sequence[Path]) -> dict[str, Any]:
    """The curves of runs that can share an axis; raises `ConfigError` where they cannot."""
    curves = [run_curve(run) for run in runs]
    units = {curve["unit"] for curve in curves}
    require(
        len(units) == 1,
        "runs in nats (binary pixels) and in bits/dim (8 bits) share no axis: draw them apart",
    )
    directories = " ".join(["RUN"] * len(curves))
    return {
        "kind": "curve",
        "unit": units.pop(),
        "runs": curves,
        "note": NOTE,
        "command": f"iafvae-train curve {directories}",
    }


def curve_picture(document: Document) -> bytes | None:
    """The curves as PNG; None where no run has two figures yet."""
    if all(len(_drawn(run)) < 2 for run in document["runs"]):
        return None
    return rendered(lambda: _figure(document))


def _drawn(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The validation's points, or the training's where those are too few."""
    points: list[dict[str, Any]] = run["validation"]
    return points if len(points) > 1 else run["training"]


def _figure(document: Document) -> Figure:
    unit, late = document["unit"], []
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, run in enumerate(document["runs"]):
        points = _drawn(run)
        minutes, values = ([p[name] for p in points] for name in ("minutes", UNITS[unit]))
        colour = PALETTE[place % len(PALETTE)]
        style = "-" if place < len(PALETTE) else "--"
        label = run["run"] if points is run["validation"] else f"{run['run']} (training images)"
        axes.plot(minutes, values, style, color=colour, linewidth=1.3, label=label)
        if len(values) <= 40:
            axes.plot(minutes, values, ".", color=colour)
        if len(values):
            end = f"{values[-1]:.2f}" if unit == "nats" else f"{values[-1]:.3f}"
            axes.annotate(end, (minutes[-1], values[-1]), fontsize=8, color=colour)
        late += [v for m, v in zip(minutes, values, strict=True) if m >= 0.05 * minutes[-1]]
    better = "validation ELBO in nats (higher is better)"
    axes.set_ylabel(better if unit == "nats" else "validation bits/dim (lower is better)")
    axes.set_xlabel("minutes of training")
    axes.grid(visible=True)
    # Limits leave out the first minutes' fall: it would hide all that follows.
    low, high = min(late), max(late)
    margin = 0.06 * (high - low) or 0.01 * abs(high) or 0.1
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=8)
    return figure
