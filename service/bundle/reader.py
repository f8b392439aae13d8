"""Reading a bundle: nothing is trusted.

Every file is listed in the manifest with its size and SHA-256, is read without pickle, and has the
shapes that the manifest demands. What is wrong is refused with the file's name and what to do.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle.graphs import TensorSpec
from service.bundle.manifest import Manifest, manifest_from_json
from service.codecs.folders import printable
from service.verdicts.reference import Reference
from service.verdicts.statistics import compressed_bytes, host_names

__all__ = ["MANIFEST", "Bundle", "BundleError", "file_digest", "load_bundle", "read_manifest"]

logger = logging.getLogger("iafvae")
MANIFEST = "manifest.json"
FOLDERS = ("portable", "cpu")
MAX_MANIFEST_BYTES = 4 << 20
MAX_MANIFEST_DEPTH = 32
MAX_ARRAY_FILE_BYTES = 256 << 20
MAX_SHIFT = 0.1  # of a statistic, in deviations of usual images
MAX_SAID = 1000  # characters of what is wrong
REPLACE = "restore the bundle from where it was exported, or export it again"

Arrays = dict[str, NDArray[Any]]


class BundleError(Exception):
    """A bundle cannot be used; the message names the bundle, the file and what to do."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    hash: SHA-256 (hex) of manifest.json, which holds every other file's, so it names the whole
    bundle; reference: what verdicts compare with; canaries: operation -> ``{"in": {input: array},
    "out": {output: array}}``.
    """

    path: Path
    manifest: Manifest
    hash: str
    reference: Reference | None
    canaries: dict[str, dict[str, Arrays]]

    def read(self, name: str) -> bytes:
        """The bytes of a listed file, which are still those that were verified.

        Raises BundleError where the file has gone or has changed since.
        """
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise _refuse(self.path, name, f"cannot be read ({error.strerror})") from error
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name].sha256:
            raise _refuse(self.path, name, "changed while the bundle was loaded", "load it again")
        return data


def load_bundle(path: Path | str) -> Bundle:
    """Read and verify the bundle in directory `path`.

    Raises BundleError where anything is missing, unknown, corrupt or contradicts the manifest.
    """
    path = Path(path)
    if not path.is_dir():
        raise BundleError(f"{path} is no directory: give the directory that holds {MANIFEST}")
    manifest, digest = read_manifest(path)
    if extra := sorted(set(_entries(path)) - {MANIFEST, *manifest.files}):
        what = ", ".join(extra)
        raise _refuse(path, what, "not listed in the manifest", "remove what is not part")
    for name, record in manifest.files.items():
        file = _inside(path, name)
        if (size := file.stat().st_size) != record.bytes:
            raise _refuse(path, name, f"has {size} bytes, the manifest says {record.bytes}")
        if file_digest(file) != record.sha256:
            raise _refuse(path, name, "does not have the SHA-256 that the manifest says")
    reference, canaries = _read_calibration(path, manifest), _read_canaries(path, manifest)
    if reference is not None and _compresses_otherwise(reference, manifest, canaries):
        logger.warning(
            "bundle %s: zlib compresses otherwise here (%s) than where it was calibrated, and its "
            "p-values would be wrong: there are none. Calibrate it here: iafvae-train calibrate",
            path.name,
            zlib.ZLIB_RUNTIME_VERSION,
        )
        reference = replace(reference, distances={})
        scoring = manifest.scoring.model_copy(update={"calibrated_importance_samples": ()})
        manifest = manifest.model_copy(update={"scoring": scoring})
    return Bundle(path=path, manifest=manifest, hash=digest, reference=reference, canaries=canaries)


def _refuse(path: Path, name: str, problem: str, remedy: str = REPLACE) -> BundleError:
    said = printable(f"{name}: {problem}")  # in it are names that a stranger chose
    said = said if len(said) <= MAX_SAID else said[: MAX_SAID - 3] + "..."
    return BundleError(f"bundle {path}: {said}; {remedy}")


def read_manifest(path: Path) -> tuple[Manifest, str]:
    """The manifest of the bundle in `path` and its SHA-256 (hex); no other file is looked at.

    Raises BundleError.
    """
    file = _inside(path, MANIFEST)
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise _refuse(path, MANIFEST, f"is larger than {MAX_MANIFEST_BYTES} bytes")
    raw = file.read_bytes()
    try:
        fields = json.loads(raw, object_pairs_hook=_unique_keys)
        _check_depth(fields)
        json.dumps(fields, ensure_ascii=False).encode("utf-8")  # raises for lone surrogates
        manifest = manifest_from_json(fields)
    except (ValueError, RecursionError) as error:  # ValueError covers broken JSON and UTF-8
        raise _refuse(path, MANIFEST, str(error)) from error
    return manifest, hashlib.sha256(raw).hexdigest()


def _check_depth(value: object, room: int = MAX_MANIFEST_DEPTH) -> None:
    """Raises ValueError for what is nested so deeply that no answer could hold it."""
    if room == 0:
        raise ValueError(f"is nested more than {MAX_MANIFEST_DEPTH} deep")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        _check_depth(one, room - 1)


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("an object has the same key twice")
    return fields


def file_digest(file: Path) -> str:
    """SHA-256 (hex) of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _inside(path: Path, name: str) -> Path:
    """The regular file `name` of the bundle; a link that leaves the directory is refused."""
    file = path / name
    if not file.is_file():
        raise _refuse(path, name, "is missing")
    if not file.resolve().is_relative_to(path.resolve()):
        raise _refuse(
            path, name, "is a link that leaves the bundle", "copy the file into the bundle"
        )
    return file


