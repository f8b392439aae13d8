"""The manifest of a bundle: what a model is, field by field.

Checks everything that can be checked without opening another file; what the other files hold is
`service.bundle`'s to compare with it. A manifest that contradicts itself is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from service.bundle.graphs import (
    GraphSpec,
    ImageSpec,
    LatentSpec,
    LikelihoodSpec,
    TensorSpec,
    graph_contract,
)
from service.bundle.strict import from_json, to_json
from service.noise import NOISE_VERSION

__all__ = [
    "OPERATIONS",
    "SCHEMA_VERSION",
    "CalibrationSpec",
    "CanarySpec",
    "EvaluationFigure",
    "FileRecord",
    "Manifest",
    "PreprocessingSpec",
    "ScoringSpec",
    "manifest_from_json",
    "manifest_to_json",
]

SCHEMA_VERSION = 1
MAX_ROW_BLOCK = 16
OPERATIONS = ("sample", "decode", "encode", "score")


@dataclass(frozen=True, kw_only=True)
class PreprocessingSpec:
    """What the graph does to pixels first: pixels from `threshold` up count as 1, or nothing."""

    kind: Literal["threshold", "none"]
    threshold: int | None = None

    def __post_init__(self) -> None:
        if self.kind == "threshold" and not (self.threshold and 1 <= self.threshold <= 255):
            raise ValueError("threshold must be from 1 to 255 where kind is 'threshold'")
        if self.kind == "none" and self.threshold is not None:
            raise ValueError("threshold must be absent where kind is 'none'")


@dataclass(frozen=True, kw_only=True)
class ScoringSpec:
    """Defaults of scoring; a p-value exists for the calibrated numbers of importance samples."""

    default_importance_samples: int
    calibrated_importance_samples: tuple[int, ...]
    default_seed: int
    alpha: float

    def __post_init__(self) -> None:
        samples = (self.default_importance_samples, *self.calibrated_importance_samples)
        if min(samples) < 1 or len(set(samples[1:])) != len(samples[1:]):
            raise ValueError("importance samples must be at least 1 and listed once")
        if not 0 <= self.default_seed < 2**63:
            raise ValueError("default_seed must be from 0 to 2**63 - 1")
        if not 0 < self.alpha < 1:
            raise ValueError("alpha must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class CalibrationSpec:
    """Sorted scores of images that were set aside, at importance-sample noise of `seed`."""

    file: str
    images: int
    split: str
    seed: int

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError("images must be at least 1")


@dataclass(frozen=True, kw_only=True)
class CanarySpec:
    """Inputs with known outputs, and how closely a machine must reproduce them."""

    file: str
    rtol: float
    atol: float

    def __post_init__(self) -> None:
        if self.rtol < 0 or self.atol < 0:
            raise ValueError("rtol and atol must not be negative")


@dataclass(frozen=True, kw_only=True)
class EvaluationFigure:
    """One measured bound with everything that says what was measured; nats are per image."""

    estimator: Literal["elbo", "importance_weighted"]
    importance_samples: int
    split: str
    images: int
    seed: int
    value_nats: float
    standard_error_nats: float
    bits_per_dim: float
    kl_nats: dict[str, float]
    protocol: str
    command: str


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """SHA-256 (hex) and size of one file."""

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256 must be 64 lower-case hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a server and its users are told about a model.

    row_block: on CPU, batches of a multiple of so many rows have no element whose rounding
    depends on the batch: 1 where the widths of all element-wise functions and sums are multiples
    of 16 floats (a vector register), else what makes them so. Absent, 16: right for every graph,
    and dear for small requests.
    """

    schema_version: int
    name: str
    version: str
    description: str
    license: str
    image: ImageSpec
    preprocessing: PreprocessingSpec
    likelihood: LikelihoodSpec
    latent: LatentSpec
    kl_groups: tuple[str, ...]
    graphs: dict[str, GraphSpec]
    weights_file: str
    opset: int
    precision: str
    parameters: int
    noise_version: int
    scoring: ScoringSpec
    calibration: CalibrationSpec | None
    canaries: CanarySpec
    evaluation: tuple[EvaluationFigure, ...]
    training: dict[str, object]
    files: dict[str, FileRecord]
    row_block: int = MAX_ROW_BLOCK

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version is {self.schema_version}, this program reads {SCHEMA_VERSION}:"
                " export the model again, or install a matching version of iafvae"
            )
        if self.noise_version != NOISE_VERSION:
            raise ValueError(
                f"noise_version is {self.noise_version}, this program makes {NOISE_VERSION}, so its"
                " calibration and seeds would not hold: export the model again"
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", self.name):
            raise ValueError(
                f"name {self.name!r} must be letters, digits, '-' and '_' (at most 64)"
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}", self.version):
            raise ValueError(
                f"version {self.version!r} must be letters, digits, '.', '+', '-', '_'"
            )
        if not re.fullmatch(r"[a-z0-9_]{1,16}", self.precision):  # it becomes a header
            raise ValueError(f"precision {self.precision!r} must be such as float32")
        if self.row_block not in (1, 2, 4, 8, MAX_ROW_BLOCK):
            raise ValueError("row_block must be 1, 2, 4, 8 or 16")
        if len(self.kl_groups) != len(self.latent.groups):
            raise ValueError("kl_groups must name as many groups as latent.groups")
        if len(set(self.kl_groups)) != len(self.kl_groups):
            raise ValueError("kl_groups must have different names")
        _check_graphs(self)
        _check_file_names(self)


def _check_graphs(manifest: Manifest) -> None:
    contract = graph_contract(manifest.image, manifest.latent, manifest.likelihood)
    if set(manifest.graphs) != set(contract):
        raise ValueError(f"graphs must be {', '.join(contract)}")
    for operation, wanted in contract.items():
        got = manifest.graphs[operation]
        for side, want, have in (
            ("inputs", wanted.inputs, got.inputs),
            ("outputs", wanted.outputs, got.outputs),
        ):
            if want != have:
                raise ValueError(
                    f"graphs.{operation}.{side} must be {_signature(want)}, not {_signature(have)}"
                )


def _signature(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{t.name} {t.dtype}[{','.join(map(str, t.shape))}]" for t in tensors)


def _check_file_names(manifest: Manifest) -> None:
    named = [graph.file for graph in manifest.graphs.values()]
    named += [manifest.weights_file, manifest.canaries.file]
    if manifest.calibration is not None:
        named.append(manifest.calibration.file)
    for name in (*named, *manifest.files):
        # A plain name cannot lead out of the directory, on any operating system.
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name == "manifest.json":
            raise ValueError(f"file name {name!r} must be a plain name inside the bundle")
    if missing := sorted(set(named) - set(manifest.files)):
        raise ValueError(f"files lacks {', '.join(missing)}")


def manifest_from_json(fields: object) -> Manifest:
    """The manifest in `fields` (parsed JSON). Raises ValueError naming the field at fault."""
    return from_json(Manifest, fields, "manifest")


def manifest_to_json(manifest: Manifest) -> dict[str, object]:
    """The reverse of `manifest_from_json`."""
    fields: dict[str, object] = to_json(manifest)
    return fields
