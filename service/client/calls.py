"""What the clients send and how they read the answer, without sending anything."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from service.client.results import Computed, ScoreTable, score_table
from service.codecs import JSON, NPY, PNG
from service.codecs.npy import decode_npy, encode_npy, npy_header

__all__ = [
    "Call",
    "Output",
    "Pieces",
    "anomalies",
    "boxes",
    "computed",
    "described",
    "picture",
    "scores",
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
        params = {
            name: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
            for name, value in given.items()
            if value is not None  # an empty list is not the same as none
        }
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


def described(path: str) -> Call[dict[str, Any]]:
    """What the server says at `path`."""
    return Call(path=f"/v1/{path}", method="GET", read=lambda answer: dict(answer.json()))


def computed(operation: str, array: NDArray[Any] | None, **options: Any) -> Call[Computed]:
    """What an operation makes of `array`, as an array."""
    return Call(**_post(operation, array, options), accept=NPY, read=_read_computed)


def picture(operation: str, array: NDArray[Any] | None, **options: Any) -> Call[bytes]:
    """The same as one PNG."""
    return Call(**_post(operation, array, options), accept=PNG, read=lambda answer: answer.content)


def scores(images: NDArray[np.uint8], **options: Any) -> Call[ScoreTable]:
    """Log-likelihoods and p-values."""
    return Call(**_post("score", images, options), read=lambda answer: score_table(answer.json()))


def boxes(images: NDArray[np.uint8], **options: Any) -> Call[list[list[dict[str, Any]]]]:
    """The largest boxes of each image."""
    return Call(
        **_post("anomaly-map", images, options), read=lambda answer: list(answer.json()["results"])
    )


def anomalies(
    images: NDArray[np.uint8], **options: Any
) -> Call[tuple[NDArray[np.float32], list[list[dict[str, Any]]]]]:
    """The maps of images and the largest boxes of each."""

    def read(answer: httpx.Response) -> tuple[NDArray[np.float32], list[list[dict[str, Any]]]]:
        document = answer.json()
        npy = base64.b64decode(document["maps"])
        return decode_npy(npy, dtypes=("float32",), max_items=MAX_ITEMS), document["results"]

    return Call(**_post("anomaly-map", images, {"maps": "true"} | options), read=read)


def stream(**options: Any) -> Call[None]:
    """Draw images; the answer is read by `Pieces`."""
    return Call(**_post("sample", None, options), accept=NPY, streamed=True, read=lambda _: None)


def _post(operation: str, array: NDArray[Any] | None, options: dict[str, Any]) -> dict[str, Any]:
    body = None if array is None else encode_npy(array)
    return {"path": f"/v1/{operation}", "options": options, "body": body}


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
