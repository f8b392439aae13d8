"""A new calibration of a bundle, without training: new images to compare with, a new version."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from service.bundle import Bundle, BundleError, load_bundle, manifest_to_json, write_bundle
from service.engine.onnxruntime_engine import Engine
from training.data import DATASETS, FOLDER_PREFIX, SPLITS, ImageData, load_splits, public_name
from training.data.folder import FolderOptions
from training.errors import ExportError
from training.export.card import calibration_text
from training.export.export import CALIBRATION_FILE, calibrated, refuse_strangers

__all__ = ["next_version", "recalibrate"]

CARD = "MODEL_CARD.md"


def recalibrate(
    path: Path,
    out: Path,
    data: str,
    *,
    version: str | None = None,
    data_dir: Path | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Write the bundle at `path` to `out`, calibrated on `data`, under another version.

    `data` is a data set's name, whose validation and calibration splits are taken, or a folder of
    images that are known to be usual: half of them make the density, half are ranked among. Raises
    `ExportError`, with nothing written, where they are too few, all alike or do not fit.
    """
    refuse_strangers(out)
    try:
        bundle = load_bundle(path)
        fields: dict[str, Any] = manifest_to_json(bundle.manifest)
        contents = {name: bundle.read(name) for name in fields.pop("files")}
        images, fit = _images(bundle, data, data_dir)
        engine = Engine(bundle, provider="cpu")
        engine.warm()
        contents[CALIBRATION_FILE] = calibrated(fields, engine, images, fit, progress)
        fields["version"] = version or next_version(bundle.manifest.version)
        if CARD in contents:
            contents[CARD] = _card(contents[CARD].decode(), fields).encode()
        return write_bundle(out, fields, contents)
    except (BundleError, ValueError, OSError) as error:
        raise ExportError(f"No bundle was written at {out}: {error}") from error


def next_version(version: str) -> str:
    """The last number of a version and one: 1.2.0 -> 1.2.1, 2-beta -> 2-beta.1."""
    found = re.fullmatch(r"(.*\.)?(\d+)", version)
    return f"{found[1] or ''}{int(found[2]) + 1}" if found else f"{version}.1"


def _images(bundle: Bundle, data: str, data_dir: Path | None) -> tuple[ImageData, ImageData | None]:
    if data in DATASETS:
        fit, images = load_splits(data, ("validation", "calibration"), data_dir, FolderOptions())
        return images, fit
    name = data if data.startswith(FOLDER_PREFIX) else f"{FOLDER_PREFIX}{data}"
    channels, height, width = bundle.manifest.image.shape
    options = FolderOptions(size=(height, width), channels=channels)
    parts = load_splits(name, SPLITS, data_dir, options)
    pixels = np.concatenate([part.pixels for part in parts])
    return ImageData(pixels, public_name(name), "calibration"), None


def _card(card: str, fields: dict[str, Any]) -> str:
    """The card with what it says of version and calibration brought up to date."""
    text = calibration_text(
        fields["calibration"]["images"],
        fields["calibration"],
        fields["scoring"]["calibrated_importance_samples"],
        fields["scoring"]["alpha"],
    )
    card = re.sub(r"\A# .*", f"# {fields['name']} {fields['version']}", card)
    return re.sub(r"(?s)(## Calibration\n\n).*?(?=\n\n## |\Z)", lambda m: m[1] + text, card)
