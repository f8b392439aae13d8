"""Every state of a connection ends, and an answer can be read before it does."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from service.api.security.admission import Admission
from service.metrics import Metrics
from service.server import protocol

GET = b"GET / HTTP/1.1\r\nhost: t\r\n\r\n"
EARLY = b"POST /early HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n"
CHUNKED = b"POST /early HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n"


class Full:
    """Refuses every request before it is a task."""

    def refuses(self, scope):
        return True

    def whole_refusal(self, scope):
        return 429, [(b"content-length", b"0")], b""

    def unread(self, scope, size):
        return None


def run(work):
    return uvloop.run(work())


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ((GET, b"\r\n"), b"200"),
        ((GET, *[b"\r\n"] * 20), b"200"),
        ((EARLY % 10**12, b"x"), b"401"),
        ((EARLY % 2, b"x"), b"401"),
        ((CHUNKED, b"5\r\nab"), b"401"),
        ((CHUNKED, b"0\r\nx: "), b"401"),
        ((EARLY.replace(b"1.1", b"1.0") % 2, b"x"), b"401"),
        ((EARLY.replace(b"host", b"expect: 100-continue\r\nhost") % 9,), b"401"),
    ],
)
def test_no_state_lasts_for_ever(line, parts, status):
    async def work():
        async with line() as server:
            answer, closed = await server.talk(*parts, seconds=2.0)
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert closed

    run(work)


def test_what_follows_an_early_answer_is_read_within_bounds(line, monkeypatch):
    """A client that reads nothing before it has sent all gets its answer."""
    monkeypatch.setattr(protocol, "DRAIN_SECONDS", 5.0)

    async def work():
        async with line() as server:
            whole = EARLY % 1_000_000 + b"x" * 1_000_000
            answer, closed = await server.talk(whole[:100_000], whole[100_000:])
            assert answer.startswith(b"HTTP/1.1 401")
            assert closed

    run(work)


@pytest.mark.parametrize("admission", [None, Full()])
@pytest.mark.parametrize(
    ("head", "part"),
    [
        (EARLY % 100_000, b"x" * 50_000),
        (CHUNKED, b"5\r\nab"),
        (EARLY.replace(b"host", b"expect: 100-continue\r\nhost") % 9, b""),
    ],
)
def test_behind_half_a_body_nobody_elses_request_is_taken(line, admission, head, part):
    """HAProxy 2.6 with HTTP/2 sends one there, where the connection stays open: it was lost."""

    async def work():
        async with line(admission=admission) as server:
            answer, closed = await server.talk(head + part)
            assert answer.startswith(b"HTTP/1.1 429" if admission else b"HTTP/1.1 401")
            assert b"connection: close" in answer
            assert closed

    run(work)


@pytest.mark.parametrize("admission", [None, Full()])
def test_behind_an_early_answer_and_its_whole_body_the_next_is(line, admission):
    async def work():
        async with line(admission=admission) as server:
            answer, closed = await server.talk(EARLY % 4 + b"body", EARLY % 4 + b"body")
            assert answer.count(b"HTTP/1.1 4") == 2
            assert b"connection: close" not in answer
            assert not closed

    run(work)


@pytest.mark.parametrize("sent", [b"", b"1234"])
def test_a_short_body_of_a_refused_request_is_not_awaited_for_ever(line, sent):
    async def work():
        async with line(admission=Full()) as server:
            answer, closed = await server.talk(EARLY % 5 + sent, seconds=2.0)
            assert answer.startswith(b"HTTP/1.1 429")
            assert b"connection: close" in answer
            assert closed

    run(work)


def test_an_offer_behind_a_refused_request_is_its_own(line):
    """What is awaited of the last request's body says nothing of those before it."""

    async def work():
        async with line(admission=Full()) as server:
            last = EARLY.replace(b"host", b"expect: 100-continue\r\nhost") % 9
            answer, closed = await server.talk(EARLY % 4 + b"body" + GET + last)
            assert answer.count(b"HTTP/1.1 429") == 3
            assert answer.count(b"connection: close") == 1
            assert closed

    run(work)


