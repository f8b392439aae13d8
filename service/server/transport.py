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
    "write",
    "writelines",
)


class ClosedByProtocol(asyncio.Transport):
    """`real`, but for `close`, which is what is given; most other methods are `real`'s own."""

    def __init__(self, real: asyncio.Transport, close: Callable[[], None]) -> None:
        for name in PASSED_ON:  # an instance's attributes cost no call more
            setattr(self, name, getattr(real, name))
        self.real, self._close = real, close

    def close(self) -> None:
        """Ask the protocol to end the connection."""
        self._close()

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        self.real.abort()

    def end_writing(self) -> None:
        """Tell the other side that nothing more comes; what it sends is still read."""
        self.is_closing = lambda: True  # type: ignore[method-assign]
        self.real.write_eof()
