"""What belongs to which request: offers of other protocols, trailers, chunks, pipelines."""

from __future__ import annotations

import asyncio
import json

import pytest
import uvloop

from service.server import protocol

BODY = b"GET /smuggled HTTP/1.1\r\nhost: t\r\n\r\n"  # were it read as a request
OFFERS = {
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
    "websocket": b"upgrade: websocket\r\nconnection: keep-alive, Upgrade\r\n",
    "tls": b"Upgrade: TLS/1.0\r\nConnection: upgrade\r\n",
    "twice": b"upgrade: h2c\r\nupgrade: foo\r\nconnection: upgrade\r\n",
}
LENGTH = b"content-length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
GET = b"GET /next HTTP/1.1\r\nhost: t\r\n\r\n"
POST = b"POST /post HTTP/1.1\r\nhost: t\r\n"
SLOW = b"POST /slow HTTP/1.1\r\nhost: t\r\ncontent-length: 2\r\n\r\nab"


def run(work):
    return uvloop.run(work())


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize(("end", "body"), [(LENGTH, BODY), (CHUNKED, CHUNKS)], ids=["cl", "te"])
@pytest.mark.parametrize("cut", [0, 1, 60], ids=["one segment", "head and body", "within the head"])
def test_an_offered_upgrade_is_ignored_and_the_body_read(line, offer, end, body, cut):
    async def work():
        whole = POST + offer + end + body
        at = {0: len(whole), 1: len(whole) - len(body), 60: 60}[cut]
        async with line() as server:
            answer, closed = await server.talk(whole[:at], whole[at:], GET)
            assert [(m, p, b) for m, p, b, _ in server.asked] == [
                ("POST", "/post", BODY),
                ("GET", "/next", b""),
            ]
            assert b"upgrade" not in server.asked[0][3]
            assert answer.count(b"HTTP/1.1 200") == 2
            assert not closed

    run(work)


def test_many_offers_in_one_segment(line):
    async def work():
        async with line() as server:
            one = POST + OFFERS["h2c"] + LENGTH + BODY
            answer, _ = await server.talk(one * 40)
            assert [p for _, p, _, _ in server.asked] == ["/post"] * 40
            assert answer.count(b"%d bytes" % len(BODY)) == 40

    run(work)


@pytest.mark.parametrize("first", [b"", GET])
def test_nobody_knows_what_follows_connect(line, first):
    async def work():
        async with line() as server:
            connect = b"CONNECT t:443 HTTP/1.1\r\nhost: t\r\ncontent-length: 5\r\n\r\nhello" + GET
            answer, closed = await server.talk(first, connect)
            assert answer.rpartition(b"HTTP/1.1 ")[2].startswith(b"400")
            assert closed
            assert [p for _, p, _, _ in server.asked] == (["/next"] if first else [])

    run(work)


@pytest.mark.parametrize(
    "bad",
    [
        b"CONNECT t:443 HTTP/1.1\r\n\r\n",
        b"no request\r\n\r\n",
        b"GET / HTTP/1.1\r\nx" + b"y" * 70000,
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["connect", "no request", "long", "no host", "two hosts", "a coding"],
)
def test_what_cannot_be_framed_waits_for_its_turn(line, bad, wait_until):
    """A 400 before the first answer would be taken for it; and the first answer is not lost."""

    async def work():
        async with line() as server:
            reader, writer = await server.connect()
            writer.write(SLOW)
            await wait_until(lambda: server.asked)
            writer.write(bad + GET)
            await asyncio.sleep(0.1)
            server.release.set()
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b"2 bytes")
            assert len(server.asked) == 1

    run(work)