async def send_for_ever(writer):
    while True:
        writer.write(bytes(65536))
        await writer.drain()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_an_endless_body_behind_an_early_answer_is_cut(line, monkeypatch, version, wait_until):
    monkeypatch.setattr(protocol, "DRAIN_BYTES", 1_000_000)
    monkeypatch.setattr(protocol, "DRAIN_SECONDS", 30.0)
    monkeypatch.setattr(protocol, "CLOSE_SECONDS", 30.0)

    async def work():
        async with line() as server:
            reader, writer = await server.connect()
            writer.write(EARLY.replace(b"1.1", version) % 10**12)
            assert (await reader.read(12)) == b"HTTP/1.1 401"
            with pytest.raises(ConnectionError):
                await send_for_ever(writer)
            assert server.made[0]._drained < 2_000_000
            await wait_until(lambda: not server.state.connections)

    run(work)


def test_the_answer_to_what_asks_for_an_end_is_read_whole(line):
    """A close while the client sends would have its system drop what it has not read."""

    async def work():
        async with line() as server:
            reader, writer = await server.connect()
            writer.write(EARLY.replace(b"host", b"connection: close\r\nhost") % 1_000_000)
            for _ in range(10):
                writer.write(bytes(100_000))
                await asyncio.sleep(0.01)
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 401")
            assert answer.endswith(b"0 bytes")

    run(work)


async def large(scope, receive, send):
    body = bytes(2**23)
    headers = [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def test_a_slow_reader_gets_a_large_last_answer(line):
    async def work():
        async with line(large) as server:
            reader, writer = await server.connect()
            writer.write(GET)
            size, most = 0, 2**20
            while chunk := await reader.read(most):
                size += len(chunk)
                await asyncio.sleep(0.01 if size > 2**22 else 0.1)  # longer than CLOSE_SECONDS
            assert size > 2**23

    run(work)


@pytest.mark.parametrize("last", [False, True])
def test_a_steady_reader_gets_all_of_what_takes_long(line, monkeypatch, last):
    """As long as it takes its part in time, however long the whole takes."""
    monkeypatch.setattr(protocol, "WRITE_SECONDS", 0.5)
    monkeypatch.setattr(protocol, "TICK_SECONDS", 0.02)
    size = 2**25

    async def app(scope, receive, send):
        headers = [(b"content-length", b"%d" % size)] + [(b"connection", b"close")] * last
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(size)})

    async def work():
        async with line(app) as server:
            reader, writer = await server.connect()
            writer.write(GET)
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(16):
                await reader.readexactly(size // 16)
                await asyncio.sleep(0.1)

    run(work)


def test_a_last_answer_that_nobody_reads_is_given_up(line, monkeypatch, wait_until):
    monkeypatch.setattr(protocol, "WRITE_SECONDS", 0.2)

    async def work():
        async with line(large) as server:
            reader, writer = await server.connect()
            writer.transport.pause_reading()
            writer.write(GET)
            await wait_until(lambda: server.made and server.made[0]._closing)
            await wait_until(lambda: not server.state.connections)
            assert reader is not None

    run(work)


def test_a_late_head_behind_a_request_costs_it_nothing(line, monkeypatch, wait_until):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)

    async def work():
        async with line() as server:
            reader, writer = await server.connect()
            writer.write(b"GET /slow HTTP/1.1\r\nhost: t\r\n\r\nGET /late HT")
            await wait_until(lambda: server.asked)
            await asyncio.sleep(0.3)
            server.release.set()
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b"0 bytes")
            assert len(server.asked) == 1

    run(work)


@pytest.mark.parametrize("reads", [True, False])
def test_an_answer_that_its_client_does_not_read_is_held_bytes(line, wait_until, reads):
    """Thirty clients of 30 MB each made a process of 50 MB one of 900 MB, of which nobody knew."""
    size = 2**24
    admission = Admission(
        max_in_flight=9, max_bytes=2**30, metrics=Metrics(), operations=frozenset()
    )

    async def large(scope, receive, send):
        headers = [(b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(size)})

    async def scenario():
        async with line(large, admission=admission) as server:
            reader, writer = await server.connect()
            writer.write(GET)
            await wait_until(lambda: admission.bytes.held > size // 2)
            assert not admission.bytes.take("127.0.0.1", admission.bytes.capacity - size)
            assert admission.bytes.take("another")
            admission.bytes.give("another")
            if reads:
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(size)
            else:
                writer.transport.abort()
            await wait_until(lambda: admission.bytes.held == 0)

    run(scenario)
