"""OpenAPI of ``/v2``'s ``infer``, and what all of ``/v2`` answers with where it refuses."""

from __future__ import annotations

from typing import Any

from service.api.openapi_examples import Examples
from service.api.openapi_native import HEADERS, REF, timeout
from service.api.request.negotiation import JSON
from service.api.v2.infer import BINARY, HEADER_LENGTH
from service.api.v2.schemas import InferDocument, InferenceError, InferResult
from service.errors import PROBLEMS

__all__ = ["INFER_MODELS", "infer_paths", "inference_error"]

INFER_MODELS = (InferDocument, InferResult, InferenceError)
STATUSES = (400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504)
PROSE = """Every operation of a bundle is a model. `mnist.score`: input `image` UINT8 `[N,C,H,W]`; outputs
`log_likelihood_nats`, `elbo_nats`, `bits_per_dim`, `p_value` FP32 `[N]`; parameters `seed`, `importance_samples`.
`mnist.sample`: inputs `seed` INT64 `[N]`, one image a seed, and optionally `temperature` FP32 `[N]`; outputs `image`
UINT8 (the mean as pixels), `draw` UINT8, `mean` FP32. `mnist.encode`: `image` to `z` FP32 `[N,D]`; parameter `seed`.
`mnist.decode`: `z` to `mean`.

With the binary tensor data extension the body is JSON followed by the bytes of the tensors, in order, little-endian;
the header `Inference-Header-Content-Length` is then the length of the JSON. Bodies may be compressed with gzip or
deflate, and answers are where `Accept-Encoding` names one of them."""  # noqa: E501 - prose


def infer_paths(examples: Examples) -> dict[str, Any]:
    """Both paths of ``infer``."""
    return {
        "/v2/models/{model}/infer": {"post": _operation("infer", examples, versioned=False)},
        "/v2/models/{model}/versions/{version}/infer": {
            "post": _operation("infer_version", examples, versioned=True)
        },
    }


def _operation(name: str, examples: Examples, *, versioned: bool) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    document = {"schema": {"$ref": REF.format(model="InferDocument")}, "example": examples.infer()}
    headers = dict(HEADERS)
    for absent in ("seed", "altered", "non-finite"):
        headers.pop(f"x-iafvae-{absent}")
    headers[HEADER_LENGTH] = "Bytes of JSON before the tensors' bytes; absent where there are none"
    return {
        "operationId": name,
        "summary": "Compute, by the Open Inference Protocol",
        "description": PROSE.replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n\n"),
        "tags": ["Open Inference Protocol"],
        "parameters": [
            _path("model", examples.infer_model),
            *([_path("version", examples.version)] if versioned else []),
            timeout(),
            {
                "name": HEADER_LENGTH,
                "in": "header",
                "required": False,
                "description": "How many bytes of the body are JSON; absent: all.",
                "schema": {"type": "integer", "minimum": 0},
            },
        ],
        "requestBody": {"required": True, "content": {JSON: document, BINARY: binary}},
        "responses": {
            "200": {
                "description": "Done",
                "headers": {
                    name: {"description": text, "schema": {"type": "string"}}
                    for name, text in headers.items()
                },
                "content": {
                    JSON: {"schema": {"$ref": REF.format(model="InferResult")}},
                    BINARY: binary,
                },
            },
            **{str(status): inference_error(status) for status in STATUSES},
        },
    }


def _path(name: str, example: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": f"Such as {example}.",
        "schema": {"type": "string"},
        "example": example,
    }


def inference_error(status: int) -> dict[str, Any]:
    """The response object of an error."""
    titles = sorted({p.title for p in PROBLEMS.values() if p.status == status})
    return {
        "description": "; ".join(titles),
        "content": {
            JSON: {
                "schema": {"$ref": REF.format(model=InferenceError.__name__)},
                "example": {"error": "what was wrong, and what to do"},
            }
        },
    }
