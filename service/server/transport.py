"""The transport that a connection is written to, whose `close` its protocol decides about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["ClosedByProtocol"]

PASSED_ON = (
    "get_extra_info",
    "get_write_buffer_size",
    "is_closing",
    "pause_reading",
    "resume_reading",
    "set_protocol",
    "set_write_buffer_limits",
)


class ClosedByProtocol(asyncio.Transport):
    """`real`, but for `close`, which is what is given; most other methods are `real`'s own.

    What is written twice in a turn of the event loop goes out together: an answer is a head and a
    body, and two packets are two system calls here and two at the client's.
    """

    def __init__(
        self, real: asyncio.Transport, close: Callable[[], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        for name in PASSED_ON:  # an instance's attributes cost no call more
            setattr(self, name, getattr(real, name))
        self.real, self._close, self._loop = real, close, loop
        self._held: bytes | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, at the end of this turn at the latest."""
        if self._held is not None:
            held, self._held = self._held, None
            self.real.writelines((held, data))
        elif data:
            self._held = bytes(data)
            self._loop.call_soon(self._flush)

    def write_whole(self, data: bytes) -> None:
        """Send `data` now, which nothing follows that could go with it."""
        self._flush()
        self.real.write(data)

    def close(self) -> None:
        """Ask the protocol to end the connection."""
        self._flush()
        self._close()

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        self._held = None
        self.real.abort()

    def end_writing(self) -> None:
        """Tell the other side that nothing more comes; what it sends is still read."""
        self._flush()
        self.is_closing = lambda: True  # type: ignore[method-assign]
        self.real.write_eof()

    def _flush(self) -> None:
        held, self._held = self._held, None
        if held is not None and not self.real.is_closing():  # the client may have gone meanwhile
            self.real.write(held)
