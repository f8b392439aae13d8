"""What the measuring commands measure: the weights of a run, or a bundle as it is served."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.config import ConfigError
from service.bundle import Bundle, BundleError, load_bundle
from service.codecs.images import FitMode
from training.config import RunConfig
from training.data import (
    DATASETS,
    FOLDER_PREFIX,
    FolderOptions,
    ImageData,
    Split,
    folder_path,
    load_dataset,
)
from training.errors import DataError, EvaluationError
from training.evaluate.scorers import BundleScorer, ModelScorer, Scorer
from training.fit.device import choose_device
from training.runs.checkpoint import Weights, load_run, weights_used
from training.runs.directory import known_data_dir

__all__ = [
    "Subject",
    "bundle_images",
    "bundle_subject",
    "data_stem",
    "data_words",
    "run_images",
    "run_subject",
    "writable",
]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to measure, where its images come from, and where results belong.

    `identity`: what tells its weights from others, as JSON; `words`: how a command names it,
    without a path of this machine; `stem` ends the names of result files; `home` is the run's
    directory (None for a bundle, which holds only what its manifest lists). `images(split)` are
    the model's own.
    """

    scorer: Scorer
    name: str
    identity: Mapping[str, Any]
    words: str
    stem: str
    images: Callable[[Split], ImageData]
    home: Path | None = None

    def place_for_results(self, out: Path | None) -> Path:
        """The directory for results, made and writable; raises where there is none."""
        folder = out or self.home
        if folder is None:
            raise ConfigError(
                "a bundle holds only what its manifest lists: say where results go with --out"
            )
        return writable(folder)


def writable(folder: Path) -> Path:
    """The directory `folder` for results, made where it is not; raises where it takes none."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise EvaluationError(f"{folder} cannot be written to: give another --out.")
    return folder


def told_apart(limit: int | None, seed: int) -> str:
    """The end of a result's name: of fewer images, or under another seed, it takes no other's
    place."""
    return ("" if limit is None else f"-first{limit}") + (f"-seed{seed}" if seed else "")


def run_subject(
    run: Path, *, weights: Weights = "ema", data_dir: Path | None = None, device: str = "auto"
) -> Subject:
    """The newest checkpoint of a run, or the checkpoint `run` itself."""
    config, model, checkpoint = load_run(run, weights=weights)
    run_dir = checkpoint.run_dir

    def images(split: Split) -> ImageData:
        _refuse_seen(split, with_validation=config.data.with_validation)
        return run_images(config, split, known_data_dir(run_dir, data_dir))

    return Subject(
        scorer=ModelScorer(model.to(choose_device(device))),
        name=run_dir.resolve().name,
        identity=weights_used(checkpoint, weights),
        words="RUN" if weights == "ema" else f"RUN --weights {weights}",
        stem=f"{checkpoint.path.name}-{weights}",
        images=images,
        home=run_dir,
    )


def bundle_subject(
    path: Path,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
) -> Subject:
    """A bundle, through the engine that serves it, on auto, cpu or cuda.

    With the noise of a run's evaluation its figures are those of the checkpoint that it was
    exported from, but for rounding. Its images are those of `data` (None: what it says it was
    trained on). Raises `EvaluationError` where the bundle or the device is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise EvaluationError(f"A bundle is measured on auto, cpu or cuda, not {device!r}.")
    try:
        bundle = load_bundle(path)
        provider: Any = "cpu" if device == "cpu" else "auto"
        scorer = BundleScorer(bundle, provider=provider, threads=torch.get_num_threads())
    except BundleError as error:
        raise EvaluationError(str(error)) from error
    if device == "cuda" and scorer.engine.provider != "cuda":
        raise EvaluationError("ONNX Runtime has no CUDA here: use --device cpu.")

    manifest = bundle.manifest
    return Subject(
        scorer=scorer,
        name=f"{manifest.name} {manifest.version}",
        identity={"bundle": manifest.name, "version": manifest.version, "sha256": bundle.hash},
        words=f"--bundle BUNDLE{data_words(data)}",
        stem=f"{manifest.name}-{manifest.version}{data_stem(data)}",
        images=lambda split: bundle_images(bundle, data, split, data_dir),
    )


def data_words(data: str | None) -> str:
    """The option that names a bundle's images, without a path of this machine."""
    if data is None:
        return ""
    return f" --data {'folder:PATH' if data.startswith(FOLDER_PREFIX) else data}"


def data_stem(data: str | None) -> str:
    """What sets a result on images that were named apart from others, in its file's name."""
    if data is None or not data.startswith(FOLDER_PREFIX):
        return "" if data is None else f"-{data}"
    return f"-folder-{hashlib.sha256(data.encode(errors='surrogateescape')).hexdigest()[:8]}"


def bundle_images(
    bundle: Bundle, data: str | None, split: Split, data_dir: Path | None
) -> ImageData:
    """One split of the images that a bundle is for, at its size."""
    trained = bundle.manifest.training
    if data is None:
        _refuse_seen(split, with_validation=trained.get("with_validation") is True)
    name = data or str(trained.get("data", ""))
    if not (name in DATASETS or name.startswith(FOLDER_PREFIX)):
        raise EvaluationError(
            f"{bundle.path} was trained on {name or 'images that it does not name'}: say which "
            f"images to use with --data ({', '.join(DATASETS)} or folder:PATH)."
        )
    return _images(name, split, data_dir, bundle.manifest.image.shape, bundle.manifest.fit)


def _refuse_seen(split: Split, *, with_validation: bool) -> None:
    if split == "validation" and with_validation:
        raise EvaluationError(
            "the model was trained with its validation images, too: measure it on another --split"
        )


def run_images(config: RunConfig, split: Split, data_dir: Path | None) -> ImageData:
    """One split of the images that a run was trained on, at its size."""
    name = config.data.name
    try:
        return _images(name, split, data_dir, config.model.image_shape, config.data.fit)
    except DataError as error:
        if name.startswith(FOLDER_PREFIX) and not os.path.exists(folder_path(name, data_dir)):  # noqa: PTH110
            raise DataError(
                f"{error} Where the run's images lie elsewhere now, say so once: iafvae-train fit "
                "--resume --data folder:PATH --out RUN."
            ) from None
        raise


def _images(
    name: str, split: Split, data_dir: Path | None, shape: Sequence[int], fit: FitMode
) -> ImageData:
    """One split; of a folder, at `shape` (C, H, W)."""
    if not name.startswith(FOLDER_PREFIX):
        return load_dataset(name, split, data_dir)
    channels, height, width = shape
    options = FolderOptions(size=(height, width), channels=channels, fit=fit)
    return load_dataset(name, split, data_dir, options)
