"""The figures of an exported bundle, through the engine that serves it: what people get."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.progress import Progress

from service.bundle import Bundle, BundleError, load_bundle
from training.data import DATASETS, FOLDER_PREFIX, ImageData, Split, load_dataset
from training.errors import EvaluationError
from training.evaluate.evaluate import MEMORY_GIB, evaluate_model
from training.evaluate.report import EvaluationReport
from training.evaluate.scorers import BundleScorer

__all__ = ["evaluate_bundle", "write_report"]


def evaluate_bundle(
    path: Path,
    *,
    data: str | None = None,
    split: Split = "test",
    importance_samples: int = 128,
    seed: int = 0,
    limit: int | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    memory_gib: float = MEMORY_GIB,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Measure the bundle at `path` with the protocol and the noise of a run's evaluation.

    So the figures are those of the checkpoint that it was exported from, but for rounding.
    `data` is the data set (None: the one that the bundle says it was trained on); `device` is
    auto, cpu or cuda. Raises `EvaluationError` where the bundle, the device or the images do not
    fit, `DataError` where there are no images.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise EvaluationError(f"A bundle is evaluated on auto, cpu or cuda, not {device!r}.")
    try:
        bundle = load_bundle(path)
        images = bundle_images(bundle, data, split, data_dir).first(limit)
        scorer = BundleScorer(
            bundle,
            provider="cpu" if device == "cpu" else "auto",
            threads=torch.get_num_threads(),
        )
    except BundleError as error:
        raise EvaluationError(str(error)) from error
    if device == "cuda" and scorer.engine.provider != "cuda":
        raise EvaluationError("ONNX Runtime has no CUDA here: use --device cpu.")
    return evaluate_model(
        scorer,
        images,
        importance_samples=importance_samples,
        seed=seed,
        memory_gib=memory_gib,
        progress=progress,
    )


def bundle_images(
    bundle: Bundle, data: str | None, split: Split, data_dir: Path | None
) -> ImageData:
    """One split of the images that a bundle is for, at its size."""
    name = data or str(bundle.manifest.training.get("data", ""))
    if not (name in DATASETS or name.startswith(FOLDER_PREFIX)):
        raise EvaluationError(
            f"{bundle.path} was trained on {name or 'images that it does not name'}: say which "
            f"images to use with --data ({', '.join(DATASETS)} or folder:PATH)."
        )
    if not name.startswith(FOLDER_PREFIX):
        return load_dataset(name, split, data_dir)
    channels, height, width = bundle.manifest.image.shape
    return load_dataset(name, split, data_dir, size=(height, width), channels=channels)


def write_report(report: EvaluationReport, path: Path) -> None:
    """Write a report's figures as JSON, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        text = json.dumps(report.to_dict(), indent=1, allow_nan=False)
        temporary.write_text(f"{text}\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
