"""OpenAPI of the hot routes, which are plain ASGI: built from the same option and response models.

Images in the examples are small and real, so that what `/docs` shows can be sent as it stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.codecs import png_base64
from service.errors import PROBLEMS
from service.exchange import TIMEOUT_HEADER, Operation
from service.intake import IMAGE_TYPES
from service.media import JSON, NPY, PNG, PROBLEM
from service.problems import TYPE_PREFIX
from service.registry import Registry
from service.schemas import (
    EncodeResponse,
    ImagesResponse,
    Options,
    ProblemDocument,
    Response,
    ScoreResponse,
)

__all__ = ["install_openapi"]

REF = "#/components/schemas/{model}"
RESPONSES: dict[str, type[Response]] = {"score": ScoreResponse, "encode": EncodeResponse}
STATUSES = (400, 404, 406, 408, 413, 415, 422, 429, 500, 503, 504)
SUMMARIES = {
    "sample": "Draw images",
    "score": "Log-likelihood and p-value of images",
    "encode": "Latents of images",
    "decode": "Images of latents",
    "reconstruct": "Images through their latents and back",
    "interpolate": "Images between two images",
}
HEADERS = {
    "x-iafvae-model": "Model that answered",
    "x-iafvae-version": "Its version",
    "x-iafvae-bundle": "SHA-256 of its manifest",
    "x-iafvae-provider": "What computed it: cpu or cuda",
    "x-iafvae-precision": "In which precision",
    "x-iafvae-queue-seconds": "Time that the request waited",
    "x-iafvae-compute-seconds": "Time that its batches took",
    "x-iafvae-seed": "Seed of the noise; absent where none was used",
    "x-iafvae-altered": "How many images were resized or converted; absent where none",
    "x-iafvae-non-finite": "How many results are no numbers; absent where none",
    "x-request-id": "The caller's, or a new one",
}
ITEM = {"images": {"type": "string", "contentEncoding": "base64"}, "latents": {"type": "array"}}


def install_openapi(
    app: FastAPI, operations: tuple[Operation[Any], ...], registry: Registry
) -> None:
    """Make ``app.openapi()`` describe `operations` as well; built once the models are loaded."""
    cached: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not cached:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                license_info={"name": "MIT", "identifier": "MIT"},
            )
            described = _describe(document, operations, _Examples(registry))
            if registry.ready:
                cached.update(described)
            return described
        return cached

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way


class _Examples:
    """Values that fit the default model, or an MNIST-like one before it is loaded."""

    def __init__(self, registry: Registry) -> None:
        channels, height, width, self._dim = 1, 28, 28, 32
        if registry.ready:
            manifest = registry.get(None).bundle.manifest
            channels, height, width = manifest.image.shape
            self._dim = manifest.latent.dim
        picture = np.zeros((1, channels, height, width), np.uint8)
        picture[..., height // 6 : -height // 6 or None, width // 2 - 1 : width // 2 + 1] = 255
        self._picture = png_base64(picture)[0]

    def body(self, operation: str, payload: str | None) -> dict[str, Any]:
        """A JSON body that works as it stands."""
        options: dict[str, dict[str, Any]] = {
            "sample": {"n": 16, "seed": 0, "temperature": 1.0, "output": "mean"},
            "score": {"importance_samples": 16, "seed": 0},
            "interpolate": {"n": 8},
        }
        body: dict[str, Any] = options.get(operation, {})
        if payload == "images":
            body["images"] = [self._picture] * (2 if operation == "interpolate" else 1)
        elif payload == "latents":
            body["latents"] = [[0.0] * self._dim]
        return body


def _describe(
    document: dict[str, Any], operations: tuple[Operation[Any], ...], examples: _Examples
) -> dict[str, Any]:
    models: list[type[BaseModel]] = [ProblemDocument]
    paths: dict[str, Any] = {}
    for operation in operations:
        response = RESPONSES.get(operation.name, ImagesResponse)
        models += [operation.options, response]
        paths[f"/v1/{operation.name}"] = {"post": _operation(operation, response, examples)}
    kinds = [(model, "validation") for model in dict.fromkeys(models)]
    _, schemas = models_json_schema(kinds, ref_template=REF)  # type: ignore[arg-type]
    document["paths"] = {**paths, **document["paths"]}
    components = document.setdefault("components", {}).setdefault("schemas", {})
    components.update(schemas["$defs"])
    _problems_everywhere(document)
    return document


def _operation(
    operation: Operation[Any], response: type[Response], examples: _Examples
) -> dict[str, Any]:
    return {
        "operationId": operation.name,
        "summary": SUMMARIES[operation.name],
        "description": _prose(operation),
        "tags": ["operations on images"],
        "parameters": list(_parameters(operation.options)),
        "requestBody": {
            "required": operation.payload is not None,
            "content": _request_content(operation, examples),
        },
        "responses": {
            "200": {
                "description": "Done",
                "headers": {
                    name: {"description": text, "schema": {"type": "string"}}
                    for name, text in HEADERS.items()
                },
                "content": _response_content(operation, response),
            },
            **{str(status): _problem(status) for status in STATUSES},
        },
    }


def _prose(operation: Operation[Any]) -> str:
    lines = [(operation.handler.__doc__ or "").strip()]
    if operation.payload == "images":
        lines.append(
            "Images: multipart `files`, base64 in JSON, one image file as the body, or npy uint8 "
            "`[n,H,W]`, `[n,C,H,W]` or `[n,H,W,C]`. EXIF orientation is applied, alpha is "
            "composited over black, 16-bit images are refused."
        )
    elif operation.payload == "latents":
        lines.append("Latents: npy float32 `[n,D]`, or lists in JSON.")
    lines.append(
        "With a JSON body options are its fields; with every other body they are query parameters "
        "(or form fields). Unknown ones are refused."
    )
    return "\n\n".join(lines)


def _parameters(options: type[Options]) -> Iterator[dict[str, Any]]:
    for name, schema in options.model_json_schema()["properties"].items():
        yield {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.get("description", "") + " Not together with a JSON body.",
            "schema": {k: v for k, v in schema.items() if k not in ("description", "title")},
        }
    yield {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "required": False,
        "description": "After this many seconds the work is dropped and the answer is 504.",
        "schema": {"type": "number", "minimum": 0},
    }


def _request_content(operation: Operation[Any], examples: _Examples) -> dict[str, Any]:
    payload = operation.payload
    reference = REF.format(model=operation.options.__name__)
    schema: dict[str, Any] = {"$ref": reference}
    if payload is not None:
        schema = _with_payload(operation.options, payload)
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


def _with_payload(options: type[Options], payload: str) -> dict[str, Any]:
    schema = options.model_json_schema(ref_template=REF)
    listed = {"type": "array", "minItems": 1, "items": dict(ITEM[payload])}
    if payload == "latents":
        listed["items"] = {"type": "array", "items": {"type": "number"}}
    schema["properties"] = {payload: listed, **schema["properties"]}
    schema["required"] = [payload]
    return schema


def _response_content(operation: Operation[Any], response: type[Response]) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    known = {JSON: {"schema": {"$ref": REF.format(model=response.__name__)}}}
    assert {JSON, NPY, PNG}.issuperset(operation.offers)  # noqa: S101 - all that is described
    return {offer: known.get(offer, binary) for offer in operation.offers}


def _problem(status: int) -> dict[str, Any]:
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


def _problems_everywhere(document: dict[str, Any]) -> None:
    """FastAPI documents its own validation error; here that is a problem document too."""
    for path in document["paths"].values():
        for operation in path.values():
            if "422" in operation["responses"]:
                operation["responses"]["422"] = _problem(422)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    get_model = document["paths"]["/v1/models/{name}"]["get"]
    get_model["responses"]["404"] = _problem(404)
