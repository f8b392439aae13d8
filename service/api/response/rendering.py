"""Answers: results as JSON, npy or a PNG contact sheet. No function here knows HTTP.

Floats become JSON one by one only where people asked for JSON. What is not finite is null there,
with a status, and itself in npy.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from service.api.request.negotiation import JSON, NPY, PNG
from service.codecs.npy import contact_sheet, encode_npy, encode_png, png_base64

if TYPE_CHECKING:
    from service.operations.results import Images, Latents, LogLikelihoods, Scores, Timing

__all__ = [
    "Answer",
    "altered_notes",
    "images_answer",
    "latents_answer",
    "log_likelihoods_answer",
    "scores_answer",
]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A body and what the headers say beside the model's own. `non_finite` counts bad results.

    Of a streamed answer `body` is the first piece, `rest` gives the others, and `length` is that
    of all of them.
    """

    body: bytes
    media_type: str
    timing: Timing
    seed: int | None
    altered: int = 0
    non_finite: int = 0
    rest: AsyncGenerator[bytes, None] | None = None
    length: int | None = None


def images_answer(
    images: Images,
    media_type: str,
    fields: dict[str, Any],
    *,
    altered: NDArray[np.bool_] | None = None,
    columns: int | None = None,
) -> Answer:
    """`images` as `media_type`; JSON also holds `fields`, among them the seed."""
    pixels = images.images
    if media_type == NPY:
        body = encode_npy(pixels)
    elif media_type == PNG:
        body = encode_png(contact_sheet(pixels, columns=columns))
    else:
        document = {"images": png_base64(pixels), "shape": list(pixels.shape)}
        body = _json({**document, "status": _status(images.finite), **fields})
    return Answer(
        body=body,
        media_type=media_type,
        timing=images.timing,
        seed=fields["seed"],
        altered=0 if altered is None else int(altered.sum()),
        non_finite=int((~images.finite).sum()),
    )


def latents_answer(
    latents: Latents,
    media_type: str,
    fields: dict[str, Any],
    altered: NDArray[np.bool_],
    *,
    output: Literal["latents", "prior_eps"] = "latents",
) -> Answer:
    """Latents [n, D] or, as `output` says, their prior noise as npy; both as lists in JSON."""
    both = np.concatenate([latents.latents, latents.prior_eps], axis=1)
    finite = np.asarray(np.isfinite(both).all(axis=1))
    if media_type == NPY:
        body = encode_npy(getattr(latents, output))
    else:
        rows = {name: _lists(getattr(latents, name)) for name in ("latents", "prior_eps")}
        body = _json({**rows, "status": _status(finite), **fields})
    return Answer(
        body=body,
        media_type=media_type,
        timing=latents.timing,
        seed=fields["seed"],
        altered=int(altered.sum()),
        non_finite=int((~finite).sum()),
    )


def _lists(array: NDArray[np.float32]) -> list[list[float | None]]:
    values: list[list[float]] = array.astype(np.float64).tolist()
    if np.isfinite(array).all():
        return cast("list[list[float | None]]", values)
    return [[_finite(x) for x in row] for row in values]


def scores_answer(
    scores: Scores,
    fields: dict[str, Any],
    *,
    altered: NDArray[np.bool_],
    kl_groups: tuple[str, ...],
) -> Answer:
    """Scores as JSON."""
    values = scores.log_likelihood_nats
    return Answer(
        body=_json({"results": _results(scores, altered, kl_groups), **fields}),
        media_type=JSON,
        timing=scores.timing,
        seed=scores.seed,
        altered=int(altered.sum()),
        non_finite=_non_finite(values),
    )


def log_likelihoods_answer(values: LogLikelihoods, *, altered: NDArray[np.bool_]) -> Answer:
    """Log-likelihoods as npy float32 [n]."""
    return Answer(
        body=encode_npy(np.asarray(values.nats, np.float32)),
        media_type=NPY,
        timing=values.timing,
        seed=values.seed,
        altered=int(altered.sum()),
        non_finite=_non_finite(values.nats),
    )


def _non_finite(values: NDArray[np.float64]) -> int:
    return len(values) - int(np.isfinite(values).sum())


SCORE_FIELDS = (
    "log_likelihood_nats",
    "bits_per_dim",
    "elbo_nats",
    "standard_error_nats",
    "effective_sample_size",
    "p_value",
)


def _results(
    scores: Scores, altered: NDArray[np.bool_], kl_groups: tuple[str, ...]
) -> list[dict[str, Any]]:
    columns = [[_finite(x) for x in getattr(scores, name).tolist()] for name in SCORE_FIELDS]
    kls = scores.kl_nats.tolist()
    flags = zip(scores.anomalous.tolist(), scores.status, altered.tolist(), kls, strict=True)
    results = []
    for numbers, (anomalous, status, changed, kl) in zip(
        zip(*columns, strict=True), flags, strict=True
    ):
        result: dict[str, Any] = dict(zip(SCORE_FIELDS, numbers, strict=True))
        result["anomalous"] = anomalous
        result["status"] = status
        result["altered"] = changed
        result["kl_nats"] = {g: _finite(x) for g, x in zip(kl_groups, kl, strict=True)}
        results.append(result)
    return results


def altered_notes(altered: NDArray[np.bool_]) -> list[str]:
    """The note that an answer on altered images carries; empty where none was."""
    if not altered.any():
        return []
    places = np.flatnonzero(altered).tolist()
    which = ", ".join(map(str, places[:20])) + (", ..." if len(places) > 20 else "")
    note = (
        f"resized or converted before the model saw them: images {which}; their scores, p-values "
        "and latents are those of the altered images"
    )
    return [note]


def _status(finite: NDArray[np.bool_]) -> list[str]:
    return ["ok" if ok else "non_finite" for ok in finite.tolist()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _json(document: dict[str, Any]) -> bytes:
    return ENCODER.encode(document).encode("utf-8")


ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
# What each kind of answer can be made as, in the order of the server's preference.
IMAGE_OFFERS = (JSON, NPY, PNG)
NUMBER_OFFERS = (JSON, NPY)