@pytest.mark.parametrize(
    ("head", "status", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"400", b"A request names one Host."),
        (b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", b"400", b"A request names one Host."),
        (b"GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n", b"400", b"A request names one Host."),
        (b"GET / HTTP/1.0\r\n\r\n", b"200", b"bytes"),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", b"400", b"The request is not valid HTTP/1.1: I"),
        (
            b"GET a://:x HTTP/1.1\r\nHost: a\r\n\r\n",
            b"400",
            b"The request is not valid HTTP/1.1",
        ),
        (
            b"POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            *(b"400", b"Transfer-Encoding may only be chunked."),
        ),
        (
            (
                b"POST / HTTP/1.1\r\nhost: t\r\nconnection: close\r\n"
                b"transfer-encoding: Chunked\r\n\r\n0\r\n\r\n"
            ),
            *(b"200", b"bytes"),
        ),
        (
            b"GET / HTTP/1.1\r\nhost: t\r\n" + b"a:\r\n" * 15_000 + b"\r\n",
            *(b"400", b"A request has at most 256 headers."),
        ),
    ],
    ids=[
        "no host",
        "a host twice",
        "two hosts, 1.0",
        "no host, 1.0",
        "space",
        "no port",
        "gzip",
        "chunked",
        "many",
    ],
)
def test_what_a_proxy_could_read_otherwise_is_not_answered(line, head, status, why):
    async def work():
        async with line() as server:
            reader, writer = await server.connect()
            server.release.set()
            writer.write(head)
            answer = await reader.read()
            assert answer.split(b" ", 2)[1] == status
            assert why in answer
            if status == b"400":
                assert b"content-type: application/problem+json" in answer
                problem = json.loads(answer.partition(b"\r\n\r\n")[2])
                assert problem["detail"].encode("ascii").startswith(why)
                assert b"x-request-id: " + problem["request_id"].encode("ascii") in answer
            assert len(server.asked) == (status == b"200")

    run(work)


def test_under_v2_what_is_no_http_is_told_in_its_form(line):
    async def work():
        async with line() as server:
            answer, closed = await server.talk(b"POST /v2/models HTTP/1.1\r\nhost : t\r\n\r\n")
            assert list(json.loads(answer.partition(b"\r\n\r\n")[2])) == ["error"]
            assert closed

    run(work)


@pytest.mark.parametrize(("version", "interim"), [(b"1.0", 0), (b"1.1", 1)])
def test_only_who_knows_100_continue_gets_it(line, version, interim):
    async def work():
        async with line() as server:
            head = b"POST / HTTP/%b\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n"
            answer, _ = await server.talk(head % version, b"x")
            assert answer.count(b"100 Continue") == interim
            assert answer.count(b"HTTP/1.1 200") == 1

    run(work)


@pytest.mark.parametrize("started", ["", "head", "head body"])
def test_a_body_that_cannot_be_framed(line, started, wait_until):
    async def app(scope, receive, send):
        if "head" in started:
            start = {"type": "http.response.start", "status": 200}
            await send({**start, "headers": [(b"content-length", b"3")]})
        if "body" in started:
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
        while (message := await receive())["type"] != "http.disconnect":
            pass
        told.append(message)

    told = []

    async def work():
        async with line(app) as server:
            answer, closed = await server.talk(POST + CHUNKED, b"no chunk")
            assert answer.count(b"HTTP/1.1 ") == 1
            assert answer.startswith(b"HTTP/1.1 200" if "body" in started else b"HTTP/1.1 400")
            assert closed
            await wait_until(lambda: told)

    run(work)


def test_trailers_are_no_headers(line):
    async def work():
        async with line() as server:
            trailers = b"authorization: Bearer k\r\nx: y\r\n\r\n"
            await server.talk(POST + CHUNKED, b"0\r\n", trailers)
            assert set(server.asked[0][3]) == {b"host", b"transfer-encoding"}
            await server.talk(POST + CHUNKED + b"0\r\n" + trailers)
            assert set(server.asked[1][3]) == {b"host", b"transfer-encoding"}

    run(work)


@pytest.mark.parametrize("early", [False, True])
def test_an_end_that_a_trailer_asks_for_is_told(line, early):
    async def work():
        async with line() as server:
            head = POST.replace(b"/post", b"/early") if early else POST
            reader, writer = await server.connect()
            writer.write(head + CHUNKED)
            if early:
                await reader.readuntil(b"\r\n\r\n")
            writer.write(b"0\r\nconnection: close\r\n\r\n" + GET)
            async with asyncio.timeout(5):
                answer = await reader.read()
            assert early or b"connection: close" in answer
            assert len(server.asked) == 1

    run(work)


