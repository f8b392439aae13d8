"""A typed client: arrays in, arrays out, over one kept-alive connection.

    with Client("http://127.0.0.1:8000") as client:
        drawn = client.sample(16, seed=0)          # .images uint8 [16, C, H, W]
        scores = client.score(drawn.images)        # .log_likelihood_nats float64 [16], ...

Arrays travel as npy; scores come as JSON, which holds all of their columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from service.codecs import decode_npy, encode_npy
from service.media import JSON, NPY, PNG

__all__ = ["Client", "Computed", "ProblemError", "ScoreTable", "ServiceUnreachable"]

Output = Literal["mean", "draw"]
MAX_ITEMS = 2**34  # of an answer: the server is trusted more than the other way round


class ServiceUnreachable(Exception):  # noqa: N818 - a state, as in the standard library
    """No server answers at the URL, or not in time."""


class ProblemError(Exception):
    """The server refused. Members are those of its problem document; compare with `type`."""

    def __init__(self, document: Mapping[str, Any], status: int) -> None:
        self.type = str(document.get("type", "about:blank")).rpartition(":")[2]
        self.title = str(document.get("title", f"HTTP {status}"))
        self.status = status
        self.detail = str(document.get("detail", ""))
        self.request_id = str(document.get("request_id", ""))
        self.document = dict(document)
        super().__init__(f"{self.title}: {self.detail}" if self.detail else self.title)


@dataclass(frozen=True, kw_only=True)
class Computed:
    """Images uint8 [n, C, H, W] or latents float32 [n, D], and who computed them."""

    array: NDArray[Any]
    model: str
    version: str
    bundle: str
    provider: str
    seed: int | None
    queue_seconds: float
    compute_seconds: float

    @property
    def images(self) -> NDArray[np.uint8]:
        """The array as pixels."""
        return self.array

    @property
    def latents(self) -> NDArray[np.float32]:
        """The array as latents."""
        return self.array


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores of n images, as columns; what is not known (or not finite) is NaN."""

    log_likelihood_nats: NDArray[np.float64]
    bits_per_dim: NDArray[np.float64]
    elbo_nats: NDArray[np.float64]
    standard_error_nats: NDArray[np.float64]
    effective_sample_size: NDArray[np.float64]
    p_value: NDArray[np.float64]
    anomalous: NDArray[np.bool_]
    altered: NDArray[np.bool_]
    status: list[str]
    estimator: str
    importance_samples: int
    seed: int
    alpha: float
    model: str
    version: str
    notes: list[str]

    def __len__(self) -> int:
        return len(self.status)


