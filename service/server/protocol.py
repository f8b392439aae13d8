"""HTTP as uvicorn speaks it, with bounds that uvicorn has none for.

What an application sees begins with a complete head; until then a client could hold a connection
for ever, or send headers without end (and a long one takes time that grows with its square). And
one that does not read its answer would hold the answer's memory for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from service.api.security.admission import Admission

__all__ = ["BoundedHttp", "bounded_by"]

HEAD_SECONDS = 30.0  # from a connection, or a later request's first byte, to the end of its head
MAX_HEAD_BYTES = 65_536
WRITE_SECONDS = 60.0  # in which a client must have taken what fills the connection's buffer


class BoundedHttp(HttpToolsProtocol):
    """One connection. A head that is too slow ends it without an answer, one too long with 400; a
    client that stops reading, whatever was being sent."""

    admission: Admission | None = None  # may refuse a request before it is a task
    _head_timer: asyncio.TimerHandle | None = None  # runs while a head is awaited
    _write_timer: asyncio.TimerHandle | None = None  # runs while the buffer is full
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._end_head()
        self._end_write()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._begin_head()

    def on_headers_complete(self) -> None:
        """The last byte of its head."""
        self._end_head()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client: what does not complete a head counts towards its bound."""
        before = self._head_timer
        super().data_received(data)
        if before is None or self._head_timer is None or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            message = f"Headers above {MAX_HEAD_BYTES} bytes."
            self.logger.warning("refused a request: %s", message)
            self.send_400_response(message)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Begin with a request, or refuse it here: that takes half of the time, when all of the
        event loop's is needed for those that were taken."""
        gate, scope = self.admission, cast("Scope", cycle.scope)
        if gate is None or self.flow.write_paused or not gate.refuses(scope):
            super()._start_asgi_task(cycle, app)
            return
        status, headers, body = gate.whole_refusal(scope)
        lines = [STATUS_LINE[status]]
        lines += [b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        self.transport.write(b"".join((*lines, b"\r\n", body)))
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def pause_writing(self) -> None:
        """The buffer is full."""
        super().pause_writing()
        self._end_write()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It has drained."""
        self._end_write()
        super().resume_writing()

    def _end_write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _begin_head(self) -> None:
        self._end_head()
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bounded_by(admission: Admission) -> type[BoundedHttp]:
    """The protocol of a server whose requests `admission` may refuse."""
    return type("BoundedHttp", (BoundedHttp,), {"admission": admission})
