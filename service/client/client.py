"""A typed client: arrays in, arrays out, over one kept-alive connection.

    with Client("http://127.0.0.1:8000") as client:
        drawn = client.sample(16, seed=0)          # .images uint8 [16, C, H, W]
        scores = client.score(drawn.images)        # .log_likelihood_nats float64 [16], ...

Arrays travel as npy; scores come as JSON, which holds all of their columns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Literal, Self, TypeVar, cast

import httpx
import numpy as np
from numpy.typing import NDArray

from service.client import calls
from service.client.calls import Call, Form, Output, Pieces, connected
from service.client.results import Computed, ScoreTable
from service.client.retries import Attempts, InTime

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """A server at `base_url`. Use as a context manager, or call `close`.

    Every method raises ProblemError where the server refuses and ServiceUnreachable where none
    answers. What is refused for the moment (429, 502, 503) or not answered is sent again, when
    the server says so, at most `retries` times. An answer that is not whole within
    `timeout_seconds`, which the server is told, is given up; a stream may take longer. `key` is
    sent where the server wants one. `http` replaces the HTTP client (for proxies, certificates),
    which is this one's from then on; a `base_url` of its own is kept.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        model: str | None = None,
        key: str | None = None,
        timeout_seconds: float = 60.0,
        retries: int = 2,
        http: httpx.Client | None = None,
    ) -> None:
        self._model, self._seconds, self._retries = model, timeout_seconds, retries
        self._http = connected(http or httpx.Client(), base_url, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def models(self) -> dict[str, Any]:
        """What is loaded: ``{"default": name, "models": [...]}``."""
        return self._do(Call("models", calls.MODELS, method="GET"))

    def model(self, name: str | None = None) -> dict[str, Any]:
        """One model with its manifest; by default this client's, or the server's default one."""
        name = name or self._model or self.models()["default"]
        return self._do(Call(f"models/{name}", calls.MODEL, method="GET"))

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
        eps = None if prior_eps is None else np.asarray(prior_eps, np.float32)
        options = {"n": n, "seed": seed, "temperature": temperature, "output": output}
        groups = {"resample": resample, "keep": keep}
        return self._post("sample", calls.COMPUTED, eps, **options, **groups)

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
        call = calls.stream(n=n, seed=seed, temperature=temperature, output=output)
        pieces = Pieces()
        with closing(self._send(call)) as answer, call.reading(answer, self._http.base_url):
            for chunk in answer.iter_bytes():
                if (images := pieces.feed(chunk)) is not None:
                    yield images

    def decode(
        self, latents: NDArray[np.float32], *, output: Output = "mean", seed: int | None = None
    ) -> Computed:
        """Images of `latents` float32 [n, D]."""
        array = np.asarray(latents, np.float32)
        return self._post("decode", calls.COMPUTED, array, output=output, seed=seed)

    def encode(
        self,
        images: NDArray[np.uint8],
        *,
        seed: int | None = None,
        output: Literal["latents", "prior_eps"] = "latents",
    ) -> Computed:
        """Latents float32 [n, D] of `images` uint8 [n, H, W] or [n, C, H, W], or their prior_eps:
        the prior's noise that gives them, for `sample`."""
        return self._post("encode", calls.COMPUTED, images, seed=seed, output=output)

    def reconstruct(
        self, images: NDArray[np.uint8], *, seed: int | None = None, output: Output = "mean"
    ) -> Computed:
        """`images` through their latents and back."""
        return self._post("reconstruct", calls.COMPUTED, images, seed=seed, output=output)

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
        ends = seeds or None
        return self._post(
            "interpolate", calls.COMPUTED, images, n=n, seeds=ends, seed=seed, output=output
        )

    def score(
        self,
        images: NDArray[np.uint8],
        *,
        importance_samples: int | None = None,
        seed: int | None = None,
        alpha: float | None = None,
        fdr: float | None = None,
        altered: NDArray[np.bool_] | None = None,
    ) -> ScoreTable:
        """Log-likelihoods and p-values of `images` uint8 [n, H, W] or [n, C, H, W].

        altered: bool [n], which of them were resized or converted before they were sent; of
        more than some 1,300 a request has no room for them.
        """
        places = None if altered is None else np.flatnonzero(altered).tolist() or None
        options = {"importance_samples": importance_samples, "seed": seed, "alpha": alpha}
        return self._post("score", calls.SCORES, images, **options, fdr=fdr, altered=places)

    def anomaly_map(self, images: NDArray[np.uint8], *, seed: int | None = None) -> Computed:
        """Where `images` are unusual: `array` is float32 [n, H, W], in standard deviations."""
        return self._post("anomaly-map", calls.COMPUTED, images, seed=seed)

    def anomaly_picture(self, images: NDArray[np.uint8], *, seed: int | None = None) -> bytes:
        """A PNG of `images` under their maps, on one scale for all."""
        return self._post("anomaly-map", calls.PICTURE, images, seed=seed)

    def anomaly_boxes(
        self, images: NDArray[np.uint8], *, seed: int | None = None, boxes: int = 3
    ) -> list[list[dict[str, Any]]]:
        """The largest boxes of each of `images`: left, top, side, deviations, p_value."""
        return self._post("anomaly-map", calls.BOXES, images, seed=seed, boxes=boxes)

    def anomalies(
        self, images: NDArray[np.uint8], *, seed: int | None = None, boxes: int = 3
    ) -> tuple[NDArray[np.float32], list[list[dict[str, Any]]]]:
        """What `anomaly_map` and `anomaly_boxes` give, of one request."""
        return self._post(
            "anomaly-map", calls.ANOMALIES, images, seed=seed, boxes=boxes, maps="true"
        )

    def sheet(
        self,
        n: int = 64,
        *,
        seed: int | None = None,
        temperature: float | list[float] = 1.0,
        output: Output = "mean",
    ) -> bytes:
        """A PNG contact sheet of `n` drawn images."""
        return self._post(
            "sample", calls.PICTURE, n=n, seed=seed, temperature=temperature, output=output
        )

    def _post(
        self, operation: str, form: Form[T], array: NDArray[Any] | None = None, **options: Any
    ) -> T:
        return self._do(Call(operation, form, array, options))

    def _do(self, call: Call[T]) -> T:
        return call.read(self._send(call), self._http.base_url)

    def _send(self, call: Call[Any]) -> httpx.Response:
        """A successful answer; of a streamed one the body is still to be read."""
        attempts = Attempts(self._retries, self._seconds)
        while True:
            request = self._http.build_request(**call.request(self._model, attempts.left))
            outcome: httpx.Response | httpx.HTTPError
            try:
                outcome = self._http.send(request, stream=True)
                if call.streamed and outcome.is_success:
                    return outcome
                with closing(outcome):
                    outcome.stream = InTime(cast("httpx.SyncByteStream", outcome.stream), attempts)
                    outcome.read()
                if outcome.is_success:
                    return outcome
            except httpx.HTTPError as error:
                outcome = error
            time.sleep(attempts.wait(outcome, self._http.base_url))
