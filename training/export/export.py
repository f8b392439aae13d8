"""A trained model as a bundle: graphs, weights, calibration, canaries, pictures, card, manifest.

A draft with the graphs alone is written to a temporary directory and loaded by the engine that
will serve it; through that engine the graphs, in both forms, are compared with torch, and only
then the calibration images are scored, which takes longest. The bundle proper is then written,
loaded and its canaries are computed before it gets its name. Where anything disagrees, nothing is
published.
"""

import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from model.contract import DensityModel
from service.bundle import (
    MANIFEST,
    SCHEMA_VERSION,
    Bundle,
    BundleError,
    ImageSpec,
    LatentGroup,
    LatentSpec,
    LikelihoodSpec,
    Manifest,
    graph_contract,
    manifest_from_json,
    write_bundle,
)
from service.bundle.writer import refuse_strangers
from service.codecs.images import FitMode
from service.engine.onnxruntime_engine import Engine
from service.noise import NOISE_VERSION
from service.verdicts.statistics import compressed_bytes
from training.data import ImageData
from training.errors import ExportError, in_words
from training.export.calibrate import FOLDS, IMPORTANCE_SAMPLES, SEED, halves, reference_of
from training.export.card import model_card
from training.export.evidence import statistic_names
from training.export.findings import Findings
from training.export.graphs import (
    OPSET,
    WEIGHTS_FILE,
    GraphModule,
    Graphs,
    build_graphs,
    graph_modules,
)
from training.export.parity import PARITY_ROWS, check_parity, graph_inputs, torch_outputs
from training.plots import png_bytes, reconstruction_sheet, sample_sheet

__all__ = [
    "BundleDetails",
    "calibrated",
    "check_place",
    "draft_manifest",
    "export_bundle",
    "refused",
]

CALIBRATION_FILE = "calibration.npz"
CANARIES_FILE = "canaries.npz"
DEFAULT_SAMPLES, ALPHA = 16, 0.01  # where a caller asks for nothing else
CANARY_IMAGES = 4
CANARY_IMAGES_OF_LARGE, LARGE_LATENT = 2, 4096  # their noise would outweigh a small model
SHEET_SCALE = 2
RECONSTRUCTIONS = 32

Contents = dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class BundleDetails:
    """What a bundle says of itself beyond what the model knows.

    `fit`: how images of another size were fitted in training; `evaluation`: entries as
    `EvaluationReport.manifest_entries` gives them; `training`: whatever made the model, as JSON
    values; `findings`: what else was measured, for the card, with its pictures.
    """

    name: str
    version: str = "1.0.0"
    description: str = ""
    license: str = "MIT"
    fit: FitMode = "crop"
    evaluation: tuple[Mapping[str, Any], ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)


