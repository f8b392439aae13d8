"""What OpenAPI says of operations that FastAPI cannot see: bodies, media types, headers, errors.

Options, answers in JSON and paths are declared by the routes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.api.request.limits import TIMEOUT_HEADER
from service.api.request.negotiation import PROBLEM
from service.api.response.problems import PROBLEMS, TYPE_PREFIX
from service.api.response.schemas import ProblemDocument
from service.api.security.auth import is_open
from service.api.v2.schemas import InferDocument, InferenceError
from service.codecs import IMAGE_TYPES, JSON, NPY
from service.codecs.png import png_base64
from service.repository.registry import Registry

__all__ = [
    "BINARY_CONTENT",
    "HEADERS",
    "REF",
    "described_headers",
    "documented",
    "documented_operation",
    "inference_error",
    "install_openapi",
    "timeout_parameter",
]

Document = dict[str, Any]
REF = "#/components/schemas/{model}"
STATUSES = (400, 401, 404, 406, 408, 413, 415, 422, 429, 500, 503, 504)
BINARY_CONTENT: Document = {"schema": {"type": "string", "format": "binary"}}
HEADERS = {
    "x-iafvae-model": "Model that answered",
    "x-iafvae-version": "Its version",
    "x-iafvae-bundle": "SHA-256 of its manifest",
    "x-iafvae-provider": "What computed it: cpu or cuda.",
    "x-iafvae-precision": "In which precision",
    "x-iafvae-queue-seconds": "Time that the request waited; of a stream, its first piece",
    "x-iafvae-compute-seconds": "Time that its batches took; of a stream, its first piece",
    "x-iafvae-seed": "Seed of the noise, given or drawn; absent where none was",
    "x-iafvae-altered": "How many images were resized or converted; absent where none",
    "x-iafvae-non-finite": "How many results are no numbers; absent where none",
    "x-request-id": "The caller's, or a new one",
}
IMAGES_PROSE = (
    "Images: multipart `files`, base64 in JSON, one image file as the body, or npy uint8 "
    "`[n,H,W]`, `[n,C,H,W]` or `[n,H,W,C]`. EXIF orientation is applied, alpha is composited over "
    "black, 16-bit images are refused."
)
LATENTS_PROSE = (
    "`{payload}`: npy float32 `[n,D]`; in JSON lists of numbers, or the base64 of an npy file."
)
STREAM_PROSE = (
    "With `Accept: application/x-npy` more images than `max_n` are streamed while they are "
    "computed, up to `max_stream_n`. The length is stated: an answer that is shorter was broken "
    "off. The deadline is then of the first piece; later ones have the server's own."
)
OPTIONS: dict[str, Document] = {  # of examples
    "sample": {"n": 16, "seed": 0, "temperature": 1.0, "output": "mean"},
    "score": {"importance_samples": 16, "seed": 0},
    "interpolate": {"n": 8, "seeds": [7]},
}
OPTIONS_PROSE = (
    "With a JSON body options are its fields; with every other body they are query parameters (or "
    "form fields). Unknown ones are refused. Bodies may be compressed (`Content-Encoding`: gzip or "
    "deflate)."
)


def documented(*statuses: int) -> dict[int | str, Document]:
    """The argument `responses` of a route that may answer with problems of these statuses."""
    return {status: _problem(status) for status in statuses}


def documented_operation(
    endpoint: Callable[..., object],
    summary: str,
    options: type[BaseModel],
    response: type[BaseModel],
    offers: tuple[str, ...],
    *,
    payload: str,
    optional: bool = False,
) -> Document:
    """What a route of ``/v1`` declares: arguments of `APIRoute`."""
    prose = [" ".join((endpoint.__doc__ or "").split())]
    prose.append(IMAGES_PROSE if payload == "images" else LATENTS_PROSE.format(payload=payload))
    if endpoint.__name__ == "sample":
        prose.append(STREAM_PROSE)
    others = {offer: BINARY_CONTENT for offer in offers if offer != JSON}
    return {
        "tags": ["operations on images"],
        "operation_id": endpoint.__name__,
        "summary": summary,
        "description": "\n\n".join((*prose, OPTIONS_PROSE)),
        "response_model": response,
        "responses": {
            200: {"description": "Done", "headers": described_headers(HEADERS), "content": others},
            **documented(*STATUSES),
        },
        "openapi_extra": {
            "parameters": [timeout_parameter()],
            "requestBody": {
                "required": not optional,
                "content": _request_content(options, payload, optional),
            },
        },
    }


def described_headers(headers: dict[str, str]) -> Document:
    """Header objects of names and what they say."""
    return {
        name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()
    }


def timeout_parameter() -> Document:
    """The parameter object of the deadline."""
    return {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "required": False,
        "description": "After this many seconds the work is dropped and the answer is 504.",
        "schema": {"type": "number", "minimum": 0},
    }


def _request_content(options: type[BaseModel], payload: str, optional: bool) -> Document:
    schema: Document = options.model_json_schema(ref_template=REF)
    schema["title"] = options.__name__.replace("Options", "Request")
    content: Document = {JSON: {"schema": schema}, NPY: BINARY_CONTENT}
    text = {"type": "string", "contentEncoding": "base64"}
    field: Document = {"type": "array", "minItems": 1}
    if payload == "images":
        field |= {"items": text, "description": "PNG, JPEG or WebP files in base64."}
        files = {"type": "array", "items": BINARY_CONTENT["schema"]}
        form = {"type": "object", "properties": {"files": files}, "required": ["files"]}
        content["multipart/form-data"] = {"schema": form}
        content |= dict.fromkeys(IMAGE_TYPES, BINARY_CONTENT)
    else:
        field["items"] = {"type": "array", "items": {"type": "number"}}
        described = "[n, D]: lists of numbers, or the base64 of an npy file."
        field = {"anyOf": [field, text], "description": described}
    schema["properties"] = {payload: field, **schema["properties"]}
    if not optional:
        schema["required"] = [payload]
    return content


def _problem(status: int) -> Document:
    """The response object of a problem document."""
    problems = [problem for problem in PROBLEMS.values() if problem.status == status]
    example = {
        "type": TYPE_PREFIX + min(problem.type for problem in problems),
        "title": min(problem.title for problem in problems),
        "status": status,
        "detail": "what was wrong, and what to do",
        "instance": "/v1/score",
        "request_id": "4bf92f3577b34da6",
    }
    schema = {"$ref": REF.format(model=ProblemDocument.__name__)}
    return _error(status, PROBLEM, schema, example)


def inference_error(status: int) -> Document:
    """The response object of an error of ``/v2``."""
    schema = {"$ref": REF.format(model=InferenceError.__name__)}
    return _error(status, JSON, schema, {"error": "what was wrong, and what to do"})


def _error(status: int, kind: str, schema: Document, example: Document) -> Document:
    titles = sorted({problem.title for problem in PROBLEMS.values() if problem.status == status})
    content = {kind: {"schema": schema, "example": example}}
    return {"description": "; ".join(titles), "content": content}


def install_openapi(app: FastAPI, registry: Registry) -> None:
    """Make ``app.openapi()`` say what is true of every route, with examples that can be sent."""
    cached: dict[str, Document] = {}  # the examples fit the default model, which may change
    lock = threading.Lock()  # FastAPI fails where two threads make the first one

    def openapi() -> Document:
        with lock:
            bundle = registry.find().runtime.bundle.hash if registry.ready else ""
            if bundle not in cached:
                document = get_openapi(
                    title=app.title,
                    version=app.version,
                    description=app.description,
                    routes=app.routes,
                    license_info={"name": "MIT", "identifier": "MIT"},
                )
                _complete(document)
                _fill_examples(document, registry)
                cached.clear()
                cached[bundle] = document
            return cached[bundle]

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way


def _operations(document: Document) -> Iterator[tuple[str, Document]]:
    for path, item in document["paths"].items():
        for operation in item.values():
            yield path, operation


def _complete(document: Document) -> None:
    """FastAPI documents a validation error of its own; here errors are problems, or /v2's.

    A key is asked for where the server has some, and then 401 is possible too.
    """
    schemas = document["components"]["schemas"]
    for model in (ProblemDocument, InferenceError, InferDocument):
        schema = model.model_json_schema(ref_template=REF)
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    for path, operation in _operations(document):
        error = inference_error if path.startswith("/v2") else _problem
        responses = operation["responses"]
        if "422" in responses:
            responses["422"] = error(422)
        if not is_open(path):
            operation["security"] = [{}, {"key": []}]
            responses.setdefault("401", error(401))
        responses.setdefault("500", error(500))
        for parameter in operation.get("parameters", ()):
            schema = parameter["schema"] = _without_null(parameter["schema"])
            if parameter["in"] == "query" and "requestBody" in operation:
                text = f"{parameter['description']} Not with a JSON body."
                if "default" in schema:  # in words, for generated clients send what is declared
                    text += f" Default {json.dumps(schema.pop('default'))}."
                parameter["description"] = text
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    _widen(document)


def _widen(node: Any) -> None:
    """Integers have 64 bits: without a format Go, Java and C# take 32, too few for a seed."""
    if isinstance(node, dict):
        if node.get("type") == "integer":
            node.setdefault("format", "int64")
        for value in node.values():
            _widen(value)
    elif isinstance(node, list):
        for value in node:
            _widen(value)


