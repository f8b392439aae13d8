"""Answers: results as JSON, npy or a PNG contact sheet.

Floats become JSON one by one only where people asked for JSON. What is not finite is null there,
with a status, and itself in npy.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from io import BytesIO
from itertools import chain, repeat
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from service.codecs import NPY, PNG
from service.codecs.fitting import Fitted
from service.codecs.json_numbers import ENCODER, number_list
from service.codecs.npy import encode_npy
from service.codecs.overlay import overlay
from service.codecs.png import contact_sheet, encode_png, png_base64
from service.operations.results import AnomalyMaps, Images, Latents, LogLikelihoods, Result, Scores

__all__ = [
    "Answer",
    "render_anomaly_maps",
    "render_images",
    "render_latents",
    "render_log_likelihoods",
    "render_scores",
]

BASE64_BYTES = 3 * 2**16  # at a time


class Answer(Response):
    """A response with the result that it shows, for its headers and the metrics.

    fitted: the images it is of, some of which may have been resized or converted; finite: which
    results are numbers. The route adds who computed it.
    """

    def __init__(
        self,
        body: bytes,
        media_type: str,
        result: Result,
        *,
        fitted: Fitted | None = None,
        finite: NDArray[np.bool_] | None = None,
        length: int | None = None,
    ) -> None:
        # Not `Response.__init__`, which makes and codes headers one by one.
        self.status_code, self.background, self.body = 200, None, body
        self.result = result
        self.non_finite = 0 if finite is None else len(finite) - int(np.count_nonzero(finite))
        self.raw_headers = [
            (b"content-type", media_type.encode("latin-1")),
            (b"content-length", b"%d" % (len(body) if length is None else length)),
            (b"x-iafvae-queue-seconds", b"%.6f" % result.queue_seconds),
            (b"x-iafvae-compute-seconds", b"%.6f" % result.compute_seconds),
        ]
        if result.seed is not None:
            self.raw_headers.append((b"x-iafvae-seed", b"%d" % result.seed))
        if fitted is not None and (altered := int(np.count_nonzero(fitted.altered))):
            self.raw_headers.append((b"x-iafvae-altered", b"%d" % altered))
        if self.non_finite:
            self.raw_headers.append((b"x-iafvae-non-finite", b"%d" % self.non_finite))


def render_images(
    result: Images, media_type: str, who: dict[str, Any], *, fitted: Fitted | None = None
) -> Answer:
    """Images as `media_type`; JSON also says `who` drew them and with which options."""
    pixels = result.images
    if media_type == NPY:
        body = encode_npy(pixels)
    elif media_type == PNG:
        body = encode_png(contact_sheet(pixels))
    else:
        document: dict[str, Any] = {"images": png_base64(pixels), "shape": pixels.shape}
        body = _json(document | {"status": _status(result.finite)}, result, who, fitted)
    return Answer(body, media_type, result, fitted=fitted, finite=result.finite)


def render_latents(
    result: Latents,
    media_type: str,
    who: dict[str, Any],
    *,
    fitted: Fitted,
    output: Literal["latents", "prior_eps"] = "latents",
) -> Answer:
    """Latents [n, D] or, as `output` says, their prior noise as npy; both as lists in JSON."""
    arrays = {name: getattr(result, name) for name in ("latents", "prior_eps")}
    finite = np.all([np.isfinite(array).all(axis=1) for array in arrays.values()], axis=0)
    if media_type == NPY:
        body = encode_npy(arrays[output])
    else:
        parts = {name: _list(map(number_list, array)) for name, array in arrays.items()}
        body = _json({"status": _status(finite)}, result, who, fitted, parts)
    return Answer(body, media_type, result, fitted=fitted, finite=finite)


def _json(
    document: dict[str, Any],
    result: Result,
    who: dict[str, Any],
    fitted: Fitted | None,
    parts: Mapping[str, Iterable[str]] = MappingProxyType({}),
) -> bytes:
    """A document; parts: of its first fields, long ones, as JSON already: what makes or copies all
    of one at once holds the interpreter until it returns."""
    notes = list(result.notes)
    if fitted is not None:
        notes[:0] = fitted.notes
        if fitted.altered.any():
            notes.insert(0, _altered_note(fitted.altered))
    body = BytesIO()
    body.write(b"{")
    for name, texts in parts.items():
        body.write(b'"%b":' % name.encode())
        for text in texts:
            body.write(text.encode())
        body.write(b",")
    body.write(ENCODER.encode(document | who | {"notes": notes, **result.resolved})[1:].encode())
    return body.getvalue()


def render_scores(
    result: Scores,
    media_type: str,
    who: dict[str, Any],
    *,
    fitted: Fitted,
    kl_groups: tuple[str, ...],
) -> Answer:
    """Scores as JSON."""
    results = _list(map(ENCODER.encode, _results(result, fitted.altered, kl_groups)))
    body = _json({}, result, who, fitted, {"results": results})
    finite = np.isfinite(result.log_likelihood_nats)
    return Answer(body, media_type, result, fitted=fitted, finite=finite)


def render_anomaly_maps(
    result: AnomalyMaps, media_type: str, who: dict[str, Any], *, fitted: Fitted, maps: bool = False
) -> Answer:
    """Deviations as npy float32 [n, H, W], over the images as PNG; the largest boxes as JSON, with
    the npy file in base64 where `maps` asks for it."""
    finite = np.asarray(np.isfinite(result.maps).all(axis=(1, 2)))
    if media_type == NPY:
        body = encode_npy(result.maps)
    elif media_type == PNG:
        body = encode_png(overlay(fitted.images, result.maps))
    else:
        parts: dict[str, Iterable[str]] = {"results": _list(map(ENCODER.encode, _boxes(result)))}
        if maps:
            parts["maps"] = _base64(encode_npy(result.maps))
        body = _json({}, result, who, fitted, parts)
    return Answer(body, media_type, result, fitted=fitted, finite=finite)


def _boxes(result: AnomalyMaps) -> list[list[dict[str, Any]]]:
    fields = [[asdict(box) for box in boxes] for boxes in result.boxes]
    for box in (each for boxes in fields for each in boxes):
        for name in ("deviations", "p_value"):
            box[name] = box[name] if math.isfinite(box[name]) else None
    return fields


def render_log_likelihoods(result: LogLikelihoods, *, fitted: Fitted) -> Answer:
    """Log-likelihoods as npy float32 [n]."""
    body = encode_npy(result.nats.astype(np.float32))
    return Answer(body, NPY, result, fitted=fitted, finite=np.isfinite(result.nats))


SCORE_FIELDS = (
    "log_likelihood_nats",
    "bits_per_dim",
    "elbo_nats",
    "standard_error_nats",
    "effective_sample_size",
    "p_value",
)
SCORE_COLUMNS = attrgetter(*SCORE_FIELDS)


def _results(
    scores: Scores, altered: NDArray[np.bool_], kl_groups: tuple[str, ...]
) -> list[dict[str, Any]]:
    numbers = [*SCORE_COLUMNS(scores), scores.kl_nats, *scores.evidence.values()]
    table = np.column_stack(numbers)
    rows = table.astype(object)
    rows[~np.isfinite(table)] = None  # JSON has no other number for them
    flags = zip(scores.anomalous, scores.discovery, scores.status, altered.tolist(), strict=True)
    kl, evidence = len(SCORE_FIELDS), len(SCORE_FIELDS) + len(kl_groups)
    results = []
    for values, (anomalous, discovery, status, changed) in zip(rows.tolist(), flags, strict=True):
        result: dict[str, Any] = dict(zip(SCORE_FIELDS, values, strict=False))
        result["anomalous"], result["discovery"] = anomalous, discovery
        result["status"], result["altered"] = status, changed
        result["kl_nats"] = dict(zip(kl_groups, values[kl:evidence], strict=True))
        result["evidence"] = dict(zip(scores.evidence, values[evidence:], strict=True))
        results.append(result)
    return results


def _altered_note(altered: NDArray[np.bool_]) -> str:
    places = np.flatnonzero(altered).tolist()
    which = ", ".join(map(str, places[:20])) + (", ..." if len(places) > 20 else "")
    return (
        f"resized or converted before the model saw them: images {which}; their scores, p-values "
        "and latents are those of the altered images"
    )


def _status(finite: NDArray[np.bool_]) -> list[str]:
    return ["ok" if ok else "non_finite" for ok in finite.tolist()]


def _list(items: Iterable[str]) -> list[str]:
    """The parts of a list of one item or more."""
    parts = ["[", *chain.from_iterable(zip(items, repeat(",")))]
    parts[-1] = "]"
    return parts


def _base64(data: bytes) -> Iterator[str]:
    yield '"'
    for start in range(0, len(data), BASE64_BYTES):
        yield b64encode(data[start : start + BASE64_BYTES]).decode("ascii")
    yield '"'
