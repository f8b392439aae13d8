"""The bundle contract: a directory that holds a model and everything known about it.

One name for all of it: the manifest's records, the reader (`load_bundle`), the writer
(`write_bundle`) and the table of graphs (`graph_contract`). Needs pydantic and NumPy
alone, so that a training machine can write a bundle without the rest of the service.
"""

from __future__ import annotations

from service.bundle.graphs import (
    ImageSpec,
    LatentGroup,
    LatentSpec,
    LikelihoodSpec,
    WeightSpec,
    graph_contract,
)
from service.bundle.manifest import (
    OPERATIONS,
    SCHEMA_VERSION,
    CalibrationSpec,
    Manifest,
    manifest_from_json,
    manifest_to_json,
)
from service.bundle.reader import MANIFEST, Bundle, BundleError, load_bundle, read_manifest
from service.bundle.writer import write_bundle

__all__ = [
    "MANIFEST",
    "OPERATIONS",
    "SCHEMA_VERSION",
    "Bundle",
    "BundleError",
    "CalibrationSpec",
    "ImageSpec",
    "LatentGroup",
    "LatentSpec",
    "LikelihoodSpec",
    "Manifest",
    "WeightSpec",
    "graph_contract",
    "load_bundle",
    "manifest_from_json",
    "manifest_to_json",
    "read_manifest",
    "write_bundle",
]
