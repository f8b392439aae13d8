"""What the clients send and how they read the answer, without sending anything."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from service.client.results import Computed, score_table
from service.client.retries import no_service, unreachable
from service.codecs import JSON, NPY, PNG
from service.codecs.npy import decode_npy, encode_npy, npy_header
from service.errors import IafvaeError

__all__ = [
    "ANOMALIES",
    "BOXES",
    "COMPUTED",
    "MODEL",
    "MODELS",
    "PICTURE",
    "SCORES",
    "Call",
    "Form",
    "Output",
    "Pieces",
    "connected",
    "stream",
]

T = TypeVar("T")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
Output = Literal["mean", "draw"]
MAX_ITEMS = 2**34  # of an answer: the server is trusted more than the other way round
# What an answer that is none of ours comes to.
STRANGE = (AttributeError, IafvaeError, LookupError, TypeError, ValueError, RecursionError)
Boxes = list[list[dict[str, Any]]]  # the largest ones of each image


@dataclass(frozen=True)
class Form(Generic[T]):
    """The media type that is asked for, and what such an answer is read as."""

    accept: str
    read: Callable[[httpx.Response], T]


def connected(http: Http, base_url: str, key: str | None) -> Http:
    """`http`, which then asks `base_url` where it has none of its own, with `key`."""
    if not http.base_url.host:
        http.base_url = base_url
    if key:
        http.headers["authorization"] = f"Bearer {key}"
    return http


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request to ``/v1/{operation}``, whose body is `array`.

    streamed: the answer is read as it comes, and the whole of it may take any time.
    """

    operation: str
    form: Form[T]
    array: NDArray[Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    method: str = "POST"
    streamed: bool = False

    def request(self, model: str | None, seconds: float) -> dict[str, Any]:
        """Arguments of httpx's ``request``; `seconds`: after them the answer is of no use."""
        given: dict[str, Any] = {"model": model, **self.options}
        params = {
            name: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
            for name, value in given.items()
            if value is not None  # an empty list is not the same as none
        }
        headers = {"accept": self.form.accept}
        if not self.streamed:
            headers["x-iafvae-timeout-seconds"] = f"{max(seconds, 0.001):.3f}"
        request: dict[str, Any] = {"method": self.method, "url": f"/v1/{self.operation}"}
        if self.array is not None:
            headers["content-type"] = NPY
            request["content"] = encode_npy(self.array)
        if self.method == "POST":
            request["params"] = params
        return request | {"headers": headers, "timeout": seconds}

    def read(self, answer: httpx.Response, base_url: object) -> T:
        """What is in a successful answer. Raises ServiceUnreachable."""
        with self.reading(answer, base_url):
            return self.form.read(answer)

    @contextmanager
    def reading(self, answer: httpx.Response, base_url: object) -> Iterator[None]:
        """Raises ServiceUnreachable where what is read breaks off, or is not as the service
        answers."""
        if answer.headers.get("content-type", "").partition(";")[0] != self.form.accept:
            raise no_service(base_url, answer)
        try:
            yield
        except httpx.HTTPError as error:
            raise unreachable(base_url, error) from error
        except STRANGE as error:
            raise no_service(base_url, answer, error) from error


def stream(**options: Any) -> Call[None]:
    """Draw images; the answer is read by `Pieces`."""
    return Call("sample", Form(NPY, lambda _: None), options=options, streamed=True)


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
    names = ("model", "version", "bundle", "provider")
    who: dict[str, Any] = {name: headers[f"x-iafvae-{name}"] for name in names}
    return Computed(
        array=decode_npy(answer.content, dtypes=("uint8", "float32"), max_items=MAX_ITEMS),
        **who,
        seed=None if seed is None else int(seed),
        queue_seconds=float(headers["x-iafvae-queue-seconds"]),
        compute_seconds=float(headers["x-iafvae-compute-seconds"]),
    )


def _read_anomalies(answer: httpx.Response) -> tuple[NDArray[np.float32], Boxes]:
    document = answer.json()
    npy = base64.b64decode(document["maps"])
    return decode_npy(npy, dtypes=("float32",), max_items=MAX_ITEMS), document["results"]


def _document(*names: str) -> Form[dict[str, Any]]:
    """A JSON object with members `names`."""

    def read(answer: httpx.Response) -> dict[str, Any]:
        document = answer.json()
        return {**document, **{name: document[name] for name in names}}

    return Form(JSON, read)


MODELS = _document("default", "models")
MODEL = _document("manifest")
COMPUTED = Form(NPY, _read_computed)
PICTURE = Form(PNG, lambda answer: answer.content)
SCORES = Form(JSON, lambda answer: score_table(answer.json()))
BOXES: Form[Boxes] = Form(JSON, lambda answer: list(answer.json()["results"]))
ANOMALIES = Form(JSON, _read_anomalies)
