"""From a run directory to its figures and its bundle: what the commands call.

RUN/evaluation-test-k128-step-00051480-ema.json      one file for each evaluation
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from rich.progress import Progress

from service.bundle import Bundle
from training.checkpoint import Checkpoint, load_run
from training.data import ImageData, Split, load_dataset
from training.errors import TrainingError
from training.evaluate import evaluate_model
from training.export import BundleDetails, export_bundle
from training.report import EvaluationReport

__all__ = ["evaluate_run", "export_run", "run_images", "training_facts"]

Weights = Literal["ema", "raw"]
SHOWN: tuple[Split, ...] = ("calibration", "test")


def run_images(config: Mapping[str, Any], split: Split, data_dir: Path | None) -> ImageData:
    """One split of the images that a run was trained on, of the size it was trained at."""
    data = config["data"]
    name = str(data["name"])
    if not name.startswith("folder:"):
        return load_dataset(name, split, data_dir)
    channels, height, width = config["model"]["image_shape"]
    return load_dataset(name, split, data_dir, size=(height, width), channels=channels)


def evaluate_run(
    run: Path,
    *,
    split: Split = "test",
    importance_samples: int = 128,
    seed: int = 0,
    weights: Weights = "ema",
    limit: int | None = None,
    data_dir: Path | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[EvaluationReport, Path]:
    """Measure a run's newest checkpoint (or the checkpoint `run` itself) and write the report.

    `limit` takes the first so many images alone. Returns the report and the JSON file in the run's
    directory; the same evaluation of the same weights replaces it.
    """
    config, model, checkpoint = load_run(run, weights=weights)
    images = run_images(config, split, data_dir).first(limit)
    report = evaluate_model(
        model.to(device),
        images,
        importance_samples=importance_samples,
        seed=seed,
        progress=progress,
    )
    command = (
        f"iafvae-train evaluate RUN --split {split} --importance-samples {importance_samples} "
        f"--seed {seed}"
    )
    content = {
        **report.to_dict(),
        "command": command if limit is None else f"{command} --limit {limit}",
        "manifest": report.manifest_entries(command),
        **_weights_used(checkpoint, weights),
    }
    name = f"evaluation-{split}-k{importance_samples}-{checkpoint.path.name}-{weights}.json"
    path = checkpoint.path.parent.parent / name
    _write_json(path, content)
    return report, path


def export_run(
    run: Path,
    out: Path,
    *,
    name: str | None = None,
    version: str = "1.0.0",
    description: str | None = None,
    license_name: str = "MIT",
    weights: Weights = "ema",
    data_dir: Path | None = None,
    calibrate: bool = True,
    command: str = "",
    progress: Progress | None = None,
) -> Bundle:
    """Write the bundle of a run's newest checkpoint (or of the checkpoint `run`) to `out`.

    The figures of every full evaluation of these weights go with it. `calibrate=False` needs no
    images and gives a bundle without p-values; `command` is the one that trained the model.
    """
    config, model, checkpoint = load_run(run, weights=weights)
    run_dir = checkpoint.path.parent.parent
    preset, data = str(config.get("preset", "")), str(config["data"]["name"])
    details = BundleDetails(
        name=name or preset or run_dir.name,
        version=version,
        description=description or f"An IAF-VAE (arXiv:1606.04934) trained on {_public(data)}.",
        license=license_name,
        evaluation=tuple(_figures(run_dir, checkpoint, weights)),
        training=training_facts(run_dir, config, checkpoint, weights, command),
    )
    images = {split: run_images(config, split, data_dir) for split in SHOWN} if calibrate else {}
    return export_bundle(
        model,
        out,
        details,
        calibration=images.get("calibration"),
        examples=images.get("test"),
        progress=progress,
    )


def training_facts(
    run_dir: Path,
    config: Mapping[str, Any],
    checkpoint: Checkpoint,
    weights: Weights,
    command: str = "",
) -> dict[str, Any]:
    """What made the weights, for the manifest: numbers and words, no path of this machine."""
    data = _public(str(config["data"]["name"]))
    preset = str(config.get("preset", ""))
    return {
        "command": command or _fit_command(config),
        "data": data,
        "preset": preset,
        "git_revision": _git_revision(),
        **_weights_used(checkpoint, weights),
        "minutes": round(_minutes(run_dir, config, checkpoint.step), 1),
        "model": dict(config["model"]),
        "optim": dict(config.get("optim", {})),
        "train": dict(config.get("train", {})),
        "environment": {"processor": _processor(), **config.get("environment", {})},
    }


def _fit_command(config: Mapping[str, Any]) -> str:
    """What the run recorded, or what is known of it."""
    recorded = config.get("environment", {}).get("command")
    preset = f" --preset {config['preset']}" if config.get("preset") else ""
    return str(recorded or f"iafvae-train fit{preset} --out RUN")


def _weights_used(checkpoint: Checkpoint, weights: Weights) -> dict[str, Any]:
    return {"step": checkpoint.step, "weights": weights}


def _figures(run_dir: Path, checkpoint: Checkpoint, weights: Weights) -> Iterator[dict[str, Any]]:
    """Manifest entries of all evaluations of exactly these weights on all of a split's images."""
    for path in sorted(run_dir.glob("evaluation-*.json")):
        try:
            content = json.loads(path.read_bytes())
            used = {key: content[key] for key in ("step", "weights")}
            entries = list(content["manifest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{path} is no evaluation ({error!r}): remove it.") from error
        if used == _weights_used(checkpoint, weights) and "--limit" not in content["command"]:
            yield from entries


def _minutes(run_dir: Path, config: Mapping[str, Any], last_step: int) -> float:
    """Time that the steps took, by the speeds that the run recorded; 0 where it kept none."""
    try:
        lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    batch = int(config.get("optim", {}).get("batch_size", 0))
    speeds = {}  # by step: a resumed run writes some steps twice
    for line in lines:
        record = json.loads(line) if line.endswith("}") else {}
        if record.get("kind") == "train" and record["step"] <= last_step:
            speeds[record["step"]] = record["images_per_second"]
    seconds, before = 0.0, 0
    for step, speed in sorted(speeds.items()):
        seconds += (step - before) * batch / speed
        before = step
    return seconds / 60


def _public(data: str) -> str:
    """A data set's name without the path of somebody's folder."""
    return "a folder of images" if data.startswith("folder:") else data


def _git_revision() -> str:
    """The commit of the program, "+" where files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        return result.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    """This machine's, for runs that did not record theirs."""
    names = [platform.processor()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.machine())


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(
            json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
