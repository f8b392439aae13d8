"""The load generator against real servers on the loopback that do what is asked of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from benchmarks.load_answers import Reader
from benchmarks.load_results import Kind

from benchmarks.load import Closed, Generator, Message, Poisson

GET = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbusy"
GONE = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
FAULT = b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"

Answer = Callable[[int], Awaitable[bytes]]  # of the number of the request; b"" hangs up


class Host:
    """An asyncio server in a thread of its own."""

    def __init__(self, answer: Answer) -> None:
        self._answer, self.requests, self.connections = answer, 0, 0
        self.port = 0

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                await reader.readexactly(len(GET))
                number, self.requests = self.requests, self.requests + 1
                answer = await self._answer(number)
                if not answer:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()  # connections that are open end with the loop

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)


@contextmanager
def hosting(answer: Answer) -> Iterator[Host]:
    host, ready = Host(answer), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(host.run(ready)))
    thread.start()
    assert ready.wait(5)
    try:
        yield host
    finally:
        host.stop()
        thread.join(10)
    assert not thread.is_alive()


async def at_once(_number: int) -> bytes:
    return OK


def of(answer: bytes) -> Answer:
    async def reply(_number: int) -> bytes:
        return answer

    return reply


def test_a_closed_loop_sends_the_next_request_with_the_answer_to_the_last():
    most = now = 0

    async def counted(_number: int) -> bytes:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.002)
        now -= 1
        return OK

    with hosting(counted) as host:
        outcome = Generator(host.port, [Message(GET, 3)]).run(Closed(clients=4, requests=50))
    found = outcome.figures()
    assert host.requests == found["requests"] == found["ok"] == 50
    assert host.connections == most == 4
    assert found["images_per_second"] == pytest.approx(150 / found["seconds"])
    assert found["p50_ms"] >= 2.0


def test_a_closed_loop_ends_in_time():
    with hosting(at_once) as host:
        began = time.perf_counter()
        outcome = Generator(host.port, [Message(GET, 1)]).run(Closed(clients=2, seconds=0.2))
        assert time.perf_counter() - began < 5.0
    assert outcome.figures()["ok"] == host.requests > 2


def test_poisson_times_have_the_rate_and_exponential_gaps():
    times = Poisson(rate=1000, seconds=20, seed=3).times()
    gaps = np.diff(times)
    assert 0 < times[0] < times[-1] < 20
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as exponential ones have
    assert (times != Poisson(rate=1000, seconds=20, seed=4).times()[: len(times)]).any()


def test_an_open_loop_does_not_wait_for_answers():
    """All requests are there while none is answered."""
    load = Poisson(rate=200, seconds=0.25)
    expected = len(load.times())
    together = asyncio.Event()

    async def answer(number: int) -> bytes:
        if number == expected - 1:
            together.set()
        await together.wait()
        return OK

    with hosting(answer) as host:
        outcome = Generator(host.port, [Message(GET, 1)]).run(load)
    assert outcome.figures()["ok"] == host.connections == expected


def test_latencies_count_from_the_schedule_where_requests_are_sent_late():
    """One connection and a server that stalls once: what arrived meanwhile is charged for it."""
    stall, load = 0.3, Poisson(rate=100, seconds=0.3, connections=1)

    async def stalls_first(number: int) -> bytes:
        await asyncio.sleep(stall if number == 0 else 0.0)
        return OK

    with hosting(stalls_first) as host:
        outcome = Generator(host.port, [Message(GET, 1)]).run(load)
    times, records = load.times(), outcome.records
    assert len(records) == len(times) == host.requests
    assert [r.due - outcome.start for r in records] == pytest.approx(times.tolist())
    released = records[0].due + stall
    late = [r for r in records[1:] if r.due < released - 0.01]
    assert len(late) > 5
    assert all(r.done - r.due >= released - r.due - 1e-3 for r in late)
    assert all(r.sent >= released - 1e-3 for r in late)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(BUSY, "refused"), (GONE, "refused"), (FAULT, "error"), (b"", "broken"), (b"no", "broken")],
)
def test_refusals_and_errors_are_counted_as_what_they_are(answer: bytes, kind: str):
    ends = answer if answer[:4] == b"HTTP" else answer + b"\r\n\r\n" * bool(answer)
    with hosting(of(ends)) as host:
        outcome = Generator(host.port, [Message(GET, 1)]).run(Closed(clients=2, requests=10))
    found = outcome.figures()
    assert found[kind] == found["requests"] == 10
    assert found["images_per_second"] == found["goodput"] == 0
    assert ("refused_p99_ms" in found) == (kind == "refused")
    assert "cpu_us" not in found


def test_who_is_not_answered_is_not_forgotten():
    async def never(_number: int) -> bytes:
        await asyncio.sleep(60)
        return OK

    with hosting(never) as host:
        generator = Generator(host.port, [Message(GET, 1)], patience_seconds=0.1)
        found = generator.run(Poisson(rate=100, seconds=0.2, connections=3)).figures()
        assert (
            found["unanswered"] == found["requests"] == len(Poisson(rate=100, seconds=0.2).times())
        )
        assert host.requests == 3
        generator = Generator(host.port, [Message(GET, 1)], patience_seconds=0.1)
        assert generator.run(Closed(clients=2, seconds=0.1)).figures()["unanswered"] == 2


def test_another_body_than_the_right_one_is_wrong():
    with hosting(at_once) as host:
        messages = [Message(GET, 1, b"ok"), Message(GET, 1, b"no")]
        outcome = Generator(host.port, messages).run(Closed(clients=1, requests=10))
    assert (outcome.figures()["ok"], outcome.figures()["wrong"]) == (5, 5)


def test_slow_answers_are_no_goodput_and_processor_time_is_of_the_answered():
    cpu = iter([1.0, 3.0])

    async def slow_second(number: int) -> bytes:
        await asyncio.sleep(0.1 if number % 2 else 0.0)
        return OK

    with hosting(slow_second) as host:
        generator = Generator(host.port, [Message(GET, 2)], lambda: next(cpu))
        outcome = generator.run(Closed(clients=1, requests=6))
    found = outcome.figures(good_seconds=0.05)
    assert found["goodput"] == pytest.approx(found["images_per_second"] / 2)
    assert found["cpu_us"] == pytest.approx(2e6 / 12)
    assert found["client_us"] > 0


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_answers_are_read_however_they_come(step: int):
    counted = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    chunked = (
        b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"4;x=y\r\nwiki\r\n5\r\npedia\r\n0\r\n\r\n"
    )
    reader, found = Reader(), []
    for stream in (counted, chunked, counted):
        for i in range(0, len(stream), step):
            answer = reader.feed(stream[i : i + step])
            if answer is not None:
                found.append((answer.status, answer.body, answer.closes))
    assert found == [(200, b"hello", True), (201, b"wikipedia", False), (200, b"hello", True)]


def test_kinds_have_names_that_figures_use():
    assert {kind.value for kind in Kind} >= {"ok", "refused", "wrong"}
    assert Kind.of(200) is Kind.OK
