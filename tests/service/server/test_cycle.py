"""What goes out for an answer's messages, and in how many writes."""

from __future__ import annotations

import asyncio
import logging

import httptools
import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from service.server.cycle import Cycle, head


class Wire:
    """A transport that keeps what reaches it."""

    def __init__(self):
        self.sent = []

    def write(self, data):
        self.sent.append(bytes(data))

    def writelines(self, pieces):
        self.sent.append(b"".join(pieces))

    def close(self):
        self.sent.append("close")


def start(*headers, status=200):
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data=b"", *, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


def sent(*messages, method="GET", keep_alive=True, more_body=False, version="1.1"):
    async def main():
        wire = Wire()
        cycle = Cycle(
            scope={"type": "http", "method": method, "http_version": version},
            transport=wire,
            flow=FlowControl(wire),
            logger=logging.getLogger("test"),
            access_logger=logging.getLogger("test"),
            access_log=False,
            default_headers=[(b"server", b"s")],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keep_alive,
            on_response=lambda: wire.sent.append("next"),
        )
        cycle.more_body = more_body
        for message in messages:
            await cycle.send(message)
        return wire.sent

    return asyncio.run(main())


LENGTH = (b"content-length", b"4")
HEAD = b"HTTP/1.1 200 OK\r\nserver: s\r\ncontent-length: 4\r\n"


class Answer:
    """What a parser of answers, llhttp's, finds."""

    def __init__(self, data):
        self.headers, self.body, self.complete = [], b"", False
        httptools.HttpResponseParser(self).feed_data(data)

    def on_header(self, name, value):
        self.headers.append((name, value))

    def on_body(self, data):
        self.body += data

    def on_message_complete(self):
        self.complete = True


def test_head_and_body_are_one_write():
    assert sent(start(LENGTH), body(b"abcd")) == [HEAD + b"\r\nabcd", "next"]


def test_a_body_in_pieces_is_sent_as_it_comes():
    pieces = sent(start(LENGTH), body(b"ab", more=True), body(b"cd"))
    assert pieces == [HEAD + b"\r\nab", b"cd", "next"]


def test_a_body_of_unknown_length_is_chunked():
    pieces = sent(start(), body(b"ab", more=True), body(b"", more=True), body(b"cd"))
    assert len(pieces) == 3
    answer = Answer(b"".join(pieces[:-1]))
    assert answer.body == b"abcd"
    assert answer.complete
    assert (b"transfer-encoding", b"chunked") in answer.headers


@pytest.mark.parametrize("headers", [(LENGTH,), ()])
def test_an_answer_to_head_has_no_body(headers):
    (whole, after) = sent(start(*headers), body(b"abcd"), method="HEAD")
    assert whole.endswith(b"\r\n\r\n")
    assert b"chunked" not in whole
    assert after == "next"


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_has_none(status):
    (whole, after) = sent(start(status=status), body())
    assert whole.endswith(b"server: s\r\n\r\n")
    assert after == "next"


@pytest.mark.parametrize("close", [[(b"connection", b"close")], []])
def test_a_last_answer_says_so_once(close):
    whole, *after = sent(start(*close, LENGTH), body(b"abcd"), keep_alive=bool(close))
    assert whole.count(b"connection: close\r\n") == 1
    assert whole.endswith(b"\r\n\r\nabcd")
    assert after == ["close", "next"]


@pytest.mark.parametrize("data", [b"abc", b"abcde"])
def test_a_wrong_length_is_an_error_and_not_sent(data):
    with pytest.raises(RuntimeError, match="Content-Length"):
        sent(start(LENGTH), body(data))


@pytest.mark.parametrize(
    "messages", [[body(b"a")], [start(), start()], [start(LENGTH), body(b"abcd"), body()]]
)
def test_messages_out_of_order_are_errors(messages):
    with pytest.raises(RuntimeError, match="expected"):
        sent(*messages)


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\n", b"\ra", b"a\0"])
@pytest.mark.parametrize("place", [0, 1])
def test_no_header_holds_another(value, place):
    header = [b"x", b"y"]
    header[place] = value
    with pytest.raises(RuntimeError, match="line break"):
        head(200, [(b"a", b"b"), tuple(header)])


def test_an_answer_before_the_end_of_the_body_is_the_last():
    answer = sent(start(LENGTH), body(b"good"), more_body=True)
    assert b"connection: close" in answer[0]


def test_http_1_0_gets_no_chunks():
    """The end of the connection is the end of the answer (RFC 9112, 6.1)."""
    pieces = (body(b"ab", more=True), body(b"c", more=True), body())
    found = sent(start(), *pieces, version="1.0", keep_alive=False)
    assert found == [
        b"HTTP/1.1 200 OK\r\nserver: s\r\nconnection: close\r\n\r\nab",
        b"c",
        "close",
        "next",
    ]