def test_nobody_sees_a_cookie(line):
    async def work():
        async with line() as server:
            cookies = b'Cookie: a="' + b'\\"' * 20_000 + b'"\r\nCOOKIE: b=c\r\n'
            await server.talk(
                POST.replace(b"\r\n", b"\r\nx-kept: 1\r\n" + cookies, 1) + CHUNKED, b"0\r\n\r\n"
            )
            assert set(server.asked[0][3]) == {b"host", b"x-kept", b"transfer-encoding"}

    run(work)


ENDLESS = {
    "trailers": (b"0\r\n", b"a:b\r\n" * 4000),
    "one trailer": (b"0\r\na: ", b"b" * 20_000),
    "name of a trailer": (b"0\r\n", b"b" * 20_000),
    "chunk extension": (b"1;", b"e=x;" * 5000),
    "zeros of a size": (b"", b"0" * 20_000),
    "extensions of many chunks": (b"", (b"1;" + b"e" * 100 + b"\r\nx\r\n") * 200),
}


@pytest.mark.parametrize("path", [b"/early", b"/post"])
@pytest.mark.parametrize(("first", "block"), ENDLESS.values(), ids=ENDLESS)
def test_bytes_outside_of_the_body_are_bounded(line, path, first, block):
    async def work():
        async with line() as server:
            head = b"POST %b HTTP/1.1\r\nhost: t\r\n" % path + CHUNKED
            answer, closed = await server.talk(head + first, *[block] * 9)
            assert closed
            assert answer.startswith(b"HTTP/1.1 401" if path == b"/early" else b"HTTP/1.1 400")
            if path == b"/post":
                assert server.asked == []

    run(work)


def test_small_chunks_are_no_fault(line):
    async def work():
        async with line() as server:
            answer, closed = await server.talk(
                POST + CHUNKED, *[b"1\r\nx\r\n" * 10_000] * 5, b"0\r\n\r\n" + GET
            )
            assert b"50000 bytes" in answer
            assert answer.count(b"HTTP/1.1 200") == 2
            assert not closed

    run(work)


def test_others_have_their_turn_beside_small_chunks(line):
    """However many come at once: they hold the event loop for some milliseconds, then rest."""

    async def work():
        async with line() as server:
            flood = asyncio.create_task(
                server.talk(POST + CHUNKED, b"1\r\nx\r\n" * 20_000, b"0\r\n\r\n")
            )
            turns = 0
            while not flood.done():
                await asyncio.sleep(0.001)
                turns += 1
            assert b"20000 bytes" in (await flood)[0]
            assert turns > 20

    run(work)


def test_large_chunks_are_never_too_many(line):
    async def work():
        async with line() as server:
            chunks = b"20\r\n" + bytes(32) + b"\r\n"
            answer, _ = await server.talk(POST + CHUNKED, chunks * 10_000, b"0\r\n\r\n")
            assert b"320000 bytes" in answer

    run(work)


# ------------------------------------------------------------------ pipelines


@pytest.mark.parametrize("behind", [b"", GET, GET * 20, GET * 5000, POST + LENGTH + BODY[:5]])
def test_a_hang_up_is_noticed_whatever_was_sent_behind(line, behind, wait_until):
    async def work():
        async with line() as server:
            _, writer = await server.connect()
            writer.write(SLOW + behind)
            await wait_until(lambda: server.asked)
            await asyncio.sleep(0.05)
            writer.transport.abort()
            await wait_until(lambda: server.told)
            assert server.told == ["/slow gone"]
            assert [p for _, p, _, _ in server.asked] == ["/slow"]

    run(work)


