"""Taking connections, many in a turn of the event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

__all__ = ["Acceptor"]

logger = logging.getLogger("iafvae")
AT_ONCE = 256  # connections of a turn; others wait for the next
REST_SECONDS = 1.0  # where the process has no file descriptor left


class Acceptor:
    """Gives each connection of `listener` a protocol, as a server of the event loop's does.

    uvloop's takes one connection of a listener in a turn of the event loop: when turns are long,
    new clients would wait for seconds beside others that are answered at once.
    """

    def __init__(
        self, listener: socket.socket, make_protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener, self._make_protocol = listener, make_protocol
        self._starting: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Stop accepting connections."""
        self._loop.remove_reader(self._listener)
        self._listener.close()

    async def wait_closed(self) -> None:
        """Wait until every accepted connection has its protocol."""
        await asyncio.gather(*self._starting)

    def _listen(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                logger.warning("no connection can be taken (%s)", error.strerror)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(REST_SECONDS, self._listen)
                return
            task = self._loop.create_task(self._take(connection))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _take(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError as error:  # it has gone already
            connection.close()
            logger.debug("a connection ended before it began (%s)", error.strerror)