def export_bundle(
    model: DensityModel,
    out: Path,
    details: BundleDetails,
    *,
    calibration: ImageData | None,
    fit: ImageData | None = None,
    examples: ImageData | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Write `model` to the bundle directory `out` and return it as a server would load it.

    `calibration` are the images that p-values will refer to (None: no p-values), `fit` those that
    the density of the statistics is made of (None: half of `calibration`), `examples` those shown
    with their reconstructions. Raises `ExportError`, with nothing written at `out`, where
    the graphs disagree with the model or the bundle with its own rules.
    """
    check_place(out)
    folded = model.fold().cpu()
    # Weight norm's gains are no more than the lengths of the rest: they do not count.
    trained = sum(p.numel() for name, p in model.named_parameters() if not name.endswith(".g"))
    fields = _manifest_fields(folded, details, trained)
    _checked_manifest(fields)  # a name that no manifest takes is said before the work, not after it
    progress = progress or Progress(disable=True)
    task = progress.add_task("making and comparing the graphs", total=None)
    modules = graph_modules(folded)
    contents = _graph_files(fields, build_graphs(modules))
    images = _sampled_pixels(folded, max(PARITY_ROWS))
    large = folded.layout.dim > LARGE_LATENT
    canary_images = images[: CANARY_IMAGES_OF_LARGE if large else CANARY_IMAGES]
    contents[CANARIES_FILE] = _canaries(modules, fields, canary_images)
    with refused(out):
        with tempfile.TemporaryDirectory() as folder:
            draft = write_bundle(Path(folder) / "draft", fields, contents)
            engine = _engine(draft)
            for each in (engine, Engine(draft, provider="cpu", form="portable")):
                check_parity(each, draft.manifest, modules, images)
            progress.remove_task(task)
            if calibration is not None:
                contents[CALIBRATION_FILE] = calibrated(fields, engine, calibration, fit, progress)
        findings = details.findings.of_calibration(contents.get(CALIBRATION_FILE))
        contents |= _pictures(folded, examples) | dict(findings.pictures)
        card = model_card(
            draft_manifest(fields, contents),
            reconstructions=examples is not None,
            findings=findings,
        )
        contents["MODEL_CARD.md"] = card.encode()
        return write_bundle(out, fields, contents, check=lambda bundle: _engine(bundle).close())


@contextmanager
def refused(out: Path) -> Iterator[None]:
    """Turn what goes wrong with a bundle, before it has its name, into an `ExportError`."""
    try:
        yield
    except (BundleError, ValueError, OSError) as error:
        raise ExportError(f"No bundle was written at {out}: {in_words(error)}") from error


def check_place(out: Path, name: str | None = None) -> None:
    """Raise `ExportError` where `out` is neither free nor a bundle, which would be replaced; with
    `name` also where it is a bundle of another name."""
    with refused(out):
        refuse_strangers(out)
        there = _name_at(out)
        if name is not None and there not in (None, name):
            raise BundleError(
                f"the bundle {there} is there, not {name}: give another directory, or remove it "
                "yourself"
            )


def _name_at(out: Path) -> str | None:
    """What the bundle at `out` is called, None where there is none or it is broken."""
    try:
        return str(json.loads((out / MANIFEST).read_bytes())["name"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _graph_files(fields: dict[str, Any], built: Graphs) -> Contents:
    """The graphs and their weights by file name; what is known of them goes into `fields`."""
    fields["row_block"] = built.row_block
    fields["weights"] = _json_values([tensor.model_dump() for tensor in built.tensors])
    files = {WEIGHTS_FILE: built.weights}
    for operation, graph in fields["graphs"].items():
        files[graph["portable"]] = built.portable[operation]
        files[graph["cpu"]] = built.cpu[operation]
    return files


def _engine(bundle: Bundle) -> Engine:
    """The engine as a server on a CPU has it, after the canaries have passed."""
    engine = Engine(bundle, provider="cpu")
    engine.warm()
    return engine


def _pictures(folded: DensityModel, examples: ImageData | None) -> Contents:
    pictures = {"samples.png": png_bytes(sample_sheet(folded, scale=SHEET_SCALE))}
    if examples is not None:
        shown = examples.first(RECONSTRUCTIONS).pixels
        sheet = reconstruction_sheet(folded, shown, columns=8, scale=SHEET_SCALE)
        pictures["reconstructions.png"] = png_bytes(sheet)
    return pictures


def calibrated(
    fields: dict[str, Any],
    engine: Engine,
    images: ImageData,
    fit: ImageData | None,
    progress: Progress | None,
    *,
    crossed: bool = False,
) -> bytes:
    """The calibration file, computed by a bundle's engine; what it holds goes into `fields`.

    Without images to `fit` the density to, half of `images` are taken for it, or all (`crossed`).
    """
    pixels: tuple[NDArray[np.uint8] | None, NDArray[np.uint8]]
    if fit is not None:
        pixels = fit.pixels, images.pixels
    else:
        pixels = (None, images.pixels) if crossed else halves(images.pixels)
    progress = progress or Progress(disable=True)
    task = progress.add_task("calibrating", total=sum(len(p) for p in pixels if p is not None))
    manifest = engine.bundle.manifest
    reference = reference_of(engine, manifest, *pixels, advance=lambda: progress.advance(task))
    fields["scoring"]["calibrated_importance_samples"] = list(IMPORTANCE_SAMPLES)
    fields["calibration"] = {
        "file": CALIBRATION_FILE,
        "images": reference.images,
        "fit_images": len(reference.fit),
        "split": f"{images.name} {images.split}",
        "seed": SEED,
        "date": datetime.now(UTC).date().isoformat(),
        "fitted": images.fitted,
        "folds": FOLDS if pixels[0] is None else 1,
        "tail_weight": reference.tail_weight,
    }
    if not manifest.likelihood.binary:
        known = compressed_bytes(engine.bundle.canaries["evidence"]["in"]["image"])
        fields["calibration"]["compressed_bytes"] = [int(size) for size in known]
    return _npz(reference.arrays())


def _manifest_fields(
    model: DensityModel, details: BundleDetails, parameters: int
) -> dict[str, Any]:
    """Everything but `files`; not calibrated yet."""
    channels, height, width = model.config.image_shape
    image = ImageSpec(channels=channels, height=height, width=width, levels=256)
    groups = tuple(LatentGroup(**asdict(group)) for group in model.layout.groups)
    latent = LatentSpec(dim=model.layout.dim, groups=groups)
    likelihood = LikelihoodSpec(kind=model.likelihood.kind, uniforms=model.likelihood.uniforms)  # type: ignore[arg-type]
    statistics = statistic_names(model)
    graphs = graph_contract(image, latent, likelihood, statistics)
    fields: dict[str, Any] = _json_values(
        {
            "schema_version": SCHEMA_VERSION,
            "name": details.name,
            "version": details.version,
            "description": details.description,
            "license": details.license,
            "image": image.model_dump(),
            "fit": details.fit,
            "preprocessing": {"kind": "binarize" if likelihood.binary else "none"},
            "likelihood": likelihood.model_dump(),
            "latent": latent.model_dump(),
            "kl_groups": model.kl_groups,
            "statistics": statistics,
            "graphs": {name: graph.model_dump() for name, graph in graphs.items()},
            "weights_file": WEIGHTS_FILE,
            "weights": (),
            "opset": OPSET,
            "precision": "float32",
            "parameters": parameters,
            "noise_version": NOISE_VERSION,
            "scoring": {
                "default_importance_samples": DEFAULT_SAMPLES,
                "calibrated_importance_samples": [],
                "default_seed": SEED,
                "alpha": ALPHA,
            },
            "calibration": None,
            "canaries": {"file": CANARIES_FILE, "rtol": 1e-3, "atol": 1e-3},
            "evaluation": details.evaluation,
            "training": details.training,
        }
    )
    return fields


def _json_values(value: Any) -> Any:
    """As JSON gives them back: tuples as lists."""
    return json.loads(json.dumps(value))


def draft_manifest(fields: Mapping[str, Any], contents: Mapping[str, bytes]) -> Manifest:
    """The manifest before its files are hashed, for what only reads it."""
    unknown = {name: {"sha256": "0" * 64, "bytes": len(data)} for name, data in contents.items()}
    return manifest_from_json({**fields, "files": unknown})


def _checked_manifest(fields: Mapping[str, Any]) -> Manifest:
    """The manifest before any file is made; raises `ExportError` naming what it cannot hold."""
    names = [graph[form] for graph in fields["graphs"].values() for form in ("portable", "cpu")]
    try:
        return draft_manifest(
            {**fields, "weights": []}, dict.fromkeys((*names, WEIGHTS_FILE, CANARIES_FILE), b"")
        )
    except ValueError as error:
        raise ExportError(f"This cannot be exported: {error}") from error


def _canaries(
    modules: Mapping[str, GraphModule], fields: Mapping[str, Any], images: NDArray[np.uint8]
) -> bytes:
    """Inputs with torch's outputs: known answers from an independent computation."""
    manifest = _checked_manifest(fields)
    arrays: dict[str, NDArray[Any]] = {}
    for operation, inputs in graph_inputs(manifest, images, seed=0).items():
        outputs = torch_outputs(modules[operation], inputs)
        arrays |= {f"{operation}/in/{name}": array for name, array in inputs.items()}
        arrays |= {f"{operation}/out/{name}": array for name, array in outputs.items()}
    return _npz(arrays)


@torch.inference_mode()
def _sampled_pixels(model: DensityModel, count: int) -> NDArray[np.uint8]:
    """Images of the model's own, drawn from the prior: no data set is needed for them."""
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(count, model.layout.dim, generator=generator)
    u = torch.rand(count, model.likelihood.uniforms, generator=generator)
    params = model.generate(eps, torch.ones(count, len(model.layout.groups)))
    return model.likelihood.draw(params, u).numpy()


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
