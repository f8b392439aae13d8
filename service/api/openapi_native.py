"""OpenAPI of ``/v1``'s operations, built from the same option and response models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.api.native import Operation
from service.api.openapi_examples import Examples
from service.api.request.deadline import TIMEOUT_HEADER
from service.api.request.negotiation import JSON, NPY, PNG, PROBLEM
from service.api.request.parsing import IMAGE_TYPES
from service.api.request.schemas import Options
from service.api.response.problems import TYPE_PREFIX
from service.api.response.schemas import (
    EncodeResponse,
    ImagesResponse,
    ProblemDocument,
    ScoreResponse,
)
from service.api.response.schemas import Response as JsonResponse
from service.errors import PROBLEMS

__all__ = ["HEADERS", "REF", "STATUSES", "native_operation", "problem", "response_of", "timeout"]

REF = "#/components/schemas/{model}"
RESPONSES: dict[str, type[JsonResponse]] = {"score": ScoreResponse, "encode": EncodeResponse}
STATUSES = (400, 401, 404, 406, 408, 413, 415, 422, 429, 500, 503, 504)
SUMMARIES = {
    "sample": "Draw images, or change some",
    "score": "Log-likelihood and p-value of images",
    "encode": "Latents of images",
    "decode": "Images of latents",
    "reconstruct": "Images through their latents and back",
    "interpolate": "Images between two images or seeds",
}
HEADERS = {
    "x-iafvae-model": "Model that answered",
    "x-iafvae-version": "Its version",
    "x-iafvae-bundle": "SHA-256 of its manifest",
    "x-iafvae-provider": "What computed it: cpu or cuda.",
    "x-iafvae-precision": "In which precision",
    "x-iafvae-queue-seconds": "Time that the request waited; of a stream, its first piece",
    "x-iafvae-compute-seconds": "Time that its batches took; of a stream, its first piece",
    "x-iafvae-seed": "Seed of the noise; absent where none was used",
    "x-iafvae-altered": "How many images were resized or converted; absent where none",
    "x-iafvae-non-finite": "How many results are no numbers; absent where none",
    "x-request-id": "The caller's, or a new one",
}
NUMBERS = {"type": "array", "items": {"type": "number"}}


def response_of(operation: Operation[Any]) -> type[JsonResponse]:
    """The model of an operation's answer in JSON."""
    return RESPONSES.get(operation.name, ImagesResponse)


def native_operation(operation: Operation[Any], examples: Examples) -> dict[str, Any]:
    """The operation object of ``POST /v1/{operation}``."""
    return {
        "operationId": operation.name,
        "summary": SUMMARIES[operation.name],
        "description": _prose(operation),
        "tags": ["operations on images"],
        "parameters": list(_parameters(operation.options)),
        "requestBody": {
            "required": operation.payload is not None and not operation.optional,
            "content": _request_content(operation, examples),
        },
        "responses": {
            "200": {
                "description": "Done",
                "headers": {
                    name: {"description": text, "schema": {"type": "string"}}
                    for name, text in HEADERS.items()
                },
                "content": _response_content(operation),
            },
            **{str(status): problem(status) for status in STATUSES},
        },
    }


def _prose(operation: Operation[Any]) -> str:
    lines = [" ".join((operation.handler.__doc__ or "").split())]
    if operation.payload == "images":
        lines.append(
            "Images: multipart `files`, base64 in JSON, one image file as the body, or npy uint8 "
            "`[n,H,W]`, `[n,C,H,W]` or `[n,H,W,C]`. EXIF orientation is applied, alpha is "
            "composited over black, 16-bit images are refused."
        )
    elif operation.payload is not None:
        lines.append(
            f"`{operation.payload}`: npy float32 `[n,D]`; in JSON lists of numbers, or the base64 "
            "of an npy file."
        )
    if operation.name == "sample":
        lines.append(
            "With `Accept: application/x-npy` more images than `max_n` are streamed while they are "
            "computed, up to `max_stream_n`. The length is stated: an answer that is shorter was "
            "broken off. The deadline is then of the first piece; later ones have the server's own."
        )
    lines.append(
        "With a JSON body options are its fields; with every other body they are query parameters "
        "(or form fields). Unknown ones are refused. Bodies may be compressed (`Content-Encoding`: "
        "gzip or deflate)."
    )
    return "\n\n".join(lines)


def _parameters(options: type[Options]) -> Iterator[dict[str, Any]]:
    for name, schema in options.model_json_schema()["properties"].items():
        yield {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.get("description", "") + " Not together with a JSON body.",
            "schema": _as_parameter(schema),
        }
    yield timeout()


def _as_parameter(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter that is null is one that is left out."""
    kept = {k: v for k, v in schema.items() if k not in ("description", "title")}
    kinds = [kind for kind in kept.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return kept
    del kept["anyOf"]
    kept.pop("default", None)
    kept.update(kinds[0])
    return kept


def timeout() -> dict[str, Any]:
    """The parameter object of the deadline."""
    return {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "required": False,
        "description": "After this many seconds the work is dropped and the answer is 504.",
        "schema": {"type": "number", "minimum": 0},
    }


def _request_content(operation: Operation[Any], examples: Examples) -> dict[str, Any]:
    payload = operation.payload
    schema: dict[str, Any] = {"$ref": REF.format(model=operation.options.__name__)}
    if payload is not None:
        schema = _with_payload(operation, payload)
    content: dict[str, Any] = {
        JSON: {"schema": schema, "example": examples.body(operation.name, payload)}
    }
    binary = {"type": "string", "format": "binary"}
    if payload is not None:
        content[NPY] = {"schema": binary}
    if payload == "images":
        files = {"type": "array", "items": binary}
        form = {"type": "object", "properties": {"files": files}, "required": ["files"]}
        content["multipart/form-data"] = {"schema": form}
        content |= {kind: {"schema": binary} for kind in IMAGE_TYPES}
    return content


def _with_payload(operation: Operation[Any], payload: str) -> dict[str, Any]:
    schema: dict[str, Any] = operation.options.model_json_schema(ref_template=REF)
    if payload == "images":
        given: dict[str, Any] = {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "contentEncoding": "base64"},
            "description": "PNG, JPEG or WebP files in base64.",
        }
    else:
        given = {
            "anyOf": [
                {"type": "array", "minItems": 1, "items": NUMBERS},
                {"type": "string", "contentEncoding": "base64"},
            ],
            "description": "[n, D]: lists of numbers, or the base64 of an npy file.",
        }
    schema["properties"] = {payload: given, **schema["properties"]}
    if not operation.optional:
        schema["required"] = [payload]
    return schema


def _response_content(operation: Operation[Any]) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    known = {JSON: {"schema": {"$ref": REF.format(model=response_of(operation).__name__)}}}
    assert {JSON, NPY, PNG}.issuperset(operation.offers)  # noqa: S101 - all that is described
    return {offer: known.get(offer, binary) for offer in operation.offers}


def problem(status: int) -> dict[str, Any]:
    """The response object of a problem document."""
    kinds = sorted({p.type for p in PROBLEMS.values() if p.status == status})
    titles = sorted({p.title for p in PROBLEMS.values() if p.status == status})
    return {
        "description": "; ".join(titles),
        "content": {
            PROBLEM: {
                "schema": {"$ref": REF.format(model=ProblemDocument.__name__)},
                "example": {
                    "type": TYPE_PREFIX + kinds[0],
                    "title": titles[0],
                    "status": status,
                    "detail": "what was wrong, and what to do",
                    "instance": "/v1/score",
                    "request_id": "4bf92f3577b34da6",
                },
            }
        },
    }
