"""The manifest of a bundle: what a model is, field by field.

Checks everything that can be checked without opening another file; what the other files hold is
`service.bundle`'s to compare with it. A manifest that contradicts itself is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from service.bundle.graphs import (
    GraphSpec,
    ImageSpec,
    LatentSpec,
    LikelihoodSpec,
    Positive,
    Record,
    TensorSpec,
    WeightSpec,
    graph_contract,
)
from service.codecs.fitting import FitMode
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
    "is_file_name",
    "manifest_from_json",
    "manifest_to_json",
]

SCHEMA_VERSION = 4
# A plain name, or one in a folder of graphs, cannot lead out of the directory on any system.
FILE_NAME = re.compile(r"((portable|cpu)/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
MAX_ROW_BLOCK = 16
OPERATIONS = ("sample", "decode", "encode", "score", "evidence")


class PreprocessingSpec(Record):
    """What the graph does to pixels first: nothing, or a grey pixel becomes white with its level
    (of 255) as the chance, where ``image / 255 > u_image``."""

    kind: Literal["binarize", "none"]


class ScoringSpec(Record):
    """Defaults of scoring; a p-value exists for the calibrated numbers of importance samples."""

    default_importance_samples: Positive
    calibrated_importance_samples: tuple[Positive, ...]
    default_seed: Annotated[int, Field(ge=0, lt=2**63)]
    alpha: Annotated[float, Field(gt=0, lt=1)]

    @field_validator("calibrated_importance_samples")
    @classmethod
    def _once(cls, samples: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(samples)) != len(samples):
            raise ValueError("importance samples must be listed once")
        return samples


class CalibrationSpec(Record):
    """What is known of images that were set aside, at importance-sample noise of `seed`.

    images: among which others are ranked; fit_images: of which the density of the statistics was
    made; fitted: whether they were fitted to the model's size, as `resize` does; folds: above 1,
    both are the same images, each ranked by a density of the other folds; tail_weight: what the
    largest squared deviation of a statistic counts in a distance (0 in bundles made before it);
    compressed_bytes: that statistic of the canaries' images, by the zlib that made the calibration
    (none of binary images, or in bundles made before it).
    """

    file: str
    images: Positive
    fit_images: Annotated[int, Field(ge=2)]
    split: str
    seed: int
    date: str
    fitted: bool
    folds: Positive = 1
    tail_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    compressed_bytes: tuple[Positive, ...] = ()


class CanarySpec(Record):
    """Inputs with known outputs, and how closely a machine must reproduce them."""

    file: str
    rtol: Annotated[float, Field(ge=0)]
    atol: Annotated[float, Field(ge=0)]


class EvaluationFigure(Record):
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


class FileRecord(Record):
    """SHA-256 (hex) and size of one file."""

    sha256: str
    bytes: int

    @field_validator("sha256")
    @classmethod
    def _is_hex(cls, digest: str) -> str:
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError("sha256 must be 64 lower-case hexadecimal digits")
        return digest


class Manifest(Record):
    """Everything a server and its users are told about a model.

    fit: how images of another size were brought to `image` in training, and are by `resize`;
    weights: what lies in `weights_file`, which both forms of every graph read; row_block: on CPU,
    batches of a multiple of so many rows have no element whose rounding depends on the batch: 1
    where the widths of all element-wise functions and sums are multiples of 16 floats (a vector
    register), else what makes them so. Absent, 16: right for every graph, and dear for small
    requests.
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
    statistics: tuple[str, ...]
    graphs: dict[str, GraphSpec]
    weights_file: str
    weights: tuple[WeightSpec, ...]
    opset: int
    precision: str
    parameters: int
    noise_version: int
    scoring: ScoringSpec
    calibration: CalibrationSpec | None
    canaries: CanarySpec
    evaluation: tuple[EvaluationFigure, ...]
    training: dict[str, Any]
    files: dict[str, FileRecord]
    row_block: int = MAX_ROW_BLOCK
    fit: FitMode = "crop"

    @field_validator("schema_version")
    @classmethod
    def _is_ours(cls, version: int) -> int:
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version is {version}, this program reads {SCHEMA_VERSION}:"
                " export the model again, or install a matching version of iafvae"
            )
        return version

    @field_validator("noise_version")
    @classmethod
    def _is_made_here(cls, version: int) -> int:
        if version != NOISE_VERSION:
            raise ValueError(
                f"noise_version is {version}, this program makes {NOISE_VERSION}, so its"
                " calibration and seeds would not hold: export the model again"
            )
        return version

    @model_validator(mode="after")
    def _agrees(self) -> Self:
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
        if not self.statistics or len(set(self.statistics)) != len(self.statistics):
            raise ValueError("statistics must have different names, at least one")
        if (self.preprocessing.kind == "binarize") != self.likelihood.binary:
            raise ValueError("preprocessing.kind is 'binarize' for a bernoulli likelihood alone")
        _check_graphs(self)
        _check_file_names(self)
        _check_weights(self)
        return self


