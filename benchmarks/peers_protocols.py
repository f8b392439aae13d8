"""Requests as bytes and answers as numbers, in each protocol that is measured."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.load_answers import HttpAnswer
from service.codecs.npy import encode_npy

Images = NDArray[np.uint8]  # [n, C, H, W]
Numbers = NDArray[np.float32]  # [n]
BINARY_LENGTH = "inference-header-content-length"


@dataclass(frozen=True)
class Protocol:
    """How images go in and log-likelihoods in nats come out."""

    name: str
    request: Callable[[Images], bytes]
    scores: Callable[[HttpAnswer], Numbers]


def http_request(path: str, body: bytes, content_type: str, **headers: str) -> bytes:
    """A complete request; `headers` with underscores for hyphens."""
    lines = [
        f"POST {path} HTTP/1.1",
        "host: 127.0.0.1",
        f"content-type: {content_type}",
        f"content-length: {len(body)}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def npy(path: str = "/v1/score?importance_samples=1") -> Protocol:
    """Arrays both ways."""

    def request(images: Images) -> bytes:
        body = encode_npy(images)
        return http_request(path, body, "application/x-npy", accept="application/x-npy")

    return Protocol("npy", request, lambda a: _floats(np.load(io.BytesIO(a.body))))


def json_png(path: str = "/v1/score") -> Protocol:
    """Base64 of a PNG an image, and all results as JSON."""

    def request(images: Images) -> bytes:
        pngs = [_base64(_png(image)) for image in images]
        body = json.dumps({"images": pngs, "importance_samples": 1}).encode()
        return http_request(path, body, "application/json", accept="application/json")

    def scores(answer: HttpAnswer) -> Numbers:
        results = json.loads(answer.body)["results"]
        return _floats([result["log_likelihood_nats"] for result in results])

    return Protocol("JSON, base64", request, scores)


def v2_binary(model: str, output: str, parameters: dict[str, Any]) -> Protocol:
    """Open Inference Protocol, tensors in binary both ways."""

    def request(images: Images) -> bytes:
        head: dict[str, Any] = {
            "inputs": [
                {
                    "name": "image",
                    "shape": images.shape,
                    "datatype": "UINT8",
                    "parameters": {"binary_data_size": images.nbytes},
                }
            ],
            "outputs": [{"name": output, "parameters": {"binary_data": True}}],
        }
        if parameters:
            head["parameters"] = parameters
        text = json.dumps(head).encode()
        body, size = text + images.tobytes(), {BINARY_LENGTH.replace("-", "_"): str(len(text))}
        path = f"/v2/models/{model}/infer"
        return http_request(path, body, "application/octet-stream", **size)

    def scores(answer: HttpAnswer) -> Numbers:
        size = answer.head.partition(f"\r\n{BINARY_LENGTH}:".encode())[2].split()[0]
        return np.frombuffer(answer.body[int(size) :], "<f4")

    return Protocol("v2 binary", request, scores)


def v2_base64(model: str) -> Protocol:
    """Open Inference Protocol as JSON, an image as the base64 of its bytes."""

    def request(images: Images) -> bytes:
        tensor = {
            "name": "image",
            "shape": [len(images), 1],
            "datatype": "BYTES",
            "parameters": {"content_type": "base64"},
            "data": [_base64(image.tobytes()) for image in images],
        }
        body = json.dumps({"inputs": [tensor]}).encode()
        return http_request(f"/v2/models/{model}/infer", body, "application/json")

    return Protocol(
        "v2 JSON, base64", request, lambda a: _floats(json.loads(a.body)["outputs"][0]["data"])
    )


def raw_bytes(path: str) -> Protocol:
    """Pixels in, float32 out."""

    def request(images: Images) -> bytes:
        return http_request(path, images.tobytes(), "application/octet-stream")

    return Protocol("bytes", request, lambda a: np.frombuffer(a.body, "<f4"))


def json_base64(path: str, *, one_text: bool) -> Protocol:
    """Base64 of the pixels in JSON: of all images together, or one text an image."""

    def request(images: Images) -> bytes:
        texts = [_base64(image.tobytes()) for image in images]
        body = {"images": _base64(images.tobytes()) if one_text else texts}
        return http_request(path, json.dumps(body).encode(), "application/json")

    def scores(answer: HttpAnswer) -> Numbers:
        found = json.loads(answer.body)
        return _floats(found["scores"] if isinstance(found, dict) else found)

    return Protocol("JSON, base64", request, scores)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _png(image: Images) -> bytes:
    out = io.BytesIO()
    planes = image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1)
    Image.fromarray(planes).save(out, "PNG")
    return out.getvalue()


def _floats(values: Any) -> Numbers:
    return np.asarray(values, np.float32).reshape(-1)
