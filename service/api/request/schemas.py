"""Options of ``/v1``: fields, bounds, units. Unknown fields are refused by name.

Options validate strictly as JSON (``"16"`` is no number) and leniently as text (query parameters
and form fields).
"""

from __future__ import annotations

import json
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
from pydantic_core import PydanticCustomError

from service.errors import InvalidInput
from service.operations.checks import MAX_SEED
from service.operations.model import Output

__all__ = [
    "MAX_COUNT",
    "WHOLE",
    "AnomalyMapOptions",
    "DecodeOptions",
    "EncodeOptions",
    "ImageOptions",
    "InterpolateOptions",
    "Options",
    "PosteriorOptions",
    "ReconstructOptions",
    "SampleOptions",
    "ScoreOptions",
    "parse_options",
]

MAX_EXACT = 2**53  # from it on a float may stand for another integer than was written
MAX_COUNT = 2**63 - 1  # a query may hold more digits than Python writes in an error


def _plain(value: object) -> object:
    """Refuse ``1_0``, which is 10 in Python alone."""
    if isinstance(value, str) and "_" in value:
        raise PydanticCustomError("underscore", "Input should be a number, without '_'")
    return value


def _whole(value: object) -> object:
    """4.0 is an integer in JSON (JSON Schema 2020-12, 6.1.1); some languages write all so."""
    if isinstance(value, float) and value.is_integer() and abs(value) < MAX_EXACT:
        return int(value)
    return _plain(value) if isinstance(value, str) else value


WHOLE, REAL = BeforeValidator(_whole), BeforeValidator(_plain)
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), WHOLE]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT), WHOLE]
Place = Annotated[int, Field(ge=0, le=MAX_COUNT), WHOLE]
Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False), REAL]
Share = Annotated[float, Field(gt=0, lt=1), REAL]
# Discriminated, so that errors speak of what was meant alone.
Temperatures = Annotated[
    Annotated[Temperature, Tag("number")] | Annotated[list[Temperature], Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list) else "number"),
]


def _split_commas(value: object) -> object:
    """As text a list is ``temperature=1,0.7``."""
    return value.split(",") if isinstance(value, str) and "," in value else value


def _listed(value: object) -> object:
    """The same for what is always a list: ``resample=z1`` names one group, ``resample=`` none."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_listed)]


class Options(BaseModel):
    """Fields that every operation has."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str | None = None
    """A loaded model, also as name@version; absent: the default one."""
    version: str | None = None
    """A loaded version of it; absent: the newest, or the pinned."""


class SampleOptions(Options):
    """``POST /v1/sample``"""

    n: Count | None = None
    """How many images; absent: 1, or one for each row of prior_eps."""
    seed: Seed | None = None
    """Absent: the server draws one and returns it."""
    resample: Names | None = None
    """Latent groups of prior_eps to draw anew; the others are kept."""
    keep: Names | None = None
    """Instead of resample: the groups that are not drawn anew."""
    temperature: Annotated[Temperatures, BeforeValidator(_split_commas)] = 1.0
    """Scale of the prior's noise: a number, or one per latent group."""
    output: Output = "mean"
    """The pixels' mean, or pixels drawn from their distribution."""


class DecodeOptions(Options):
    """``POST /v1/decode``"""

    seed: Seed | None = None
    """For output=draw; absent: drawn."""
    output: Output = "mean"
    """As in sample."""


class ImageOptions(Options):
    """Fields of every operation that takes images."""

    resize: bool = False
    """Resize images of another size; the answer says so."""
    convert: bool = False
    """Convert colour images to grey; the answer says so."""


class ScoreOptions(ImageOptions):
    """``POST /v1/score``"""

    importance_samples: Count | None = None
    """K of the importance-weighted bound; absent: the model's default."""
    seed: Seed | None = None
    """Absent: the model's default, 0."""
    alpha: Share | None = None
    """An image is anomalous if its p-value is at most alpha."""
    fdr: Share | None = None
    """Also say which images of this request are discoveries: at most about this share of them is
    false (Benjamini and Hochberg)."""
    altered: Annotated[list[Place], BeforeValidator(_listed)] = []
    """Places, from 0, of images that were resized or converted before they were sent: they are
    judged, and counted for drift, as those that are altered here."""


class AnomalyMapOptions(ImageOptions):
    """``POST /v1/anomaly-map``"""

    seed: Seed | None = None
    """Of a binary model's pixels; absent: the default, 0."""
    boxes: Annotated[int, Field(ge=0, le=16), WHOLE] = 3
    """How many of the largest boxes JSON lists."""
    maps: bool = False
    """JSON also has the maps, as the base64 of an npy file."""


class PosteriorOptions(ImageOptions):
    """Fields of every operation that encodes images."""

    seed: Seed | None = None
    """Absent: the posterior at eps = 0."""


class EncodeOptions(PosteriorOptions):
    """``POST /v1/encode``"""

    output: Literal["latents", "prior_eps"] = "latents"
    """Which of the two an npy answer holds; JSON holds both."""


class ReconstructOptions(PosteriorOptions):
    """``POST /v1/reconstruct``"""

    output: Output = "mean"
    """As in sample."""


class InterpolateOptions(ReconstructOptions):
    """``POST /v1/interpolate``"""

    n: Annotated[int, Field(ge=2, le=MAX_COUNT), WHOLE] = 8
    """Images from one end to the other, with both."""
    seeds: Annotated[list[Seed], BeforeValidator(_listed), Field(max_length=2)] = []
    """Ends that are no images: the first image that each of these seeds draws. Images come first,
    then seeds; together they are two."""


OptionsT = TypeVar("OptionsT", bound=Options)


def parse_options(kind: type[OptionsT], values: Mapping[str, Any], *, text: bool) -> OptionsT:
    """`values` as `kind`; `text` where they are strings of a query or form rather than JSON.

    Raises:
        InvalidInput: naming every field that is unknown or has a bad value.
    """
    try:
        return kind.model_validate(values, strict=not text)
    except ValidationError as error:
        lines = [_line(item, kind, text=text) for item in error.errors(include_url=False)]
        raise InvalidInput("; ".join(dict.fromkeys(lines))) from None


def _line(item: Any, kind: type[Options], *, text: bool) -> str:
    name = str(item["loc"][0] if item["loc"] else item["input"])  # of no place: a field's own
    if item["type"] == "extra_forbidden" or not item["loc"]:
        return f"there is no field {name[:60]!r}; known are {', '.join(kind.model_fields)}"
    given = repr(item["input"]) if text else json.dumps(item["input"], ensure_ascii=False)
    return f"{name}={given if len(given) <= 60 else given[:57] + '...'}: {item['msg']}"
