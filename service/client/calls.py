"""What the clients send and how they read the answer, without sending anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from service.client.results import Computed, ProblemError, ScoreTable, score_table
from service.codecs import JSON, NPY, PNG
from service.codecs.npy import decode_npy, encode_npy, npy_header

__all__ = [
    "Call",
    "Output",
    "Pieces",
    "anomaly_boxes",
    "anomaly_map",
    "anomaly_picture",
    "decode",
    "encode",
    "interpolate",
    "model",
    "models",
    "reconstruct",
    "refusal",
    "sample",
    "score",
    "sheet",
    "stream",
]

T = TypeVar("T")
Output = Literal["mean", "draw"]
MAX_ITEMS = 2**34  # of an answer: the server is trusted more than the other way round


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """A request, and what its answer is read as.

    streamed: the answer is read as it comes, and the whole of it may take any time.
    """

    path: str
    read: Callable[[httpx.Response], T]
    method: str = "POST"
    options: Mapping[str, Any] | None = None
    body: bytes | None = None
    accept: str = JSON
    streamed: bool = False

    def request(self, model: str | None, seconds: float) -> dict[str, Any]:
        """Arguments of httpx's ``request``; `seconds`: after them the answer is of no use."""
        given: dict[str, Any] = {"model": model, **(self.options or {})}
        params = {name: value for name, value in given.items() if value is not None}
        headers = {"accept": self.accept}
        if not self.streamed:
            headers["x-iafvae-timeout-seconds"] = f"{max(seconds, 0.001):.3f}"
        if self.body is not None:
            headers["content-type"] = NPY
        request: dict[str, Any] = {
            "method": self.method,
            "url": self.path,
            "headers": headers,
            "timeout": seconds,
        }
        return request | ({"params": params, "content": self.body} if self.method == "POST" else {})


def models() -> Call[dict[str, Any]]:
    """What is loaded."""
    return Call(path="/v1/models", read=_document, method="GET")


def model(name: str) -> Call[dict[str, Any]]:
    """One model with its manifest."""
    return Call(path=f"/v1/models/{name}", read=_document, method="GET")


def sample(
    n: int | None,
    *,
    seed: int | None,
    temperature: float | list[float],
    output: Output,
    prior_eps: NDArray[np.float32] | None,
    resample: list[str] | None,
    keep: list[str] | None,
) -> Call[Computed]:
    """Draw images."""
    body = None if prior_eps is None else encode_npy(np.asarray(prior_eps, np.float32))
    options = _drawing(n, seed, temperature, output)
    return _computed("sample", body, **options, resample=_list(resample), keep=_list(keep))


def stream(
    n: int, *, seed: int | None, temperature: float | list[float], output: Output
) -> Call[None]:
    """Draw images; the answer is read by `Pieces`."""
    options = _drawing(n, seed, temperature, output)
    return Call(path="/v1/sample", options=options, accept=NPY, streamed=True, read=_none)


def sheet(
    n: int, *, seed: int | None, temperature: float | list[float], output: Output
) -> Call[bytes]:
    """Draw images, as one PNG."""
    options = _drawing(n, seed, temperature, output)
    return Call(path="/v1/sample", options=options, accept=PNG, read=lambda answer: answer.content)


def decode(latents: NDArray[np.float32], *, output: Output, seed: int | None) -> Call[Computed]:
    """Images of latents."""
    body = encode_npy(np.asarray(latents, np.float32))
    return _computed("decode", body, output=output, seed=seed)


def encode(
    images: NDArray[np.uint8], *, seed: int | None, output: Literal["latents", "prior_eps"]
) -> Call[Computed]:
    """Latents of images."""
    return _computed("encode", encode_npy(images), seed=seed, output=output)


def reconstruct(images: NDArray[np.uint8], *, seed: int | None, output: Output) -> Call[Computed]:
    """Images through their latents and back."""
    return _computed("reconstruct", encode_npy(images), seed=seed, output=output)


def interpolate(
    images: NDArray[np.uint8] | None,
    n: int,
    *,
    seeds: tuple[int, ...],
    seed: int | None,
    output: Output,
) -> Call[Computed]:
    """From one image or seed to another."""
    body = None if images is None else encode_npy(images)
    ends = _list(seeds or None)
    return _computed("interpolate", body, n=n, seed=seed, output=output, seeds=ends)