def test_pipelined_requests_are_answered_in_turn(line, wait_until):
    async def work():
        async with line() as server:
            reader, writer = await server.connect()
            writer.write(SLOW)
            writer.write(b"".join(b"GET /%d HTTP/1.1\r\nhost: t\r\n\r\n" % i for i in range(50)))
            await wait_until(lambda: server.made and len(server.made[0].pipeline) == 50)
            server.release.set()
            await wait_until(lambda: len(server.asked) == 51)
            assert [p for _, p, _, _ in server.asked[1:]] == [f"/{i}" for i in range(50)]
            answer = await reader.readexactly(100)
            assert answer.startswith(b"HTTP/1.1 200")

    run(work)


class Limit:
    """Refuses all but /slow."""

    seen = 0

    def malformed(self):
        self.seen += 1

    def refuses(self, scope):
        return scope["path"] != "/slow"

    def whole_refusal(self, scope):
        return 429, [(b"content-length", b"4")], b"full"


def test_what_is_no_request_is_counted_once(line):
    limit = Limit()

    async def work():
        async with line(admission=limit) as server:
            for _ in range(2):
                reader, writer = await server.connect()
                writer.write(b"\x16\x03\x01 no HTTP\r\n\r\n" * 3)
                assert (await reader.read()).startswith(b"HTTP/1.1 400")

    run(work)
    assert limit.seen == 2


@pytest.mark.parametrize("admission", [None, Limit()], ids=["taken", "refused"])
@pytest.mark.parametrize("body", [b"", b"x" * 3000])
def test_a_pipeline_is_bounded_and_nothing_recurses(line, admission, body, wait_until):
    async def work():
        async with line(admission=admission) as server:
            reader, writer = await server.connect()
            one = b"POST /p HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            writer.write(SLOW + one * 1500)
            await wait_until(lambda: server.asked)
            await asyncio.sleep(0.1)
            held = server.made[0].pipeline
            assert len(held) <= protocol.MAX_PIPELINED
            assert sum(len(cycle.body) for cycle, _ in held) < 2**19
            server.release.set()
            answer = await reader.read()
            kind = b"HTTP/1.1 429" if admission else b"HTTP/1.1 200"
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.count(kind) >= protocol.MAX_PIPELINED

    run(work)


def test_heads_behind_a_request_are_few_when_they_are_large(line, wait_until):
    """They wait in memory, each with up to 64 KiB of headers."""

    async def work():
        async with line() as server:
            reader, writer = await server.connect()
            one = b"GET /p HTTP/1.1\r\nhost: t\r\nx: %b\r\n\r\n" % (b"x" * 50_000)
            writer.write(SLOW)
            await wait_until(lambda: server.asked)
            for _ in range(40):
                writer.write(one)
                await asyncio.sleep(0.01)
            held = server.made[0].pipeline
            assert (
                sum(len(value) for cycle, _ in held for _, value in cycle.scope["headers"]) < 2**19
            )
            server.release.set()
            answers = 0
            while answers < 41:
                await reader.readuntil(b"HTTP/1.1 200")
                answers += 1

    run(work)


def test_refusals_one_after_the_other(line):
    async def work():
        async with line(admission=Limit()) as server:
            one = b"POST /p HTTP/1.1\r\nhost: t\r\ncontent-length: 3\r\n\r\nabc"
            answer, closed = await server.talk(one * 1500)
            assert answer.count(b"HTTP/1.1 429") == 1500
            assert not closed

    run(work)


def test_what_is_not_read_yet_has_an_end(line, monkeypatch):
    """An application that asks for more gets what came, before the client may send more."""
    monkeypatch.setattr(protocol, "READ_SECONDS", 0.0)
    monkeypatch.setattr(protocol, "REST_SECONDS", 0.05)
    monkeypatch.setattr(protocol, "AT_ONCE", 2**12)

    async def work():
        async with line() as server:
            _, writer = await server.connect()
            writer.write(b"POST /slow HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n")
            most = 0
            for _ in range(100):
                writer.write(b"1\r\nx\r\n" * 50_000)
                await asyncio.sleep(0.005)
                most = max(most, *(len(made._unread) for made in server.made))
            assert 0 < most <= 2**20

    run(work)
