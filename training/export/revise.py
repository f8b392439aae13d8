"""A finished bundle with something new in it, its model as it was: a calibration, a card."""

import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from service.bundle import Bundle, Manifest, load_bundle, manifest_to_json, write_bundle
from service.engine.onnxruntime_engine import Engine
from service.noise import image_keys
from training.data import (
    DATASETS,
    FOLDER_PREFIX,
    FolderOptions,
    ImageData,
    load_splits,
    public_name,
    whole_folder,
)
from training.errors import DataError, ExportError
from training.export.calibrate import LEAST
from training.export.card import CARD, VERDICTS, calibration_text, with_section
from training.export.export import (
    CALIBRATION_FILE,
    calibrated,
    check_place,
    draft_manifest,
    refused,
)
from training.export.findings import VERDICTS_PICTURE

__all__ = ["into_card", "next_version", "recalibrate"]


def recalibrate(
    path: Path,
    out: Path,
    data: str,
    *,
    resize: bool = False,
    crossed: bool = False,
    version: str | None = None,
    data_dir: Path | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Write the bundle at `path` to `out`, calibrated on `data`, under another version.

    `data` is a data set's name, whose validation and calibration splits are taken, or a folder of
    images that are known to be usual: half of them make the density, half are ranked among, or each
    is ranked by a density of others (`crossed`). Those of another size or colour are fitted as in
    training with `resize`, or where those of the calibration so far were. Raises `ExportError` or
    `DataError`, with nothing written, where they are too few, all alike or do not fit.
    """
    check_place(out)
    with refused(out):
        bundle = load_bundle(path)
        fields, contents = _parts(bundle)
        images, fit = _images(bundle, data, data_dir, resize=resize)
        with closing(Engine(bundle, provider="cpu")) as engine:
            engine.warm()
            contents[CALIBRATION_FILE] = calibrated(
                fields, engine, images, fit, progress, crossed=crossed
            )
        fields["version"] = version or next_version(bundle.manifest.version)
        if CARD in contents:
            card = contents[CARD].decode()
            contents[CARD] = _recalibrated(card, draft_manifest(fields, contents)).encode()
            contents.pop(VERDICTS_PICTURE, None)
        return write_bundle(out, fields, contents)


def into_card(path: Path, measured: str, verdicts: str, picture: bytes) -> Bundle:
    """Give the bundle at `path` a card with the section "Verdicts" anew, and its picture.

    Raises `ExportError` where it is no more the one whose hash is `measured`.
    """
    with refused(path):
        bundle = load_bundle(path)
        if bundle.hash != measured:
            raise ValueError("another one is there than the one that was measured: measure it")
        fields, contents = _parts(bundle)
        card = contents.get(CARD, f"# {fields['name']} {fields['version']}\n".encode()).decode()
        card = with_section(card, VERDICTS, f"![anomaly]({VERDICTS_PICTURE})\n\n{verdicts}")
        contents |= {CARD: card.encode(), VERDICTS_PICTURE: picture}
        return write_bundle(path, fields, contents)


def _parts(bundle: Bundle) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest's fields but `files`, and the contents of these."""
    fields: dict[str, Any] = manifest_to_json(bundle.manifest)
    return fields, {name: bundle.read(name) for name in fields.pop("files")}


def next_version(version: str) -> str:
    """The last number of a version and one: 1.2.0 -> 1.2.1, 2-beta -> 2-beta.1."""
    found = re.fullmatch(r"(.*\.)?(\d+)", version)
    return f"{found[1] or ''}{int(found[2]) + 1}" if found else f"{version}.1"


def _images(
    bundle: Bundle, data: str, data_dir: Path | None, *, resize: bool
) -> tuple[ImageData, ImageData | None]:
    if data in DATASETS:
        fit, images = load_splits(data, ("validation", "calibration"), data_dir, FolderOptions())
        return images, fit
    name = data if data.startswith(FOLDER_PREFIX) else f"{FOLDER_PREFIX}{data}"
    manifest = bundle.manifest
    channels, height, width = manifest.image.shape
    before = manifest.calibration
    fitting = resize or (before is not None and before.fitted)
    options = FolderOptions(
        size=(height, width), channels=channels, fit=manifest.fit if fitting else "none"
    )
    try:
        images = whole_folder(name, "calibration", data_dir, options)
    except DataError as error:
        if fitting or "the model takes" not in str(error):
            raise
        hint = "Or let them be fitted to the model, with --resize."
        raise DataError(f"{str(error).rstrip('.')}. {hint}") from error
    _, first = np.unique(image_keys(images.pixels), return_index=True)
    if len(first) < 2 * LEAST:
        raise ExportError(
            f"Different images in {public_name(name)}: {len(first)}, where {2 * LEAST} are needed "
            "at the least, hundreds for p-values that say something."
        )
    # A copy in both halves would look all too usual.
    return replace(images, pixels=images.pixels[np.sort(first)]), None


def _recalibrated(card: str, manifest: Manifest) -> str:
    """The card with what it says of version and calibration brought up to date."""
    card = re.sub(r"\A# .*", f"# {manifest.name} {manifest.version}", card)
    measure = "iafvae-train evaluate-anomaly --bundle BUNDLE --into-card"
    unknown = f"Not measured since this calibration.\n\n    {measure}"
    calibration = calibration_text(manifest)
    return with_section(with_section(card, "Calibration", calibration), VERDICTS, unknown)