def score(
    images: NDArray[np.uint8],
    *,
    importance_samples: int | None,
    seed: int | None,
    alpha: float | None,
    fdr: float | None,
) -> Call[ScoreTable]:
    """Log-likelihoods and p-values."""
    options: dict[str, Any] = {"importance_samples": importance_samples, "seed": seed}
    options |= {"alpha": alpha, "fdr": fdr}
    return Call(
        path="/v1/score",
        options=options,
        body=encode_npy(images),
        read=lambda answer: score_table(answer.json()),
    )


def anomaly_map(images: NDArray[np.uint8], *, seed: int | None) -> Call[Computed]:
    """Where images are unusual, as numbers."""
    return _computed("anomaly-map", encode_npy(images), seed=seed)


def anomaly_picture(images: NDArray[np.uint8], *, seed: int | None) -> Call[bytes]:
    """The same as one PNG."""
    return Call(
        path="/v1/anomaly-map",
        options={"seed": seed},
        body=encode_npy(images),
        accept=PNG,
        read=lambda answer: answer.content,
    )


def anomaly_boxes(
    images: NDArray[np.uint8], *, seed: int | None, boxes: int
) -> Call[list[list[dict[str, Any]]]]:
    """The largest boxes of each image."""
    return Call(
        path="/v1/anomaly-map",
        options={"seed": seed, "boxes": boxes},
        body=encode_npy(images),
        read=lambda answer: list(answer.json()["results"]),
    )


def refusal(answer: httpx.Response) -> ProblemError:
    """The error of an answer that is none of success."""
    try:
        document = answer.json()
    except ValueError:
        document = {"detail": answer.text[:500]}
    return ProblemError(document if isinstance(document, dict) else {}, answer.status_code)


class Pieces:
    """Whole images of a streamed npy file, as its bytes come in."""

    def __init__(self) -> None:
        self._held = b""
        self._shape: tuple[int, ...] | None = None

    def feed(self, chunk: bytes) -> NDArray[np.uint8] | None:
        """The images, uint8 [some, C, H, W], that are complete with `chunk`; None: no one is."""
        self._held += chunk
        if self._shape is None:
            held = self._held
            if len(held) < 10 or len(held) < 10 + int.from_bytes(held[8:10], "little"):
                return None
            header, start = npy_header(held)
            self._shape, self._held = header.shape[1:], held[start:]
        size = math.prod(self._shape)
        whole = len(self._held) // size
        if not whole:
            return None
        images = np.frombuffer(self._held, np.uint8, whole * size).reshape(whole, *self._shape)
        self._held = self._held[whole * size :]
        return images


def _drawing(
    n: int | None, seed: int | None, temperature: float | list[float], output: Output
) -> dict[str, Any]:
    return {"n": n, "seed": seed, "temperature": temperature, "output": output}


def _list(values: Sequence[object] | None) -> str | None:
    """A list in a query: an empty one is not the same as none."""
    return None if values is None else ",".join(map(str, values))


def _computed(operation: str, body: bytes | None, **options: Any) -> Call[Computed]:
    return Call(
        path=f"/v1/{operation}", options=options, body=body, accept=NPY, read=_read_computed
    )


def _none(_: httpx.Response) -> None:
    return None


def _document(answer: httpx.Response) -> dict[str, Any]:
    document: dict[str, Any] = answer.json()
    return document


def _read_computed(answer: httpx.Response) -> Computed:
    headers = answer.headers
    seed = headers.get("x-iafvae-seed")
    return Computed(
        array=decode_npy(answer.content, dtypes=("uint8", "float32"), max_items=MAX_ITEMS),
        model=headers["x-iafvae-model"],
        version=headers["x-iafvae-version"],
        bundle=headers["x-iafvae-bundle"],
        provider=headers["x-iafvae-provider"],
        seed=None if seed is None else int(seed),
        queue_seconds=float(headers["x-iafvae-queue-seconds"]),
        compute_seconds=float(headers["x-iafvae-compute-seconds"]),
    )
