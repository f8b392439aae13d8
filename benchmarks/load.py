"""HTTP load from one thread: closed loops of N clients, and Poisson arrivals at a rate.

In a closed loop each client sends its next request when it has the answer to the last. Arrivals of
an open loop do not wait for anything: their times are drawn beforehand, each takes a free
connection or opens one, and latencies count from the time that was drawn, also where the request
was sent later. So a server that stalls is charged for everything that arrived meanwhile.

Sockets, epoll and bytes that were prepared beforehand: an asyncio client costs several times the
processor time, which a server on the same cores would lack. What the client took is reported.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from benchmarks.load_answers import HttpAnswer, Reader
from benchmarks.load_results import Kind, Outcome, Record

MOST_CONNECTIONS = 1024  # of an open loop; arrivals above them wait, and their clock runs
READ_BYTES = 1 << 18
PATIENCE_SECONDS = 10.0  # for answers after the last request
WAKE_SECONDS = 0.1  # to look at the clock where nothing happens


@dataclass(frozen=True)
class Message:
    """A whole HTTP request, of how many images, and the body that answers it where that is known to
    the byte."""

    request: bytes
    images: int
    answer: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Closed:
    """`clients` connections, for `seconds` or until `requests` are sent."""

    clients: int
    seconds: float = float("inf")
    requests: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class Poisson:
    """`rate` requests a second for `seconds`, with exponential gaps."""

    rate: float
    seconds: float
    seed: int = 0
    connections: int = MOST_CONNECTIONS

    def times(self) -> NDArray[np.float64]:
        """When the requests arrive, in seconds from the start."""
        rng = np.random.default_rng(self.seed)
        expected = self.rate * self.seconds
        gaps = rng.exponential(1.0 / self.rate, int(expected + 10 * expected**0.5 + 10))
        times = np.cumsum(gaps)
        return times[times < self.seconds]


Load = Closed | Poisson


class _Connection:
    """A keep-alive connection and the request that it carries."""

    __slots__ = ("due", "left", "message", "reader", "sent", "sock", "watched")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = Reader()
        self.message: Message | None = None
        self.left = memoryview(b"")
        self.due = self.sent = 0.0
        self.watched = select.EPOLLIN


class Generator:
    """One measurement of a server on a port of the loopback.

    server_cpu: processor seconds of the server so far, read before and after.
    """

    def __init__(
        self,
        port: int,
        messages: Sequence[Message],
        server_cpu: Callable[[], float] = lambda: 0.0,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._address, self._messages = ("127.0.0.1", port), cycle(messages)
        self._server_cpu, self._patience = server_cpu, patience_seconds
        self._epoll = select.epoll()
        self._open: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._records: list[Record] = []
        self._busy = 0

    def run(self, load: Load) -> Outcome:
        """Send everything, await the answers, and say what became of them."""
        collecting = gc.isenabled()
        gc.collect()
        gc.disable()  # its pauses would be the server's latencies
        server, client = self._server_cpu(), time.thread_time()
        start = time.perf_counter()
        try:
            if isinstance(load, Closed):
                self._closed(load, start)
            else:
                self._poisson(load, start)
        finally:
            end = time.perf_counter()
            self._close()
            if collecting:
                gc.enable()
        return Outcome(
            records=self._records,
            start=start,
            seconds=end - start,
            offered=load.rate if isinstance(load, Poisson) else None,
            server_cpu_seconds=self._server_cpu() - server,
            client_cpu_seconds=time.thread_time() - client,
        )

    def _closed(self, load: Closed, start: float) -> None:
        end = start + load.seconds
        left = load.requests
        for connection in [self._connect() for _ in range(load.clients)]:
            self._send(connection, time.perf_counter())
            left -= 1
        deadline = end + self._patience if end < float("inf") else None
        while self._busy:
            self._receive(WAKE_SECONDS)
            now = time.perf_counter()
            if deadline is not None and now > deadline:
                break
            if now >= end or left <= 0:
                continue
            while left > 0 and (self._idle or len(self._open) < load.clients):
                connection = self._idle.pop() if self._idle else self._connect()
                self._send(connection, time.perf_counter())
                left -= 1

    def _poisson(self, load: Poisson, start: float) -> None:
        waiting = deque((start + load.times()).tolist())
        late: deque[float] = deque()
        end = start + load.seconds + self._patience
        while waiting or late or self._busy:
            now = time.perf_counter()
            while waiting and waiting[0] <= now:
                late.append(waiting.popleft())
            while late and (self._idle or len(self._open) < load.connections):
                self._send(self._idle.pop() if self._idle else self._connect(), late.popleft())
            if now > end:
                break
            self._receive(_until(waiting[0]) if waiting else WAKE_SECONDS)
        for due in late:
            self._records.append(Record(due, due, time.perf_counter(), 0, Kind.UNANSWERED))

    def _connect(self) -> _Connection:
        sock = socket.create_connection(self._address, timeout=5.0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        connection = _Connection(sock)
        self._open[sock.fileno()] = connection
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return connection

    def _send(self, connection: _Connection, due: float) -> None:
        connection.message = message = next(self._messages)
        connection.due, connection.sent = due, time.perf_counter()
        connection.left = memoryview(message.request)
        self._busy += 1
        self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        try:
            while connection.left:
                connection.left = connection.left[connection.sock.send(connection.left) :]
        except BlockingIOError:
            self._watch(connection, select.EPOLLIN | select.EPOLLOUT)
        except OSError:
            self._lost(connection)
        else:
            self._watch(connection, select.EPOLLIN)

    def _watch(self, connection: _Connection, events: int) -> None:
        if connection.watched != events:
            connection.watched = events
            self._epoll.modify(connection.sock.fileno(), events)

    def _receive(self, seconds: float) -> None:
        """What has come, or comes within `seconds`; epoll alone counts in milliseconds."""
        if seconds > 0.0:
            select.select([self._epoll.fileno()], [], [], seconds)
        for number, event in self._epoll.poll(0):
            connection = self._open.get(number)
            if connection is None:
                continue
            if event & ~select.EPOLLOUT:
                self._read(connection)
            elif connection.left:
                self._flush(connection)

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            answer = connection.reader.feed(data)
        except ValueError:
            answer, data = None, b""
        if answer is not None:
            self._answered(connection, answer)
        elif not data:
            self._lost(connection)

    def _answered(self, connection: _Connection, answer: HttpAnswer) -> None:
        message = connection.message
        if message is None or connection.left:  # an answer before, or amid, the request
            self._record(connection, Kind.BROKEN)
            self._drop(connection)
            return
        kind = Kind.of(answer.status)
        if kind is Kind.OK and message.answer is not None and answer.body != message.answer:
            kind = Kind.WRONG
        self._record(connection, kind)
        if answer.closes:
            self._drop(connection)
        else:
            self._idle.append(connection)

    def _record(self, connection: _Connection, kind: Kind) -> None:
        message = connection.message
        if message is None:
            return
        now = time.perf_counter()
        self._records.append(Record(connection.due, connection.sent, now, message.images, kind))
        connection.message = None
        self._busy -= 1

    def _lost(self, connection: _Connection) -> None:
        """The server has hung up: an error where it owed an answer."""
        self._record(connection, Kind.BROKEN)
        self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        self._open.pop(connection.sock.fileno(), None)
        with suppress(ValueError):
            self._idle.remove(connection)
        connection.sock.close()  # epoll forgets it

    def _close(self) -> None:
        """Hang up; who has not been answered by now is not going to be."""
        for connection in list(self._open.values()):
            self._record(connection, Kind.UNANSWERED)
            connection.sock.close()
        self._open.clear()
        self._epoll.close()


def _until(moment: float) -> float:
    """Seconds, or until the clock should be looked at again."""
    return max(0.0, min(WAKE_SECONDS, moment - time.perf_counter()))
