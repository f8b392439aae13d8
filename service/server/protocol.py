"""HTTP as uvicorn speaks it, with bounds that uvicorn has none for.

What an application sees begins with a complete head, and ends with its answer. Before, between and
after, a client could hold a connection for ever, send bytes without end that belong to no body, or
leave its answer unread. So each state of a connection has an end (`_deadline`, looked at by one
timer), and all that is read is counted.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.api.response.problems import document_of
from service.api.security.admission import Admission
from service.api.security.middleware import SECURITY_HEADERS, request_id
from service.errors import BadRequest
from service.server.cycle import Cycle, head

__all__ = ["BoundedHttp"]

HEAD_SECONDS = 30.0  # from a connection, or a later request's first byte, to the end of its head
WRITE_SECONDS = 20.0  # in which a client takes 64 KiB of what waits for it, and a part of all
WRITE_BYTES, WRITE_PARTS = 2**16, 30
DRAIN_SECONDS = 10.0  # for the rest of a body whose request is answered already
CLOSE_SECONDS = 5.0  # for a client to hang up after the last answer
TICK_SECONDS = 1.0  # between two looks at these
MAX_HEAD_BYTES = 65_536  # of a head, of trailers, of what stands between chunks
MAX_HEADERS = 256  # all of them are looked through for each that is wanted
DRAIN_BYTES = 64 * 2**20  # of a body that nobody wants any more
MAX_PIPELINED = 64  # requests that wait behind one that is being answered
# Chunks of a byte take a thousand times as long to read as a large one: so many bytes are read at
# once, and after so many seconds of it others come first for so many.
AT_ONCE, READ_SECONDS, REST_SECONDS = 2**13, 0.004, 0.012
FRAMING = 16  # bytes that a body's byte may come with: chunks may be small
PASSED_ON = (
    "abort",
    "get_extra_info",
    "get_write_buffer_size",
    "is_closing",
    "pause_reading",
    "set_protocol",
    "set_write_buffer_limits",
    "write",
    "writelines",
)


class _NotReadError(Exception):
    """Ends the parser: nothing that follows is read."""


class _UnclearError(Exception):
    """What a head says that cannot be answered, in words for its sender."""


class _Nowhere(list[tuple[bytes, bytes]]):
    """Where trailers go: they are no headers, and nobody asks for them."""

    def append(self, _: tuple[bytes, bytes]) -> None:
        """Drop the trailer."""


NOWHERE = _Nowhere()


class ClosedByProtocol(asyncio.Transport):
    """`real`, but for `close` and `resume_reading`, which are what is given."""

    def __init__(
        self, real: asyncio.Transport, close: Callable[[], None], resume: Callable[[], None]
    ) -> None:
        for name in PASSED_ON:  # an instance's attributes cost no call more
            setattr(self, name, getattr(real, name))
        self.real, self.close = real, close  # type: ignore[method-assign]
        self.resume_reading = resume  # type: ignore[method-assign]

    def end_writing(self) -> None:
        """Tell the other side that nothing more comes; what it sends is still read."""
        self.is_closing = lambda: True  # type: ignore[method-assign]
        self.real.write_eof()


class BoundedHttp(HttpToolsProtocol):
    """One connection. A head that is too slow ends it without an answer, one too long with 400; a
    client that stops reading, whatever was being sent.

    What cannot be framed is answered with 400 when it is its turn; nothing after it is read.
    """

    transport: ClosedByProtocol
    _deadline = math.inf  # when the present state must have ended
    _write_deadline = math.inf  # when a full buffer must have drained
    _unsent, _step = 0, WRITE_BYTES  # bytes that waited for the client then; that it must take
    _taken: Callable[[], None] | None = None  # to be called when it has them
    _timer: asyncio.TimerHandle
    url = b""  # of the last request, as it stands in its head
    _active: Cycle | None = None  # the last that was begun with
    _refusing: Admission | None = None  # by whom it is refused, once its body is here
    _reading_head = False
    _outside = 0  # bytes that were read and belong to no body
    _heads = 0  # bytes of heads that came since the first that waits
    _unread = b""  # came already, and is read after the others had their turn
    _drained = 0  # bytes that were read for nobody
    _deaf = False  # what comes is thrown away
    _closing = False

    def __init__(self, *args: Any, admission: Admission | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._admission = admission

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(ClosedByProtocol(transport, self._close, self._resume))
        self._deadline = self.loop.time() + HEAD_SECONDS
        self._timer = self.loop.call_later(TICK_SECONDS, self._tick)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone: what is being answered hears of it, also where more was sent behind it."""
        self._timer.cancel()
        self._closing = self._deaf = True
        self._unread = b""
        self.pipeline.clear()
        self._abandon()
        self._forget_unsent()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client; those outside of bodies count towards their bound."""
        if self._deaf:
            self._throw_away(len(data))
        elif self._unread:
            self._unread += data  # came with what was read before the pause
        elif len(data) <= AT_ONCE:
            self._feed(data)
        else:
            self._read_in_pieces(data)

    def _read_in_pieces(self, data: bytes) -> None:
        """Read for some milliseconds; what is left then waits until others had their turn."""
        until = time.perf_counter() + READ_SECONDS
        for start in range(0, len(data), AT_ONCE):
            if self._deaf:
                self._throw_away(len(data) - start)
                return
            if time.perf_counter() > until:
                self._unread = data[start:]
                self.flow.pause_reading()
                self.loop.call_later(REST_SECONDS, self._go_on)
                return
            self._feed(data[start : start + AT_ONCE])

    def _go_on(self) -> None:
        data, self._unread = self._unread, b""
        if not data:
            return  # the connection is lost
        self._read_in_pieces(data)
        if not self._unread and not self.transport.is_closing():
            self.flow.read_paused = True  # whoever resumed it did so for nothing
            self.flow.resume_reading()

    def _resume(self) -> None:
        """Let more come, but where what came before is not read yet: it would have no end."""
        if not self._unread:
            self.transport.real.resume_reading()

    def _feed(self, data: bytes) -> None:
        self._outside += len(data)
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                self._decline(data, offer.args[0])
        except httptools.HttpParserError as error:
            if not self._deaf:
                unclear = isinstance(error.__context__, _UnclearError)
                self.send_400_response(str(error.__context__) if unclear else _why(error))
            return
        if self._outside > MAX_HEAD_BYTES and not self._deaf:
            self.send_400_response(f"Headers above {MAX_HEAD_BYTES} bytes.")

    def pause_writing(self) -> None:
        """The transport's write buffer is full."""
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._step = max(WRITE_BYTES, self._unsent // WRITE_PARTS)
        self._write_deadline = self.loop.time() + WRITE_SECONDS
        if self._admission is not None and self._active is not None:
            self._taken = self._admission.unread(cast("Scope", self._active.scope), self._unsent)

    def resume_writing(self) -> None:
        """The write buffer has room again."""
        self._write_deadline = math.inf
        self._forget_unsent()
        super().resume_writing()

    def _forget_unsent(self) -> None:
        if self._taken is not None:
            self._taken()
            self._taken = None

    def _tick(self) -> None:
        now = self.loop.time()
        if self._write_deadline < math.inf:
            self._look_at_reader(now)
        late = now >= self._deadline
        if now >= self._write_deadline or (late and self._closing):
            self.transport.abort()
            return
        if late and self._refusing is not None:
            self._refuse()
        elif late and self._answering():
            self._end_after_answers()
        elif late:
            self.transport.close()
        self._timer = self.loop.call_later(TICK_SECONDS, self._tick)

    def _look_at_reader(self, now: float) -> None:
        """A client that takes an answer in steps has as long again for the next."""
        unsent = self.transport.get_write_buffer_size()
        if unsent <= self._unsent - self._step:
            self._unsent, self._write_deadline = unsent, now + WRITE_SECONDS
            if self._closing:
                self._deadline = self._write_deadline

    def _answering(self) -> bool:
        return self._active is not None and not self._active.response_complete

    def _abandon(self) -> None:
        """Tell the application that its client has gone: nobody waits for the answer."""
        if self._active is not None and not self._active.response_complete:
            self._active.disconnected = True
            self._active.message_event.set()

    def _close(self) -> None:
        """Nothing more is written. While a client still sends it is let, within bounds: closed at
        once, its system would throw away what it has not yet read of the answer."""
        if self._closing:
            return
        sends = self._deaf or (self.cycle is not None and self.cycle.more_body)
        self._closing = self._deaf = True
        unsent = self.transport.get_write_buffer_size()
        seconds = DRAIN_SECONDS if sends else CLOSE_SECONDS
        self._deadline = self.loop.time() + (WRITE_SECONDS if unsent else seconds)
        if sends:
            self.flow.resume_reading()
            self.transport.end_writing()
        else:
            self.transport.real.close()

    def _end_after_answers(self) -> None:
        """Close when all that was taken is answered; nothing more is taken."""
        self._deaf, self._reading_head, self._deadline = True, False, math.inf
        last = self.pipeline[0][0] if self.pipeline else self._active
        assert last is not None  # noqa: S101 - somebody is being answered
        last.keep_alive = False
        self.flow.resume_reading()  # to notice a hang-up

    def _throw_away(self, size: int) -> None:
        self._drained += size
        if self._drained > DRAIN_BYTES:
            self._deaf = True
            self.transport.abort()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._deaf or len(self.pipeline) >= MAX_PIPELINED:
            if not self._deaf:
                self._end_after_answers()
            raise _NotReadError
        self._reading_head = True
        self._deadline = self.loop.time() + HEAD_SECONDS
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The last byte of its head."""
        if self.parser.should_upgrade():
            return  # the parser will stop behind it: `_decline`
        self._check_head()
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # such a client knows no 100 (RFC 9110, 10.1.1)
        self._reading_head, self._deadline = False, math.inf
        headers = self.headers
        super().on_headers_complete()
        self.headers = NOWHERE
        if self.pipeline:
            if len(self.pipeline) == 1:
                self._heads = 0
            self._heads += sum(len(name) + len(value) for name, value in headers)
            self._read_on()

    def _check_head(self) -> None:
        """Raises _UnclearError where a proxy before this could have read another request (RFC 9112,
        3.2 and 6.1): without one host, or with a coding that nobody undoes here. Cookies are left
        out: nobody reads one, and Python takes quadratic time to unquote some (CVE-2024-7592).
        """
        if len(self.headers) > MAX_HEADERS:
            raise _UnclearError(f"A request has at most {MAX_HEADERS} headers.")
        hosts, cookies = 0, False
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"cookie":
                cookies = True
            elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise _UnclearError("Transfer-Encoding may only be chunked.")
        if hosts != 1 and (hosts or self.parser.get_http_version() != "1.0"):
            raise _UnclearError("A request names one Host.")
        if cookies:
            self.headers[:] = [header for header in self.headers if header[0] != b"cookie"]

    def on_body(self, body: bytes) -> None:
        """A part of a body has come."""
        cycle, size = self.cycle, len(body)
        self._outside = max(0, self._outside - FRAMING * size)
        if cycle.response_complete:
            self._throw_away(size)
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        if self._reading_head:
            return  # an offer of an upgrade
        cycle = self.cycle
        self._outside, cycle.more_body = 0, False
        if cycle.keep_alive and not self.parser.should_keep_alive():
            cycle.keep_alive = False  # a trailer said so, and the parser reads no more
            if cycle.response_complete:
                self.transport.close()
                return
        if cycle.response_complete:
            self._idle()
        elif self._refusing is not None and cycle is self._active:
            self._refuse()
        else:
            cycle.message_event.set()

    def _decline(self, data: bytes, end: int) -> None:
        """Read the requests of `data` without their offers of another protocol (h2c, websocket).

        `end`: where the head of the first such request ends. The parser takes no body after an
        offer, so another one gets the head again without it. Raises HttpParserError for CONNECT,
        where nobody knows what follows.
        """
        while True:
            if self.parser.get_method() == b"CONNECT":
                raise httptools.HttpParserError("CONNECT is not served")
            version = self.parser.get_http_version().encode("ascii")
            head = [b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)]
            head += [b"%b: %b\r\n" % h for h in self.headers if h[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self.parser.feed_data(b"".join((*head, b"\r\n")))
            data = cast("bytes", memoryview(data)[end:])
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                end = offer.args[0]
            else:
                return

    def _read_on(self) -> None:
        """Read behind a request that is being answered, so that a hang-up is noticed; a little."""
        held = self._heads + sum(len(cycle.body) for cycle, _ in self.pipeline)
        if self._active is not None:
            held += len(self._active.body)
        if len(self.pipeline) < MAX_PIPELINED and held <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Begin with a request, or refuse it here: that takes half of the time, when all of the
        event loop's is needed for those that were taken."""
        cycle.__class__ = Cycle
        self._active = cast("Cycle", cycle)
        admission = self._admission
        scope = cast("Scope", cycle.scope)
        if admission is None or self.flow.write_paused or not admission.refuses(scope):
            super()._start_asgi_task(cycle, app)
            return
        self._refusing = admission
        if cycle.more_body and not cycle.waiting_for_100_continue and _is_short(scope):
            # Answered before its body is here, the connection could not stay open.
            self._deadline = self.loop.time() + DRAIN_SECONDS
        else:
            self._refuse()

    def _refuse(self) -> None:
        cycle, admission, self._refusing = self._active, self._refusing, None
        assert cycle is not None  # noqa: S101 - it is what is refused
        assert admission is not None  # noqa: S101 - which refuses
        status, headers, body = admission.whole_refusal(cast("Scope", cycle.scope))
        headers = [*cycle.default_headers, *headers]
        if cycle.more_body:
            cycle.keep_alive = False  # as in Cycle
        if not cycle.keep_alive:
            headers.append((b"connection", b"close"))
        self.transport.write(head(status, headers) + b"\r\n" + body)
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        if self.pipeline:  # not within each other: many may wait
            self.loop.call_soon(self.on_response_complete)
        else:
            self.on_response_complete()

    def on_response_complete(self) -> None:
        """An answer has been written: the next request's turn, or nobody's."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self.cycle.more_body:  # a refusal: the rest is on its way
            self._drained, self._deadline = 0, self.loop.time() + DRAIN_SECONDS
        elif not self._reading_head:
            self._idle()

    def _idle(self) -> None:
        if not self._closing:
            self._deadline = self.loop.time() + self.timeout_keep_alive

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be framed if it is its turn; nothing after it is read."""
        self.logger.warning("refused a request: %s", msg)
        if self._admission is not None:
            self._admission.malformed()
        self._deaf = True
        active = self._active
        if active is None or active.response_complete:
            self._say_400(msg)
        elif active is not self.cycle or not active.more_body:  # it stands behind others
            if self.cycle.more_body:
                self.pipeline.popleft()
            self._end_after_answers()
        elif active.response_started and not active.waiting:
            self._abandon()
            self.transport.close()
        else:
            self._abandon()
            self._say_400(msg)

    def _say_400(self, why: str) -> None:
        path = self.url.partition(b"?")[0].decode("latin-1")
        scope: Scope = {"path": path, "headers": []}
        name = request_id(scope)
        scope["state"] = {"request_id": name.decode("ascii")}
        body, media_type = document_of(BadRequest(why), scope)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", media_type.encode("ascii")),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", name),
            *SECURITY_HEADERS,
            (b"connection", b"close"),
        ]
        self.transport.write(head(400, headers) + b"\r\n" + body)
        self.transport.close()


def _is_short(scope: Scope) -> bool:
    """Whether all of the request's body comes at once, or nearly so."""
    headers = dict(scope["headers"])
    return b"transfer-encoding" not in headers and int(headers.get(b"content-length", 0)) <= AT_ONCE


def _why(error: httptools.HttpParserError) -> str:
    """What the parser says, where it is about the request and not about our callbacks."""
    is_ours = isinstance(error, httptools.HttpParserCallbackError)
    return "The request is not valid HTTP/1.1" + ("." if is_ours else f": {error}.")
