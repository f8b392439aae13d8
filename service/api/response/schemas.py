"""Answers of ``/v1`` in JSON: they document it and hold the tests to it.

The hot routes write their JSON by hand.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.request.schemas import Output

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


class Response(BaseModel):
    """Fields of every JSON answer."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str
    version: str
    notes: Annotated[
        list[str], Field(description="What a reader must know, such as that images were altered.")
    ]


class ImagesResponse(Response):
    """Answer of sample, decode, reconstruct and interpolate."""

    images: Annotated[list[str], Field(description="Each a PNG file in base64.")]
    shape: Annotated[list[int], Field(description="[n, channels, height, width]")]
    status: Annotated[
        list[Literal["ok", "non_finite"]],
        Field(description="Of each image; non_finite: its mean was no number, and is shown as 0."),
    ]
    output: Output
    seed: Annotated[
        int | None, Field(description="null: no seed was given where none is needed (see notes).")
    ]
    temperature: Annotated[
        list[float] | None, Field(description="One per latent group; of sample only.")
    ] = None
    resampled: Annotated[
        list[str] | None,
        Field(description="Latent groups drawn anew; of sample with prior_eps only."),
    ] = None


class ScoreResult(BaseModel):
    """Scores of one image. Numbers that are not finite are null, and `status` says why."""

    model_config = ConfigDict(extra="forbid")

    log_likelihood_nats: Annotated[
        float | None, Field(description="Importance-weighted lower bound on log p(x), in nats.")
    ]
    bits_per_dim: float | None
    elbo_nats: float | None
    standard_error_nats: Annotated[
        float | None,
        Field(
            description="Of the estimate, by the delta method; too small where the effective "
            "sample size is small; null at K = 1."
        ),
    ]
    effective_sample_size: Annotated[
        float | None, Field(description="From 1 to K: how many samples share the weight.")
    ]
    p_value: Annotated[
        float | None,
        Field(
            description="(1 + calibration images that lie as far from usual ones) / (1 + all), by "
            "all statistics together; null if K has no calibration."
        ),
    ]
    anomalous: Annotated[
        bool | None,
        Field(description="p_value <= alpha; null: no decision is possible, status says why."),
    ]
    discovery: Annotated[
        bool | None, Field(description="With fdr: by Benjamini and Hochberg over all images.")
    ]
    status: Annotated[
        Literal["ok", "not_calibrated", "non_finite", "alpha_too_small", "altered"],
        Field(
            description="not_calibrated: K has no calibration; non_finite: an estimate is no "
            "number; alpha_too_small: below 1 / (1 + calibration images); altered: the image was "
            "resized or converted, and no calibration image was."
        ),
    ]
    altered: Annotated[bool, Field(description="The image was resized or converted first.")]
    kl_nats: Annotated[dict[str, float | None], Field(description="By latent group.")]
    evidence: Annotated[
        dict[str, float | None],
        Field(description="The two-sided p-value of each statistic alone, by name."),
    ]


class Calibration(BaseModel):
    """The images that p-values refer to."""

    model_config = ConfigDict(extra="forbid")

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
    certified_alpha: Annotated[
        float | None,
        Field(
            description="p_value <= this has at most alpha false alarms, with 95% confidence over "
            "calibration sets; null: no threshold has."
        ),
    ]
    fdr: float | None
    calibration: Calibration | None


class BoxResult(BaseModel):
    """A square of an image that stands out, in pixels from the top left."""

    model_config = ConfigDict(extra="forbid")

    left: int
    top: int
    side: int
    deviations: Annotated[
        float | None, Field(description="Of what is usual there; positive: brighter than expected.")
    ]
    p_value: Annotated[
        float | None, Field(description="Among the largest boxes of calibration images.")
    ]


class AnomalyMapResponse(Response):
    """Answer of anomaly-map."""

    results: Annotated[
        list[list[BoxResult]], Field(description="Of each image the largest boxes, largest first.")
    ]
    seed: int
    calibration: Calibration


class EncodeResponse(Response):
    """Answer of encode."""

    latents: Annotated[
        list[list[float | None]], Field(description="[n, D]; null where not finite.")
    ]
    prior_eps: Annotated[
        list[list[float | None]],
        Field(description="[n, D]: the prior's noise that gives these latents, for sample."),
    ]
    status: Annotated[list[Literal["ok", "non_finite"]], Field(description="Of each image.")]
    seed: Annotated[int | None, Field(description="null: the posterior at eps = 0.")]


class ModelDescription(BaseModel):
    """A loaded model: who computes it, and its manifest with its figures."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    version: str
    versions: Annotated[list[str], Field(description="Loaded ones of this name, newest first.")]
    default: Annotated[bool, Field(description="It answers where no model is named.")]
    default_version: Annotated[bool, Field(description="It answers for its name alone.")]
    pinned: Annotated[bool, Field(description="Because an operator chose it, not as the newest.")]
    ready: bool
    directory: str
    bundle: Annotated[str, Field(description="SHA-256 of the manifest, which hashes all files.")]
    provider: str
    precision: str
    manifest: dict[str, Any]
    limits: Annotated[dict[str, int], Field(description="What one request may ask for.")]


class CalibrationDistances(BaseModel):
    """What a p-value ranks an image among: how far calibration images lie from usual ones."""

    model_config = ConfigDict(protected_namespaces=())

    model: str
    version: str
    importance_samples: int
    distances: Annotated[
        list[float], Field(description="Of all statistics together, ascending; without a unit.")
    ]


class FailedBundle(BaseModel):
    """A bundle that was refused; what was loaded from its directory before stays."""

    directory: str
    reason: str


class ModelsResponse(BaseModel):
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
