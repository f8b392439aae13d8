"""A typed client: arrays in, arrays out, over one kept-alive connection.

    with Client("http://127.0.0.1:8000") as client:
        drawn = client.sample(16, seed=0)          # .images uint8 [16, C, H, W]
        scores = client.score(drawn.images)        # .log_likelihood_nats float64 [16], ...

Arrays travel as npy; scores come as JSON, which holds all of their columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from service.api.request.negotiation import JSON, NPY, PNG
from service.client.results import (
    Computed,
    ProblemError,
    ScoreTable,
    ServiceUnreachable,
    score_table,
)
from service.codecs.npy import decode_npy, encode_npy, npy_header

__all__ = ["Client", "Computed", "ProblemError", "ScoreTable", "ServiceUnreachable"]

Output = Literal["mean", "draw"]
MAX_ITEMS = 2**34  # of an answer: the server is trusted more than the other way round


class Client:
    """A server at `base_url`. Use as a context manager, or call `close`.

    Every method raises ProblemError where the server refuses and ServiceUnreachable where none
    answers. `key` is sent where the server wants one. `http` replaces the HTTP client (for tests,
    proxies, certificates).
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        model: str | None = None,
        key: str | None = None,
        timeout_seconds: float = 60.0,
        http: httpx.Client | None = None,
    ) -> None:
        self._model = model
        headers = {"authorization": f"Bearer {key}"} if key else None
        self._http = http or httpx.Client(
            base_url=base_url, timeout=timeout_seconds, headers=headers
        )

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
        n: int | None = None,
        *,
        seed: int | None = None,
        temperature: float | list[float] = 1.0,
        output: Output = "mean",
        prior_eps: NDArray[np.float32] | None = None,
        resample: list[str] | None = None,
        keep: list[str] | None = None,
    ) -> Computed:
        """Draw `n` images (default 1). The seed in the answer draws them again.

        prior_eps: float32 [n, D] or [1, D], as `encode` gives it: draw from it instead, with the
        latent groups to `resample` (or all but those to `keep`) drawn anew.
        """
        options = _drawing(n, seed, temperature, output) | {"resample": _list(resample)}
        options["keep"] = _list(keep)
        return self._computed("/v1/sample", _npy(prior_eps), options)

    def stream(
        self,
        n: int,
        *,
        seed: int | None = None,
        temperature: float | list[float] = 1.0,
        output: Output = "mean",
    ) -> Iterator[NDArray[np.uint8]]:
        """Draw `n` images piece by piece: arrays uint8 [some, C, H, W], while the server computes.

        Any n up to the server's max_stream_n; memory stays flat on both sides.
        """
        request = self._request(None, _drawing(n, seed, temperature, output), NPY)
        with self._errors(), self._http.stream("POST", "/v1/sample", **request) as answer:
            if not answer.is_success:
                answer.read()
                raise _refusal(answer)
            yield from _pieces(answer.iter_bytes())

    def decode(
        self, latents: NDArray[np.float32], *, output: Output = "mean", seed: int | None = None
    ) -> Computed:
        """Images of `latents` float32 [n, D]."""
        body = encode_npy(np.asarray(latents, np.float32))
        return self._computed("/v1/decode", body, {"output": output, "seed": seed})

    def encode(
        self,
        images: NDArray[np.uint8],
        *,
        seed: int | None = None,
        output: Literal["latents", "prior_eps"] = "latents",
    ) -> Computed:
        """Latents float32 [n, D] of `images` uint8 [n, H, W] or [n, C, H, W], or their prior_eps:
        the prior's noise that gives them, for `sample`."""
        options = {"seed": seed, "output": output}
        return self._computed("/v1/encode", encode_npy(images), options)

    def reconstruct(
        self, images: NDArray[np.uint8], *, seed: int | None = None, output: Output = "mean"
    ) -> Computed:
        """`images` through their latents and back."""
        options = {"seed": seed, "output": output}
        return self._computed("/v1/reconstruct", encode_npy(images), options)

    def interpolate(
        self,
        images: NDArray[np.uint8] | None = None,
        n: int = 8,
        *,
        seeds: tuple[int, ...] = (),
        seed: int | None = None,
        output: Output = "mean",
    ) -> Computed:
        """`n` images from one end to the other: of `images`, then of `seeds`, two together."""
        options = {"n": n, "seed": seed, "output": output, "seeds": _list(seeds or None)}
        body = None if images is None else encode_npy(images)
        return self._computed("/v1/interpolate", body, options)

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
        return score_table(answer.json())

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
        return self._checked("POST", path, **self._request(body, options, accept))

    def _request(
        self, body: bytes | None, options: Mapping[str, Any], accept: str
    ) -> dict[str, Any]:
        given: dict[str, Any] = {"model": self._model, **options}
        params = {k: v for k, v in given.items() if v is not None}
        headers = {"accept": accept} | ({"content-type": NPY} if body is not None else {})
        return {"params": params, "content": body, "headers": headers}

    def _checked(self, method: str, path: str, **request: Any) -> httpx.Response:
        with self._errors():
            answer = self._http.request(method, path, **request)
        if answer.is_success:
            return answer
        raise _refusal(answer)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.RemoteProtocolError as error:
            raise ServiceUnreachable(
                f"{self._http.base_url} broke its answer off ({error}): its log says why"
            ) from error
        except httpx.HTTPError as error:
            raise ServiceUnreachable(
                f"no answer from {self._http.base_url} ({error}): is `iafvae serve` running there?"
            ) from error


def _refusal(answer: httpx.Response) -> ProblemError:
    try:
        document = answer.json()
    except ValueError:
        document = {"detail": answer.text[:500]}
    return ProblemError(document if isinstance(document, dict) else {}, answer.status_code)


def _drawing(
    n: int | None, seed: int | None, temperature: float | list[float], output: Output
) -> dict[str, Any]:
    return {"n": n, "seed": seed, "temperature": temperature, "output": output}


def _list(values: Sequence[object] | None) -> str | None:
    """A list in a query: an empty one is not the same as none."""
    return None if values is None else ",".join(map(str, values))


def _npy(array: NDArray[np.float32] | None) -> bytes | None:
    return None if array is None else encode_npy(np.asarray(array, np.float32))


def _pieces(chunks: Iterator[bytes]) -> Iterator[NDArray[np.uint8]]:
    """Whole images of an npy file as its bytes come in."""
    held = b""
    shape: tuple[int, ...] | None = None
    for chunk in chunks:
        held += chunk
        if shape is None:
            if len(held) < 10 or len(held) < 10 + int.from_bytes(held[8:10], "little"):
                continue
            header, start = npy_header(held)
            shape, held = header.shape[1:], held[start:]
        size = math.prod(shape)
        whole = len(held) // size
        if whole:
            yield np.frombuffer(held, np.uint8, whole * size).reshape(whole, *shape)
            held = held[whole * size :]