def _entries(path: Path) -> Iterator[str]:
    """What lies in a bundle, with what lies in its folders of graphs; nothing that is hidden."""
    for entry in path.iterdir():
        if entry.name in FOLDERS and entry.is_dir():
            inner = (each.name for each in entry.iterdir())
            yield from (f"{entry.name}/{name}" for name in inner if not name.startswith("."))
        elif not entry.name.startswith("."):
            yield entry.name


def _read_arrays(path: Path, name: str) -> Arrays:
    """Every array of an npz file, without pickle and without unpacking more than is sane."""
    file = _inside(path, name)
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_ARRAY_FILE_BYTES:
                raise _refuse(path, name, f"unpacks to more than {MAX_ARRAY_FILE_BYTES} bytes")
        with np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except BundleError:
        raise
    except Exception as error:  # on a strange archive the readers raise a dozen kinds
        raise _refuse(path, name, f"cannot be read as arrays ({error})") from error


def _read_calibration(path: Path, manifest: Manifest) -> Reference | None:
    spec = manifest.calibration
    if spec is None:
        return None
    names = (*manifest.statistics, *host_names(binary=manifest.likelihood.binary))
    samples = manifest.scoring.calibrated_importance_samples
    arrays = _read_arrays(path, spec.file)
    try:
        size = manifest.image.shape[1:]
        found = Reference.of(arrays, names, samples, size, spec.tail_weight)
    except ValueError as error:
        raise _refuse(path, spec.file, str(error)) from None
    for name, said in (("usual", spec.images), ("fit", spec.fit_images)):
        if (have := len(getattr(found, name))) != said:
            raise _refuse(path, spec.file, f"{name} has {have} images, not {said}")
    return found


def _compresses_otherwise(
    reference: Reference, manifest: Manifest, canaries: Mapping[str, dict[str, Arrays]]
) -> bool:
    """Whether this system's zlib, of which there are several, makes a statistic another one."""
    assert manifest.calibration is not None  # noqa: S101 - the reference is its
    then = manifest.calibration.compressed_bytes
    if not then:
        return False
    now = compressed_bytes(canaries["evidence"]["in"]["image"])
    usual = reference.usual[:, reference.names.index("compressed_bytes")]
    return bool(abs(now.mean() - np.mean(then)) > MAX_SHIFT * usual.std())


def _read_canaries(path: Path, manifest: Manifest) -> dict[str, dict[str, Arrays]]:
    name = manifest.canaries.file
    arrays = _read_arrays(path, name)
    canaries: dict[str, dict[str, Arrays]] = {}
    for operation, graph in manifest.graphs.items():
        sizes: dict[str, int] = {}
        sides = (("in", graph.inputs), ("out", graph.outputs))
        canaries[operation] = {
            side: {
                t.name: _canary(path, name, arrays, f"{operation}/{side}/", t, sizes) for t in ts
            }
            for side, ts in sides
        }
        owner = canaries[operation]["in"].get("owner")
        if owner is not None and (owner.min() < 0 or owner.max() >= sizes["N"]):
            raise _refuse(path, name, f"{operation}/in/owner points outside its images")
    if arrays:
        raise _refuse(path, name, f"has unknown arrays {sorted(arrays)}")
    return canaries


def _canary(
    path: Path, name: str, arrays: Arrays, prefix: str, tensor: TensorSpec, sizes: dict[str, int]
) -> NDArray[Any]:
    """Take one array out of `arrays`; `sizes` holds what N and R were in the arrays before."""
    array = arrays.pop(prefix + tensor.name, None)
    if array is None:
        raise _refuse(path, name, f"lacks {prefix}{tensor.name}")
    fits = array.ndim == len(tensor.shape) and all(
        have == (want if isinstance(want, int) else sizes.setdefault(want, have)) and have > 0
        for want, have in zip(tensor.shape, array.shape, strict=True)
    )
    if not fits or array.dtype != tensor.dtype:
        wanted = f"{tensor.dtype}{list(tensor.shape)}"
        got = f"{array.dtype}{list(array.shape)}"
        raise _refuse(path, name, f"{prefix}{tensor.name} must be {wanted}, not {got}")
    if array.dtype == np.float32 and not np.isfinite(array).all():
        raise _refuse(path, name, f"{prefix}{tensor.name} must be finite")
    return array
