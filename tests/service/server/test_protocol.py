"""Bounds on a request's head, without a network."""

from __future__ import annotations

import asyncio

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from service.server import protocol

BODY = 100_000


async def application(scope, receive, send):
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    headers = [(b"content-length", b"%d" % len(str(size)))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": str(size).encode()})


@pytest.fixture
def talk(monkeypatch):
    """Send parts on one connection; gives what was answered and whether it was closed."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(protocol, "TICK_SECONDS", 0.02)

    def run(*parts: bytes, wait: float = 0.0):
        return asyncio.run(_talk(parts, wait))

    return run


async def _talk(parts, wait):
    config = Config(application, log_config=None, lifespan="off")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: protocol.BoundedHttp(config, ServerState(), {}), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    answer = b""
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0.05)
    await asyncio.sleep(wait)
    try:
        async with asyncio.timeout(0.2):
            while chunk := await reader.read(65536):
                answer += chunk
        closed = True
    except ConnectionError:
        closed = True
    except TimeoutError:
        closed = False
    writer.close()
    server.close()
    return answer, closed


GET = b"GET / HTTP/1.1\r\nhost: t\r\n"


def test_requests_follow_each_other(talk):
    answer, closed = talk(GET + b"\r\n", GET, b"x: y\r\n\r\n", wait=0.3)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert not closed


def test_a_large_body_is_no_head(talk):
    head = b"POST / HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n" % BODY
    answer, closed = talk(head, b"x" * (BODY // 2), b"x" * (BODY // 2) + GET, b"\r\n", wait=0.3)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert str(BODY).encode() in answer
    assert not closed


def test_a_long_head_is_refused(talk):
    answer, closed = talk(GET, *[b"x: " + b"y" * 30_000 + b"\r\n"] * 4)
    assert answer.startswith(b"HTTP/1.1 400")
    assert closed


@pytest.mark.parametrize("parts", [(), (GET,), (GET + b"\r\n", GET)])
def test_a_head_that_does_not_come_ends_the_connection(talk, parts):
    assert talk(*parts, wait=0.4)[1]


@pytest.mark.parametrize("reads", [True, False])
def test_a_client_must_read_its_answer(monkeypatch, reads):
    monkeypatch.setattr(protocol, "WRITE_SECONDS", 0.2)
    monkeypatch.setattr(protocol, "TICK_SECONDS", 0.02)
    assert asyncio.run(_send_much(reads)) is reads


async def _send_much(reads):
    """Whether the connection outlived a large answer."""
    outcome = asyncio.get_running_loop().create_future()

    async def much(scope, receive, send):
        piece = bytes(2**20)
        start = {"type": "http.response.start", "status": 200, "headers": []}
        await send(start)
        for _ in range(64):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        outcome.set_result(None)

    config = Config(much, log_config=None, lifespan="off")
    loop = asyncio.get_running_loop()
    connections = []

    def connect():
        connections.append(protocol.BoundedHttp(config, ServerState(), {}))
        return connections[-1]

    server = await loop.create_server(connect, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=2**16)
    writer.write(GET + b"\r\n")
    size = 0
    if reads:
        while size < 2**26:
            size += len(await reader.read(2**20))
    else:
        async with asyncio.timeout(5):
            while not (connections and connections[0].transport.is_closing()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    cut = connections[0].transport.is_closing()
    writer.close()
    server.close()
    await asyncio.wait_for(outcome, 5)
    return not cut