class Client:
    """A server at `base_url`. Use as a context manager, or call `close`.

    Every method raises ProblemError where the server refuses and ServiceUnreachable where none
    answers. `http` replaces the HTTP client (for tests, proxies, certificates).
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        model: str | None = None,
        timeout_seconds: float = 60.0,
        http: httpx.Client | None = None,
    ) -> None:
        self._model = model
        self._http = http or httpx.Client(base_url=base_url, timeout=timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def models(self) -> dict[str, Any]:
        """What is loaded: ``{"default": name, "models": [...]}``."""
        document: dict[str, Any] = self._checked("GET", "/v1/models").json()
        return document

    def model(self, name: str | None = None) -> dict[str, Any]:
        """One model with its manifest; by default this client's, or the server's default one."""
        wanted = name or self._model or self.models()["default"]
        document: dict[str, Any] = self._checked("GET", f"/v1/models/{wanted}").json()
        return document

    def sample(
        self,
        n: int = 1,
        *,
        seed: int | None = None,
        temperature: float | list[float] = 1.0,
        output: Output = "mean",
    ) -> Computed:
        """Draw `n` images. The seed in the answer draws them again."""
        options = {"n": n, "seed": seed, "temperature": temperature, "output": output}
        return self._computed("/v1/sample", None, options)

    def decode(
        self, latents: NDArray[np.float32], *, output: Output = "mean", seed: int | None = None
    ) -> Computed:
        """Images of `latents` float32 [n, D]."""
        body = encode_npy(np.asarray(latents, np.float32))
        return self._computed("/v1/decode", body, {"output": output, "seed": seed})

    def encode(self, images: NDArray[np.uint8], *, seed: int | None = None) -> Computed:
        """Latents float32 [n, D] of `images` uint8 [n, H, W] or [n, C, H, W]."""
        return self._computed("/v1/encode", encode_npy(images), {"seed": seed})

    def reconstruct(
        self, images: NDArray[np.uint8], *, seed: int | None = None, output: Output = "mean"
    ) -> Computed:
        """`images` through their latents and back."""
        options = {"seed": seed, "output": output}
        return self._computed("/v1/reconstruct", encode_npy(images), options)

    def interpolate(
        self,
        images: NDArray[np.uint8],
        n: int = 8,
        *,
        seed: int | None = None,
        output: Output = "mean",
    ) -> Computed:
        """`n` images from the first to the second of two `images`."""
        options = {"n": n, "seed": seed, "output": output}
        return self._computed("/v1/interpolate", encode_npy(images), options)

    def score(
        self,
        images: NDArray[np.uint8],
        *,
        importance_samples: int | None = None,
        seed: int | None = None,
        alpha: float | None = None,
    ) -> ScoreTable:
        """Log-likelihoods and p-values of `images` uint8 [n, H, W] or [n, C, H, W]."""
        options = {"importance_samples": importance_samples, "seed": seed, "alpha": alpha}
        answer = self._post("/v1/score", encode_npy(images), options, JSON)
        return _table(answer.json())

    def sheet(
        self,
        n: int = 64,
        *,
        seed: int | None = None,
        temperature: float | list[float] = 1.0,
        output: Output = "mean",
    ) -> bytes:
        """A PNG contact sheet of `n` drawn images."""
        options = {"n": n, "seed": seed, "temperature": temperature, "output": output}
        return self._post("/v1/sample", None, options, PNG).content

    def _computed(self, path: str, body: bytes | None, options: Mapping[str, Any]) -> Computed:
        answer = self._post(path, body, options, NPY)
        array = decode_npy(answer.content, dtypes=("uint8", "float32"), max_items=MAX_ITEMS)
        headers = answer.headers
        seed = headers.get("x-iafvae-seed")
        return Computed(
            array=array,
            model=headers["x-iafvae-model"],
            version=headers["x-iafvae-version"],
            bundle=headers["x-iafvae-bundle"],
            provider=headers["x-iafvae-provider"],
            seed=None if seed is None else int(seed),
            queue_seconds=float(headers["x-iafvae-queue-seconds"]),
            compute_seconds=float(headers["x-iafvae-compute-seconds"]),
        )

    def _post(
        self, path: str, body: bytes | None, options: Mapping[str, Any], accept: str
    ) -> httpx.Response:
        given = {"model": self._model, **options}
        params = {k: v for k, v in given.items() if v is not None}
        headers = {"accept": accept} | ({"content-type": NPY} if body is not None else {})
        return self._checked("POST", path, params=params, content=body, headers=headers)

    def _checked(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise ServiceUnreachable(
                f"no answer from {self._http.base_url} ({error}): is `iafvae serve` running there?"
            ) from error
        if answer.is_success:
            return answer
        try:
            document = answer.json()
        except ValueError:
            document = {"detail": answer.text[:500]}
        raise ProblemError(document if isinstance(document, dict) else {}, answer.status_code)


def _table(document: Mapping[str, Any]) -> ScoreTable:
    results = document["results"]

    def column(name: str) -> NDArray[np.float64]:
        return np.array([np.nan if r[name] is None else r[name] for r in results], np.float64)

    return ScoreTable(
        log_likelihood_nats=column("log_likelihood_nats"),
        bits_per_dim=column("bits_per_dim"),
        elbo_nats=column("elbo_nats"),
        standard_error_nats=column("standard_error_nats"),
        effective_sample_size=column("effective_sample_size"),
        p_value=column("p_value"),
        anomalous=np.array([r["anomalous"] for r in results], np.bool_),
        altered=np.array([r["altered"] for r in results], np.bool_),
        status=[r["status"] for r in results],
        estimator=document["estimator"],
        importance_samples=document["importance_samples"],
        seed=document["seed"],
        alpha=document["alpha"],
        model=document["model"],
        version=document["version"],
        notes=document["notes"],
    )
