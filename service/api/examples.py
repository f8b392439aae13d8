"""Examples for OpenAPI: bodies that can be sent as they stand, and answers as they look.

Pictures are small and real, in the shape of the model that is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from service.codecs.png import png_base64
from service.repository.registry import Registry

__all__ = ["Examples", "example_of"]

Json = Any


class Examples:
    """Values that fit the default model, or an MNIST-like one before it is loaded."""

    def __init__(self, registry: Registry) -> None:
        self.model, self.version, self.shape, self.dim = "mnist", "1.0.0", (1, 28, 28), 32
        if registry.ready:
            manifest = registry.find().runtime.manifest
            self.model, self.version = manifest.name, manifest.version
            self.shape, self.dim = manifest.image.shape, manifest.latent.dim
        _, height, width = self.shape
        self._pixels = np.zeros((1, *self.shape), np.uint8)
        self._pixels[..., height // 6 : -height // 6 or None, width // 2 - 1 : width // 2 + 1] = 255
        self.picture = png_base64(self._pixels)[0]

    def body(self, operation: str, schema: Mapping[str, Json]) -> dict[str, Json]:
        """A JSON body of `operation` that works as it stands."""
        if operation.startswith("infer"):
            return self._infer()
        options: dict[str, dict[str, Json]] = {
            "sample": {"n": 16, "seed": 0, "temperature": 1.0, "output": "mean"},
            "score": {"importance_samples": 16, "seed": 0},
            "interpolate": {"n": 8, "seeds": [7]},
        }
        body: dict[str, Json] = dict(options.get(operation, {}))
        properties = schema.get("properties", {})
        if "images" in properties:
            body["images"] = [self.picture]
        elif "latents" in properties:
            body["latents"] = [[0.0] * self.dim]
        return body

    def _infer(self) -> dict[str, Json]:
        image = {
            "name": "image",
            "datatype": "UINT8",
            "shape": [1, *self.shape],
            "data": self._pixels.reshape(-1).tolist(),
        }
        return {"id": "1", "parameters": {"importance_samples": 16}, "inputs": [image]}

    def path(self, path: str, parameter: str) -> str:
        """A value of a parameter in `path`."""
        if parameter == "version":
            return self.version
        return f"{self.model}.score" if path.startswith("/v2") else self.model


def example_of(schema: Mapping[str, Json], schemas: Mapping[str, Json]) -> Json:
    """A value of a JSON schema: its own example where it has one; `schemas` are the components."""
    if "$ref" in schema:
        return example_of(schemas[str(schema["$ref"]).rpartition("/")[2]], schemas)
    if "example" in schema:
        return schema["example"]
    for key in ("examples", "enum"):
        if key in schema:
            return schema[key][0]
    if "const" in schema:
        return schema["const"]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return example_of(schema[key][0], schemas)
    return _of_type(schema, schemas)


def _of_type(schema: Mapping[str, Json], schemas: Mapping[str, Json]) -> Json:
    kind = schema.get("type", "object")
    if kind == "object":
        return {k: example_of(v, schemas) for k, v in schema.get("properties", {}).items()}
    if kind == "array":
        return [example_of(schema["items"], schemas)] if schema.get("items") else []
    least = schema.get("minimum", 0)
    plain = {"string": "text", "integer": max(1, least), "number": max(0.5, least)}
    return plain.get(kind, True if kind == "boolean" else None)