def _without_null(schema: Document) -> Document:
    """A parameter that is null is one that is left out."""
    kept = {k: v for k, v in schema.items() if k not in ("description", "title")}
    kinds = [kind for kind in kept.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return kept
    del kept["anyOf"]
    kept.pop("default", None)
    kept.update(kinds[0])
    return kept


def _fill_examples(document: Document, registry: Registry) -> None:
    """Bodies that can be sent as they stand, and answers as they look.

    They fit the default model (before it is loaded, one like MNIST's); pictures are small and real.
    """
    schemas = document["components"]["schemas"]
    model, version, shape, dim = "mnist", "1.0.0", (1, 28, 28), 32
    if registry.ready:
        manifest = registry.find().runtime.manifest
        model, version = manifest.name, manifest.version
        shape, dim = manifest.image.shape, manifest.latent.dim
    _, height, width = shape
    pixels = np.zeros((1, *shape), np.uint8)  # with a vertical line
    pixels[..., height // 6 : -height // 6 or None, width // 2 - 1 : width // 2 + 1] = 255
    payloads: Document = {"images": png_base64(pixels), "latents": [[0.0] * dim]}
    image = {"datatype": "UINT8", "shape": pixels.shape, "data": pixels.ravel().tolist()}
    inputs = [{"name": "image", **image}]
    infer = {"id": "1", "parameters": {"importance_samples": 16}, "inputs": inputs}
    schemas["ImagesResponse"]["properties"]["images"]["examples"] = [payloads["images"]]
    for path, operation in _operations(document):
        if "requestBody" in operation:
            content, name = operation["requestBody"]["content"][JSON], operation["operationId"]
            taken = content["schema"].get("properties", {})
            body = OPTIONS.get(name, {}) | {k: v for k, v in payloads.items() if k in taken}
            content["example"] = infer if name.startswith("infer") else body
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path" and "example" not in parameter:
                named = f"{model}.score" if path.startswith("/v2") else model
                parameter["example"] = version if parameter["name"] == "version" else named
        for response in operation["responses"].values():
            for kind, content in response.get("content", {}).items():
                if kind.endswith("json") and "example" not in content:
                    content["example"] = _example_of(content.get("schema", {}), schemas)


def _example_of(schema: Document, schemas: Document) -> Any:
    """A value of a JSON schema: its own example where it has one; `schemas` are the components."""
    if "$ref" in schema:
        return _example_of(schemas[str(schema["$ref"]).rpartition("/")[2]], schemas)
    for key in ("examples", "enum"):
        if key in schema:
            return schema[key][0]
    if "anyOf" in schema:
        return _example_of(schema["anyOf"][0], schemas)
    kind = schema.get("type", "object")
    if kind == "object":
        return {k: _example_of(v, schemas) for k, v in schema.get("properties", {}).items()}
    if kind == "array":
        return [_example_of(schema["items"], schemas)] if schema.get("items") else []
    least = schema.get("minimum", 0)
    plain = {"string": "text", "integer": max(1, least), "number": max(0.5, least)}
    return {**plain, "boolean": True}.get(kind)
