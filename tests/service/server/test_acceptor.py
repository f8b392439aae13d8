"""Connections are taken many in a turn, and none of them stops the next."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct

import pytest
import uvloop

from service.server import acceptor
from service.server.acceptor import Acceptor


class Greeting(asyncio.Protocol):
    """Says a word to everybody who comes."""

    def connection_made(self, transport):
        transport.write(b"welcome")
        transport.close()


@pytest.fixture(params=[asyncio, uvloop], ids=["asyncio", "uvloop"])
def run(request):
    return request.param.run


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        yield listener


def connect(listener):
    return socket.create_connection(listener.getsockname(), timeout=10)


async def heard(client):
    return await asyncio.to_thread(client.recv, 16)


def test_all_that_wait_are_taken_in_one_turn(run, listener):
    turns = []

    class Counted(Greeting):
        def connection_made(self, transport):
            turns.append(turn)
            super().connection_made(transport)

    async def work():
        nonlocal turn
        clients = [connect(listener) for _ in range(200)]
        server = Acceptor(listener, Counted)
        while len(turns) < len(clients):
            turn += 1
            await asyncio.sleep(0)
        server.close()
        assert [await heard(client) for client in clients] == [b"welcome"] * 200
        for client in clients:
            client.close()

    turn = 0
    run(work())
    assert turns[-1] - turns[0] <= 3


def test_who_has_gone_already_costs_nobody_anything(run, listener, caplog):
    async def work():
        for _ in range(20):
            gone = connect(listener)
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone.close()  # with a reset
        server = Acceptor(listener, Greeting)
        with connect(listener) as client:
            assert await heard(client) == b"welcome"
        server.close()

    with caplog.at_level(logging.WARNING):
        run(work())
    assert not caplog.records


def test_without_descriptors_it_rests_and_goes_on(run, monkeypatch, caplog):
    """As where the process has as many files open as it may."""
    monkeypatch.setattr(acceptor, "REST_SECONDS", 0.05)

    class Exhausted(socket.socket):
        failures = 2

        def accept(self):
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    async def work():
        with Exhausted() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            server = Acceptor(listener, Greeting)
            with connect(listener) as client:
                assert await heard(client) == b"welcome"
            server.close()

    with caplog.at_level(logging.WARNING, logger="iafvae"):
        run(work())
    assert [r.getMessage() for r in caplog.records] == [
        "no connection can be taken (Too many open files)"
    ] * 2


def test_after_its_close_nobody_is_taken(run, listener):
    async def work():
        address = listener.getsockname()
        server = Acceptor(listener, Greeting)
        server.close()
        await server.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)

    run(work())
