"""Answers of ``/v1`` in JSON: they document it and hold the tests to it.

The hot routes write their JSON by hand.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from service.operations.model import Output

__all__ = [
    "AnomalyMapResponse",
    "CalibrationDistances",
    "EncodeResponse",
    "FailedBundle",
    "ImagesResponse",
    "ModelDescription",
    "ModelsResponse",
    "ProblemDocument",
    "Response",
    "ScoreResponse",
    "ScoreResult",
]


class Document(BaseModel):
    """Part of an answer."""

    model_config = ConfigDict(protected_namespaces=(), use_attribute_docstrings=True)


class Response(Document, extra="forbid"):
    """Fields of every JSON answer."""

    model: str
    version: str
    notes: list[str]
    """What a reader must know, such as that images were altered."""


class ImagesResponse(Response):
    """Answer of sample, decode, reconstruct and interpolate."""

    images: list[str]
    """Each a PNG file in base64."""
    shape: list[int]
    """[n, channels, height, width]"""
    status: list[Literal["ok", "non_finite"]]
    """Of each image; non_finite: its mean was no number, and is shown as 0."""
    output: Output
    seed: int | None
    """null: none was given where none is needed; notes say what stood in for it."""
    temperature: list[float] | None = None
    """One per latent group; of sample only."""
    resampled: list[str] | None = None
    """Latent groups drawn anew; of sample with prior_eps only."""


class ScoreResult(Document, extra="forbid"):
    """Scores of one image. Numbers that are not finite are null, and `status` says why."""

    log_likelihood_nats: float | None
    """Importance-weighted lower bound on log p(x), in nats."""
    bits_per_dim: float | None
    elbo_nats: float | None
    standard_error_nats: float | None
    """Of the estimate, by the delta method; too small where the effective sample size is small;
    null at K = 1."""
    effective_sample_size: float | None
    """From 1 to K: how many samples share the weight."""
    p_value: float | None
    """(1 + calibration images that lie as far from usual ones) / (1 + all), by all statistics
    together; null if K has no calibration."""
    anomalous: bool | None
    """p_value <= alpha; null: no decision is possible, status says why."""
    discovery: bool | None
    """With fdr: by Benjamini and Hochberg over all images."""
    status: Literal["ok", "not_calibrated", "non_finite", "alpha_too_small", "altered"]
    """not_calibrated: K has no calibration; non_finite: an estimate is no number; alpha_too_small:
    below 1 / (1 + calibration images); altered: the image was resized or converted, and no
    calibration image was."""
    altered: bool
    """The image was resized or converted first."""
    kl_nats: dict[str, float | None]
    """By latent group."""
    evidence: dict[str, float | None]
    """The two-sided p-value of each statistic alone, by name."""


class Calibration(Document, extra="forbid"):
    """The images that p-values refer to."""

    name: str
    images: int
    date: str


class ScoreResponse(Response):
    """Answer of score."""

    results: list[ScoreResult]
    estimator: Literal["elbo", "importance_weighted"]
    importance_samples: int
    seed: int
    alpha: float
    certified_alpha: float | None
    """p_value <= this has at most alpha false alarms, with 95% confidence over calibration sets;
    null: no threshold has."""
    fdr: float | None
    calibration: Calibration | None


class BoxResult(Document, extra="forbid"):
    """A square of an image that stands out, in pixels from the top left."""

    left: int
    top: int
    side: int
    deviations: float | None
    """Of what is usual there; positive: brighter than expected."""
    p_value: float | None
    """Among the largest boxes of calibration images."""


class AnomalyMapResponse(Response):
    """Answer of anomaly-map."""

    results: list[list[BoxResult]]
    """Of each image the largest boxes, largest first."""
    maps: str | None = None
    """npy float32 [n, H, W] in base64; with maps=true."""
    seed: int
    calibration: Calibration


class EncodeResponse(Response):
    """Answer of encode."""

    latents: list[list[float | None]]
    """[n, D]; null where not finite."""
    prior_eps: list[list[float | None]]
    """[n, D]: the prior's noise that gives these latents, for sample."""
    status: list[Literal["ok", "non_finite"]]
    """Of each image."""
    seed: int | None
    """null: the posterior at eps = 0."""


class ModelDescription(Document):
    """A loaded model: who computes it, and its manifest with its figures."""

    name: str
    version: str
    versions: list[str]
    """Loaded ones of this name, newest first."""
    default: bool
    """It answers where no model is named."""
    default_version: bool
    """It answers for its name alone."""
    pinned: bool
    """Because an operator chose it, not as the newest."""
    ready: bool
    directory: str
    bundle: str
    """SHA-256 of the manifest, which hashes all files."""
    provider: str
    precision: str
    manifest: dict[str, Any]
    limits: dict[str, int]
    """What one request may ask for."""


class CalibrationDistances(Document):
    """What a p-value ranks an image among: how far calibration images lie from usual ones."""

    model: str
    version: str
    importance_samples: int
    distances: list[float]
    """Of all statistics together, ascending; without a unit."""


class FailedBundle(Document):
    """A bundle that was refused; what was loaded from its directory before stays."""

    directory: str
    reason: str


class ModelsResponse(Document):
    """What is loaded, and what could not be."""

    default: str
    models: list[ModelDescription]
    failed: list[FailedBundle]


class ProblemDocument(BaseModel):
    """RFC 9457 problem details: compare with `type`, show `detail` to people."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
