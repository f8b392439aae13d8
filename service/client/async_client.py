"""The client for asyncio (or trio): the methods of `Client`, to be awaited.

async with AsyncClient("http://127.0.0.1:8000") as client:
    drawn, scores = await asyncio.gather(client.sample(16, seed=0), client.score(images))
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

import anyio
import httpx
import numpy as np
from numpy.typing import NDArray

from service.client import calls
from service.client.calls import Call, Output, Pieces, connected
from service.client.client import Client
from service.client.retries import LATE, Attempts

__all__ = ["AsyncClient"]

T = TypeVar("T")
P = ParamSpec("P")


class _Unsent(Client):
    """A client whose methods give the call that they would send."""

    def __init__(self) -> None:
        pass

    def _do(self, call: Call[T]) -> T:
        return cast("T", call)


def _awaited(
    method: Callable[Concatenate[Client, P], T],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """A method of `Client` whose answer is awaited."""

    @functools.wraps(method)
    async def send(client: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        call = cast("Call[T]", method(_Unsent(), *args, **kwargs))
        return await client._do(call)

    return send


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
        self._http = connected(http or httpx.AsyncClient(), base_url, key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def model(self, name: str | None = None) -> dict[str, Any]:
        """One model with its manifest; by default this client's, or the server's default one."""
        name = name or self._model or (await self.models())["default"]
        return await self._do(Call(f"models/{name}", calls.MODEL, method="GET"))

    models = _awaited(Client.models)
    sample = _awaited(Client.sample)
    decode = _awaited(Client.decode)
    encode = _awaited(Client.encode)
    reconstruct = _awaited(Client.reconstruct)
    interpolate = _awaited(Client.interpolate)
    score = _awaited(Client.score)
    anomaly_map = _awaited(Client.anomaly_map)
    anomaly_picture = _awaited(Client.anomaly_picture)
    anomaly_boxes = _awaited(Client.anomaly_boxes)
    anomalies = _awaited(Client.anomalies)
    sheet = _awaited(Client.sheet)

    async def stream(
        self,
        n: int,
        *,
        seed: int | None = None,
        temperature: float | list[float] = 1.0,
        output: Output = "mean",
    ) -> AsyncIterator[NDArray[np.uint8]]:
        """Draw `n` images piece by piece: arrays uint8 [some, C, H, W]."""
        call = calls.stream(n=n, seed=seed, temperature=temperature, output=output)
        pieces = Pieces()
        async with aclosing(await self._send(call)) as answer:
            with call.reading(answer, self._http.base_url):
                async for chunk in answer.aiter_bytes():
                    if (images := pieces.feed(chunk)) is not None:
                        yield images

    async def _do(self, call: Call[T]) -> T:
        return call.read(await self._send(call), self._http.base_url)

    async def _send(self, call: Call[Any]) -> httpx.Response:
        """A successful answer; of a streamed one the body is still to be read."""
        attempts = Attempts(self._retries, self._seconds)
        while True:
            request = self._http.build_request(**call.request(self._model, attempts.left))
            outcome: httpx.Response | httpx.HTTPError
            try:
                outcome = await self._http.send(request, stream=True)
                if call.streamed and outcome.is_success:
                    return outcome
                async with aclosing(outcome):
                    with anyio.fail_after(attempts.left):
                        await outcome.aread()
                if outcome.is_success:
                    return outcome
            except TimeoutError:
                outcome = httpx.ReadTimeout(LATE)
            except httpx.HTTPError as error:
                outcome = error
            await anyio.sleep(attempts.wait(outcome, self._http.base_url))