def _check_graphs(manifest: Manifest) -> None:
    contract = graph_contract(
        manifest.image, manifest.latent, manifest.likelihood, manifest.statistics
    )
    if set(manifest.graphs) != set(contract):
        raise ValueError(f"graphs must be {', '.join(contract)}")
    for operation, wanted in contract.items():
        got = manifest.graphs[operation]
        for side in ("inputs", "outputs"):
            want, have = getattr(wanted, side), getattr(got, side)
            if want != have:
                raise ValueError(
                    f"graphs.{operation}.{side} must be {_signature(want)}, not {_signature(have)}"
                )


def _signature(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{t.name} {t.dtype}[{','.join(map(str, t.shape))}]" for t in tensors)


def _check_file_names(manifest: Manifest) -> None:
    named = [file for graph in manifest.graphs.values() for file in (graph.portable, graph.cpu)]
    named += [manifest.weights_file, manifest.canaries.file]
    if manifest.calibration is not None:
        named.append(manifest.calibration.file)
    for name in (*named, *manifest.files):
        if not is_file_name(name):
            raise ValueError(f"file name {name!r} must be a plain name inside the bundle")
    if missing := sorted(set(named) - set(manifest.files)):
        raise ValueError(f"files lacks {', '.join(missing)}")


def is_file_name(name: str) -> bool:
    """Whether a file of a bundle, other than its manifest, may have this name."""
    return FILE_NAME.fullmatch(name) is not None and name != "manifest.json"


def _check_weights(manifest: Manifest) -> None:
    if len({weight.name for weight in manifest.weights}) != len(manifest.weights):
        raise ValueError("weights must have different names")
    end = 0
    for weight in sorted(manifest.weights, key=lambda weight: weight.offset):
        if weight.offset < end:
            raise ValueError(f"weights: {weight.name} overlaps the one before it")
        end = weight.offset + weight.length
    if end > manifest.files[manifest.weights_file].bytes:
        raise ValueError(f"weights end at byte {end}, behind the end of {manifest.weights_file}")


def manifest_from_json(fields: object) -> Manifest:
    """The manifest in `fields` (parsed JSON). Raises ValueError naming the field at fault."""
    try:
        return Manifest.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        raise ValueError(_problem(error.errors(include_url=False))) from None


def manifest_to_json(manifest: Manifest) -> dict[str, object]:
    """The reverse of `manifest_from_json`."""
    return manifest.model_dump(mode="json")


KINDS = {
    "int_type": "int",
    "float_type": "float",
    "string_type": "str",
    "bool_type": "bool",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}
BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def _problem(errors: Sequence[ErrorDetails]) -> str:
    """One line about the worst of `errors`: another schema, then a misspelt field, a missing one,
    and else the first."""
    worst = min(errors, key=_rank)
    kind, where, got = worst["type"], _dotted(worst["loc"]), worst["input"]
    if kind in ("extra_forbidden", "missing"):
        parent = worst["loc"][:-1]
        names = [str(e["loc"][-1]) for e in errors if e["type"] == kind and e["loc"][:-1] == parent]
        says = "has unknown" if kind == "extra_forbidden" else "lacks"
        return f"{_dotted(parent)} {says} field(s) {', '.join(sorted(names))}"
    if kind == "value_error":  # what a validator of ours said, which names its field
        said = str(worst["ctx"]["error"])
        named = worst["loc"] and said.startswith(str(worst["loc"][-1]))
        return f"{_dotted(worst['loc'][:-1]) if named else where}: {said}"
    if kind == "literal_error":
        return f"{where} must be one of {worst['ctx']['expected']}, not {got!r}"
    if kind == "finite_number":
        return f"{where} must be finite, not {got}"
    for name, bound in worst.get("ctx", {}).items():
        if name in BOUNDS:
            return f"{where} must be {BOUNDS[name]} {bound}, not {got}"
    if kind in KINDS:
        its = "null" if got is None else type(got).__name__
        return f"{where} must be {KINDS[kind]}, not {its}"
    return f"{where}: {worst['msg']}"


def _rank(error: ErrorDetails) -> int:
    if error["loc"] == ("schema_version",):
        return 0
    return {"extra_forbidden": 1, "missing": 2}.get(error["type"], 3)


def _dotted(loc: Sequence[int | str]) -> str:
    """``manifest.latent.groups[0].name``"""
    return "manifest" + "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in loc)
