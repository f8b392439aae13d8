"""OpenAPI of all that is served: FastAPI's own routes, and the hot ones, which are plain ASGI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.native import Operation
from service.api.openapi_examples import Examples, example_of
from service.api.openapi_inference import INFER_MODELS, infer_paths, inference_error
from service.api.openapi_native import REF, native_operation, problem, response_of
from service.api.response.schemas import ProblemDocument
from service.api.security.auth import is_open
from service.repository.registry import Registry

__all__ = ["install_openapi"]

Document = dict[str, Any]


def install_openapi(
    app: FastAPI, operations: tuple[Operation[Any], ...], registry: Registry
) -> None:
    """Make ``app.openapi()`` describe `operations` as well, with examples that fit."""
    cached: dict[str, Document] = {}  # the examples fit the default model, which may change

    def openapi() -> Document:
        bundle = registry.find().runtime.bundle.hash if registry.ready else ""
        if bundle not in cached:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                license_info={"name": "MIT", "identifier": "MIT"},
            )
            cached.clear()
            cached[bundle] = _describe(document, operations, Examples(registry))
        return cached[bundle]

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way


def _describe(
    document: Document, operations: tuple[Operation[Any], ...], examples: Examples
) -> Document:
    native = {f"/v1/{o.name}": {"post": native_operation(o, examples)} for o in operations}
    document["paths"] = {**native, **infer_paths(examples), **document["paths"]}
    models: list[type[BaseModel]] = [ProblemDocument, *INFER_MODELS]
    for operation in operations:
        models += [operation.options, response_of(operation)]
    kinds = [(model, "validation") for model in dict.fromkeys(models)]
    _, schemas = models_json_schema(kinds, ref_template=REF)  # type: ignore[arg-type]
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas["$defs"])
    components["schemas"]["ImagesResponse"]["properties"]["images"]["examples"] = [
        [examples.picture]
    ]
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    _keys_and_errors(document)
    _fill_examples(document, examples)
    return document


def _operations(document: Document) -> Iterator[tuple[str, Document]]:
    for path, item in document["paths"].items():
        for operation in item.values():
            yield path, operation


def _keys_and_errors(document: Document) -> None:
    """FastAPI documents a validation error of its own; here errors are problems, or /v2's.

    A key is asked for where the server has some, and then 401 is possible too.
    """
    for path, operation in _operations(document):
        error = inference_error if path.startswith("/v2") else problem
        responses = operation["responses"]
        if "422" in responses:
            responses["422"] = error(422)
        if not is_open(path):
            operation["security"] = [{}, {"key": []}]
            responses.setdefault("401", error(401))
        responses.setdefault("500", error(500))
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _fill_examples(document: Document, examples: Examples) -> None:
    schemas = document["components"]["schemas"]
    for path, operation in _operations(document):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path" and "example" not in parameter:
                parameter["example"] = examples.path(path, parameter["name"])
        for response in operation["responses"].values():
            for kind, content in response.get("content", {}).items():
                if kind.endswith("json") and "example" not in content:
                    content["example"] = example_of(content.get("schema", {}), schemas)
