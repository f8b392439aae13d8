"""A run's likelihood, measured and kept in its directory.

RUN/evaluation-test-k128-step-00051480-ema.json      one file for each evaluation
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import Progress

from training.data import FOLDER_PREFIX, ImageData, Split, load_dataset
from training.errors import EvaluationError
from training.evaluate.evaluate import MEMORY_GIB, evaluate_model
from training.evaluate.report import EvaluationReport
from training.files import write_json
from training.runs.checkpoint import Weights, load_run, weights_used
from training.runs.directory import known_data_dir

__all__ = ["evaluate_run", "run_images"]


def run_images(config: Mapping[str, Any], split: Split, data_dir: Path | None) -> ImageData:
    """One split of the images that a run was trained on, of the size it was trained at."""
    data = config["data"]
    name = str(data["name"])
    if not name.startswith(FOLDER_PREFIX):
        return load_dataset(name, split, data_dir)
    channels, height, width = config["model"]["image_shape"]
    fit = data.get("fit", "crop")
    return load_dataset(name, split, data_dir, size=(height, width), channels=channels, fit=fit)


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
    memory_gib: float = MEMORY_GIB,
    progress: Progress | None = None,
) -> tuple[EvaluationReport, Path]:
    """Measure a run's newest checkpoint (or the checkpoint `run` itself) and write the report.

    `limit` takes the first so many images alone; draws are computed in about `memory_gib`.
    Returns the report and the JSON file in the run's directory; the same evaluation of the same
    weights replaces it.
    """
    config, model, checkpoint = load_run(run, weights=weights)
    run_dir = checkpoint.path.parent.parent
    if not os.access(run_dir, os.W_OK):
        raise EvaluationError(f"{run_dir} cannot be written to: the report would be lost.")
    images = run_images(config, split, known_data_dir(run_dir, data_dir)).first(limit)
    report = evaluate_model(
        model.to(device),
        images,
        importance_samples=importance_samples,
        seed=seed,
        memory_gib=memory_gib,
        progress=progress,
    )
    command = (
        f"iafvae-train evaluate RUN --split {split} --importance-samples {importance_samples} "
        f"--seed {seed}"
    )
    command += "" if weights == "ema" else f" --weights {weights}"
    content = {
        **report.to_dict(),
        "command": command if limit is None else f"{command} --limit {limit}",
        "manifest": report.manifest_entries(command),
        **weights_used(checkpoint, weights),
    }
    name = f"evaluation-{split}-k{importance_samples}-{checkpoint.path.name}-{weights}.json"
    path = run_dir / name
    write_json(path, content)
    return report, path
