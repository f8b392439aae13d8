"""How one answer is written: as uvicorn writes it, but its head with the first bytes of its body.

An answer is a head and a body. Written apart they are two packets, which are two system calls here
and two at the client's. uvicorn also looks at each header by two regular expressions, in upper and
in lower case: here a head is looked at once, as a whole.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

__all__ = ["Cycle", "head"]

BODILESS = (204, 304)


def head(status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
    """A status line and `headers`, whose names are in lower case, without the empty line behind.

    Raises RuntimeError where a header would be more than a line.
    """
    lines = [b"%b: %b\r\n" % header for header in headers]
    text = b"".join((STATUS_LINE[status], *lines))
    if not text.count(b"\n") == text.count(b"\r") == len(lines) + 1 or b"\0" in text:
        raise RuntimeError("a header of the answer has a line break in it")
    return text


class Cycle(RequestResponseCycle):
    """A request and its answer. uvicorn has no place to state it: `BoundedHttp` changes the class
    of those that uvicorn makes."""

    waiting = b""  # the head, until some body comes
    until_closed = False  # the answer ends with its connection: HTTP/1.0 knows no chunks

    async def send(self, message: Any) -> None:
        """As ASGI has it."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.response_started:
            self._begin(message["status"], message.get("headers", []))
        elif kind == "http.response.body" and self.response_started and not self.response_complete:
            self._go_on(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"no {kind!r} is expected here")

    def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.response_started, self.waiting_for_100_continue = True, False
        given, headers = (*self.default_headers, *headers), []
        for header in given:
            name, value = header
            if name == b"content-length":
                self.expected_content_length, self.chunked_encoding = int(value), False
            elif name == b"connection" and value.lower() == b"close":
                self.keep_alive = False
                continue  # it is said below, once
            headers.append(header)
        if self.more_body:
            # Some proxies (HAProxy 2.6) send another's request where the rest of this one's body
            # is expected, on a connection that stays open.
            self.keep_alive = False
        if not self.keep_alive:
            headers.append((b"connection", b"close"))
        if self.chunked_encoding is None and status not in BODILESS:
            self.until_closed = self.scope["http_version"] == "1.0"
            self.chunked_encoding = self.scope["method"] != "HEAD" and not self.until_closed
            if self.chunked_encoding:
                headers.append((b"transfer-encoding", b"chunked"))
        self.waiting = head(status, headers) + b"\r\n"

    def _go_on(self, body: bytes, *, more: bool) -> None:
        first, self.waiting = self.waiting, b""
        if self.scope["method"] == "HEAD":
            self.expected_content_length, body = 0, b""
        elif self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body += b"" if more else b"0\r\n\r\n"
        elif not self.until_closed:
            self.expected_content_length -= len(body)
        left = self.expected_content_length
        if left < 0 or (left > 0 and not more):
            raise RuntimeError("the answer is not as long as its Content-Length says")
        if first and body:
            self.transport.writelines((first, body))
        elif first or body:
            self.transport.write(first or body)
        if not more:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()
