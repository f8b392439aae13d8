"""Options of ``/v1``: fields, bounds, units. Unknown fields are refused by name.

Options validate strictly as JSON (``"16"`` is no number) and leniently as text (query parameters
and form fields).
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
    "AnomalyMapOptions",
    "DecodeOptions",
    "EncodeOptions",
    "ImageOptions",
    "InterpolateOptions",
    "Options",
    "Output",
    "PosteriorOptions",
    "ReconstructOptions",
    "SampleOptions",
    "ScoreOptions",
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


def _listed(value: object) -> object:
    """The same for what is always a list: ``resample=z1`` names one group, ``resample=`` none."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_listed)]


class Options(BaseModel):
    """Fields that every operation has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[
        str | None,
        Field(description="A loaded model, also as name@version; absent: the default one."),
    ] = None
    version: Annotated[
        str | None, Field(description="A loaded version of it; absent: the newest, or the pinned.")
    ] = None


class SampleOptions(Options):
    """``POST /v1/sample``"""

    n: Annotated[
        int | None,
        Field(ge=1, description="How many images; absent: 1, or one for each row of prior_eps."),
    ] = None
    seed: Annotated[
        Seed | None, Field(description="Absent: the server draws one and returns it.")
    ] = None
    resample: Annotated[
        Names | None,
        Field(description="Latent groups of prior_eps to draw anew; the others are kept."),
    ] = None
    keep: Annotated[
        Names | None, Field(description="Instead of resample: the groups that are not drawn anew.")
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
    fdr: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="Also say which images of this request are discoveries: at most about this "
            "share of them is false (Benjamini and Hochberg).",
        ),
    ] = None


class AnomalyMapOptions(ImageOptions):
    """``POST /v1/anomaly-map``"""

    seed: Annotated[
        Seed | None, Field(description="Of a binary model's pixels; absent: the default, 0.")
    ] = None
    boxes: Annotated[
        int, Field(ge=0, le=16, description="How many of the largest boxes JSON lists.")
    ] = 3


class PosteriorOptions(ImageOptions):
    """Fields of every operation that encodes images."""

    seed: Annotated[Seed | None, Field(description="Absent: the posterior at eps = 0.")] = None


class EncodeOptions(PosteriorOptions):
    """``POST /v1/encode``"""

    output: Annotated[
        Literal["latents", "prior_eps"],
        Field(description="Which of the two an npy answer holds; JSON holds both."),
    ] = "latents"


class ReconstructOptions(PosteriorOptions):
    """``POST /v1/reconstruct``"""

    output: Annotated[Output, Field(description="As in sample.")] = "mean"


class InterpolateOptions(ReconstructOptions):
    """``POST /v1/interpolate``"""

    n: Annotated[int, Field(ge=2, description="Images from one end to the other, with both.")] = 8
    seeds: Annotated[
        list[Seed],
        BeforeValidator(_listed),
        Field(
            max_length=2,
            description="Ends that are no images: the first image that each of these seeds draws. "
            "Images come first, then seeds; together they are two.",
        ),
    ] = []


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
    name = str(item["loc"][0] if item["loc"] else item["input"])  # of no place: a field's own
    if item["type"] == "extra_forbidden" or not item["loc"]:
        return f"there is no field {name[:60]!r}; known are {', '.join(kind.model_fields)}"
    given = repr(item["input"])
    return f"{name}={given if len(given) <= 60 else given[:57] + '...'}: {item['msg']}"
