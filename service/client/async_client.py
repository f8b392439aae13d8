"""The client for asyncio (or trio): the methods of `Client`, to be awaited.

async with AsyncClient("http://127.0.0.1:8000") as client:
    drawn, scores = await asyncio.gather(client.sample(16, seed=0), client.score(images))
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Literal, Self, TypeVar

import anyio
import httpx
import numpy as np
from numpy.typing import NDArray

from service.client import calls
from service.client.calls import Call, Output, Pieces
from service.client.results import Computed, ScoreTable
from service.client.retries import Attempts, unreachable

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient:
    """As `Client`, which has the meaning of all arguments, for any number of requests at once.

    Use as a context manager, or call `aclose`.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        model: str | None = None,
        key: str | None = None,
        timeout_seconds: float = 60.0,
        retries: int = 2,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._model, self._seconds, self._retries = model, timeout_seconds, retries
        headers = {"authorization": f"Bearer {key}"} if key else None
        self._http = http or httpx.AsyncClient(base_url=base_url, headers=headers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def models(self) -> dict[str, Any]:
        """What is loaded: ``{"default": name, "models": [...]}``."""
        return await self._do(calls.models())

    async def model(self, name: str | None = None) -> dict[str, Any]:
        """One model with its manifest; by default this client's, or the server's default one."""
        return await self._do(calls.model(name or self._model or (await self.models())["default"]))

    async def sample(
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
        """Draw `n` images, or from `prior_eps`."""
        return await self._do(
            calls.sample(
                n,
                seed=seed,
                temperature=temperature,
                output=output,
                prior_eps=prior_eps,
                resample=resample,
                keep=keep,
            )
        )

    async def stream(
        self,
        n: int,
        *,
        seed: int | None = None,
        temperature: float | list[float] = 1.0,
        output: Output = "mean",
    ) -> AsyncIterator[NDArray[np.uint8]]:
        """Draw `n` images piece by piece: arrays uint8 [some, C, H, W]."""
        call = calls.stream(n, seed=seed, temperature=temperature, output=output)
        pieces = Pieces()
        async with aclosing(await self._send(call)) as answer:
            try:
                async for chunk in answer.aiter_bytes():
                    if (images := pieces.feed(chunk)) is not None:
                        yield images
            except httpx.HTTPError as error:
                raise unreachable(self._http.base_url, error) from error

    async def decode(
        self, latents: NDArray[np.float32], *, output: Output = "mean", seed: int | None = None
    ) -> Computed:
        """Images of `latents` float32 [n, D]."""
        return await self._do(calls.decode(latents, output=output, seed=seed))

    async def encode(
        self,
        images: NDArray[np.uint8],
        *,
        seed: int | None = None,
        output: Literal["latents", "prior_eps"] = "latents",
    ) -> Computed:
        """Latents float32 [n, D] of `images`, or their prior_eps."""
        return await self._do(calls.encode(images, seed=seed, output=output))

    async def reconstruct(
        self, images: NDArray[np.uint8], *, seed: int | None = None, output: Output = "mean"
    ) -> Computed:
        """`images` through their latents and back."""
        return await self._do(calls.reconstruct(images, seed=seed, output=output))

    async def interpolate(
        self,
        images: NDArray[np.uint8] | None = None,
        n: int = 8,
        *,
        seeds: tuple[int, ...] = (),
        seed: int | None = None,
        output: Output = "mean",
    ) -> Computed:
        """`n` images from one end to the other: of `images`, then of `seeds`, two together."""
        return await self._do(calls.interpolate(images, n, seeds=seeds, seed=seed, output=output))

    async def score(
        self,
        images: NDArray[np.uint8],
        *,
        importance_samples: int | None = None,
        seed: int | None = None,
        alpha: float | None = None,
        fdr: float | None = None,
    ) -> ScoreTable:
        """Log-likelihoods and p-values of `images` uint8 [n, H, W] or [n, C, H, W]."""
        return await self._do(
            calls.score(
                images, importance_samples=importance_samples, seed=seed, alpha=alpha, fdr=fdr
            )
        )

    async def anomaly_map(self, images: NDArray[np.uint8], *, seed: int | None = None) -> Computed:
        """Where `images` are unusual: `array` is float32 [n, H, W], in standard deviations."""
        return await self._do(calls.anomaly_map(images, seed=seed))

    async def anomaly_picture(self, images: NDArray[np.uint8], *, seed: int | None = None) -> bytes:
        """A PNG of `images` under their maps, on one scale for all."""
        return await self._do(calls.anomaly_picture(images, seed=seed))

    async def anomaly_boxes(
        self, images: NDArray[np.uint8], *, seed: int | None = None, boxes: int = 3
    ) -> list[list[dict[str, Any]]]:
        """The largest boxes of each of `images`: left, top, side, deviations, p_value."""
        return await self._do(calls.anomaly_boxes(images, seed=seed, boxes=boxes))

    async def sheet(
        self,
        n: int = 64,
        *,
        seed: int | None = None,
        temperature: float | list[float] = 1.0,
        output: Output = "mean",
    ) -> bytes:
        """A PNG contact sheet of `n` drawn images."""
        return await self._do(calls.sheet(n, seed=seed, temperature=temperature, output=output))

    async def _do(self, call: Call[T]) -> T:
        return call.read(await self._send(call))

    async def _send(self, call: Call[Any]) -> httpx.Response:
        """A successful answer; of a streamed one the body is still to be read."""
        attempts = Attempts(self._retries, self._seconds)
        while True:
            request = self._http.build_request(**call.request(self._model, attempts.left))
            outcome: httpx.Response | httpx.HTTPError
            try:
                outcome = await self._http.send(request, stream=call.streamed)
                if outcome.is_success:
                    return outcome
                await outcome.aread()
            except httpx.HTTPError as error:
                outcome = error
            if (wait := attempts.wait(outcome)) is None:
                break
            await anyio.sleep(wait)
        if isinstance(outcome, httpx.Response):
            raise calls.refusal(outcome)
        raise unreachable(self._http.base_url, outcome) from outcome
