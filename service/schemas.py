"""Requests and responses of ``/v1``: fields, bounds, units. Unknown fields are refused by name.

Options validate strictly as JSON (``"16"`` is no number) and leniently as text (query parameters
and form fields). The response models document the answers and hold the tests to it; the hot routes
write their JSON by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
)

from service.errors import InvalidInput

__all__ = [
    "DecodeOptions",
    "EncodeOptions",
    "EncodeResponse",
    "ImageOptions",
    "ImagesResponse",
    "InterpolateOptions",
    "ModelDescription",
    "ModelsResponse",
    "Options",
    "ProblemDocument",
    "ReconstructOptions",
    "SampleOptions",
    "ScoreOptions",
    "ScoreResponse",
    "ScoreResult",
    "parse_options",
]

MAX_SEED = 2**63 - 1
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Output = Literal["mean", "draw"]
Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# Discriminated, so that errors speak of what was meant alone.
Temperatures = Annotated[
    Annotated[Temperature, Tag("number")] | Annotated[list[Temperature], Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list) else "number"),
]


def _split_commas(value: object) -> object:
    """As a query parameter a list is ``temperature=1,0.7`` (or the parameter several times)."""
    return value.split(",") if isinstance(value, str) and "," in value else value


class Options(BaseModel):
    """Fields that every operation has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str | None, Field(description="A loaded model; absent: the default one.")] = (
        None
    )


class SampleOptions(Options):
    """``POST /v1/sample``"""

    n: Annotated[int, Field(ge=1, description="How many images to draw.")] = 1
    seed: Annotated[
        Seed | None, Field(description="Absent: the server draws one and returns it.")
    ] = None
    temperature: Annotated[
        Temperatures,
        BeforeValidator(_split_commas),
        Field(description="Scale of the prior's noise: a number, or one per latent group."),
    ] = 1.0
    output: Annotated[
        Output, Field(description="The pixels' mean, or pixels drawn from their distribution.")
    ] = "mean"


class DecodeOptions(Options):
    """``POST /v1/decode``"""

    seed: Annotated[Seed | None, Field(description="For output=draw; absent: drawn.")] = None
    output: Annotated[Output, Field(description="As in sample.")] = "mean"


class ImageOptions(Options):
    """Fields of every operation that takes images."""

    resize: Annotated[
        bool, Field(description="Resize images of another size; the answer says so.")
    ] = False
    convert: Annotated[
        bool, Field(description="Convert colour images to grey; the answer says so.")
    ] = False


class ScoreOptions(ImageOptions):
    """``POST /v1/score``"""

    importance_samples: Annotated[
        int | None,
        Field(ge=1, description="K of the importance-weighted bound; absent: the model's default."),
    ] = None
    seed: Annotated[Seed | None, Field(description="Absent: the model's default, 0.")] = None
    alpha: Annotated[
        float | None,
        Field(gt=0, lt=1, description="An image is anomalous if its p-value is at most alpha."),
    ] = None


class EncodeOptions(ImageOptions):
    """``POST /v1/encode``"""

    seed: Annotated[Seed | None, Field(description="Absent: the posterior at eps = 0.")] = None


class ReconstructOptions(EncodeOptions):
    """``POST /v1/reconstruct``"""

    output: Annotated[Output, Field(description="As in sample.")] = "mean"


class InterpolateOptions(ReconstructOptions):
    """``POST /v1/interpolate``"""

    n: Annotated[
        int, Field(ge=2, description="Images from the first to the second, with both.")
    ] = 8


OptionsT = TypeVar("OptionsT", bound=Options)


def parse_options(kind: type[OptionsT], values: Mapping[str, Any], *, text: bool) -> OptionsT:
    """`values` as `kind`; `text` where they are strings of a query or form rather than JSON.

    Raises:
        InvalidInput: naming every field that is unknown or has a bad value.
    """
    try:
        return kind.model_validate(values, strict=not text)
    except ValidationError as error:
        lines = [_line(item, kind) for item in error.errors(include_url=False)]
        raise InvalidInput("; ".join(dict.fromkeys(lines))) from None


def _line(item: Any, kind: type[Options]) -> str:
    name = str(item["loc"][0]) if item["loc"] else "the body"
    if item["type"] == "extra_forbidden":
        return f"there is no field {name[:60]!r}; known are {', '.join(kind.model_fields)}"
    given = repr(item["input"])
    return f"{name}={given if len(given) <= 60 else given[:57] + '...'}: {item['msg']}"


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
        Field(description="Share of calibration images that score as low; null if K has none."),
    ]
    anomalous: bool
    status: Literal["ok", "not_calibrated", "non_finite"]
    altered: Annotated[bool, Field(description="The image was resized or converted first.")]
    kl_nats: Annotated[dict[str, float | None], Field(description="By latent group.")]


class ScoreResponse(Response):
    """Answer of score."""

    results: list[ScoreResult]
    estimator: Literal["elbo", "importance_weighted"]
    importance_samples: int
    seed: int
    alpha: float


class EncodeResponse(Response):
    """Answer of encode."""

    latents: Annotated[
        list[list[float | None]], Field(description="[n, D]; null where not finite.")
    ]
    status: Annotated[list[Literal["ok", "non_finite"]], Field(description="Of each image.")]
    seed: Annotated[int | None, Field(description="null: the posterior at eps = 0.")]


class ModelDescription(BaseModel):
    """A loaded model: who computes it, and its manifest with its figures."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    version: str
    default: bool
    ready: bool
    bundle: Annotated[str, Field(description="SHA-256 of the manifest, which hashes all files.")]
    provider: str
    precision: str
    manifest: dict[str, Any]
    limits: Annotated[dict[str, int], Field(description="What one request may ask for.")]


class ModelsResponse(BaseModel):
    """What is loaded."""

    default: str
    models: list[ModelDescription]


class ProblemDocument(BaseModel):
    """RFC 9457 problem details: compare with `type`, show `detail` to people."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
