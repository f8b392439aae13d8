"""The asynchronous client gives what the other gives, of the same application."""

from __future__ import annotations

import asyncio
import inspect
import time

import httpx
import numpy as np
import pytest

from service.client import AsyncClient, Client, ProblemError, ServiceUnreachable


class Bridge(httpx.AsyncBaseTransport):
    """The application of `server`, which runs on a loop of its own."""

    def __init__(self, server):
        self._server = server

    async def handle_async_request(self, request):
        body = await request.aread()
        again = httpx.Request(request.method, request.url, headers=request.headers, content=body)
        answer = await asyncio.to_thread(self._server.transport.handle_request, again)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def ask(server, work, **options):
    async def run():
        http = httpx.AsyncClient(transport=Bridge(server), base_url="http://testserver")
        async with AsyncClient(http=http, **options) as client:
            return await work(client)

    return asyncio.run(asyncio.wait_for(run(), 60))


def test_every_operation_is_that_of_the_other_client(server, digits):
    plain = Client(http=server)

    async def work(client):
        drawn, again = await asyncio.gather(client.sample(3, seed=1), client.sample(3, seed=1))
        assert np.array_equal(drawn.images, again.images)
        coded = await client.encode(digits)
        streamed = [piece async for piece in client.stream(5, seed=2)]
        return (
            drawn.images,
            coded.latents,
            (await client.decode(coded.latents)).images,
            (await client.reconstruct(digits)).images,
            (await client.interpolate(digits[:2], 5)).images,
            (await client.score(digits)).log_likelihood_nats,
            np.concatenate(streamed),
            np.frombuffer(await client.sheet(4, seed=3), np.uint8),
            await client.models(),
            await client.model(),
        )

    latents = plain.encode(digits).latents
    expected = (
        plain.sample(3, seed=1).images,
        latents,
        plain.decode(latents).images,
        plain.reconstruct(digits).images,
        plain.interpolate(digits[:2], 5).images,
        plain.score(digits).log_likelihood_nats,
        np.concatenate(list(plain.stream(5, seed=2))),
        np.frombuffer(plain.sheet(4, seed=3), np.uint8),
        plain.models(),
        plain.model(),
    )
    for got, wanted in zip(ask(server, work), expected, strict=True):
        assert np.array_equal(got, wanted) if isinstance(wanted, np.ndarray) else got == wanted


def test_refusals_carry_the_problem(server):
    with pytest.raises(ProblemError, match="resize=true"):
        ask(server, lambda client: client.score(np.zeros((1, 5, 5), np.uint8)))
    with pytest.raises(ProblemError) as caught:
        ask(server, lambda client: client.sample(), model="none")
    assert caught.value.type == "unknown-model"


def test_nobody_there():
    async def work():
        async with AsyncClient("http://127.0.0.1:9") as client:
            await client.models()

    with pytest.raises(ServiceUnreachable, match="serve"):
        asyncio.run(work())


def test_an_answer_that_drips_ends_at_the_deadline():
    class Drip(httpx.AsyncByteStream):
        async def __aiter__(self):
            for _ in range(500):
                await asyncio.sleep(0.01)  # each piece is in time, the answer is not
                yield b" "

    async def work():
        headers = {"content-type": "application/json"}
        answer = httpx.Response(200, stream=Drip(), headers=headers)
        transport = httpx.MockTransport(lambda _: answer)
        http = httpx.AsyncClient(transport=transport, base_url="http://t")
        async with AsyncClient(http=http, timeout_seconds=0.2) as client:
            await client.models()

    start = time.monotonic()
    with pytest.raises(ServiceUnreachable, match="in time"):
        asyncio.run(work())
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("answer", [httpx.Response(200, html="login"), httpx.Response(204)])
@pytest.mark.parametrize("operation", ["model", "sample", "stream"])
def test_another_server(answer, operation):
    async def work():
        http = httpx.AsyncClient(
            transport=httpx.MockTransport(lambda _: answer), base_url="http://t"
        )
        async with AsyncClient(http=http) as client:
            if operation == "stream":
                return [piece async for piece in client.stream(3)]
            return await getattr(client, operation)()

    with pytest.raises(ServiceUnreachable, match="http://t is no iafvae service"):
        asyncio.run(work())


def test_both_clients_have_the_same_methods_and_arguments():
    def signatures(kind):
        return {
            name.removeprefix("a") if name == "aclose" else name: [
                (p.name, p.default, p.annotation)
                for p in inspect.signature(member).parameters.values()
            ]
            for name, member in vars(kind).items()
            if not name.startswith("_")
        }

    assert signatures(AsyncClient) == signatures(Client)
