"""Answers that are computed while they are sent: the same bytes, in flat memory, and never a part
that looks whole."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import tracemalloc
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import uvicorn

from service.api.response.streaming import stream_images
from service.app import create_app
from service.client import Client, ServiceUnreachable
from service.codecs.npy import decode_npy
from service.errors import EngineFailure, NonFiniteInput, Overloaded
from service.operations.model import MAX_PIECE_ROWS, piece_rows
from service.operations.results import Images
from service.scheduler.work import SampleWork, positions
from service.server.protocol import BoundedHttp
from service.settings import Settings

NPY = {"accept": "application/x-npy"}


def sample(client, n, **options):
    return client.post("/v1/sample", params={"n": n, **options}, headers=NPY)


def images_of(answer):
    assert answer.status_code == 200, answer.text
    return decode_npy(answer.content, dtypes=("uint8",), max_items=10**8)


def test_a_streamed_answer_has_the_bytes_of_one_that_is_not(serve):
    whole = sample(serve(max_n=2500), 2500, seed=3, output="draw")
    client = serve(max_n=10)
    parts = sample(client, 2500, seed=3, output="draw")
    assert parts.content == whole.content
    for name in ("content-length", "x-iafvae-seed", "x-iafvae-bundle", "content-type"):
        assert parts.headers[name] == whole.headers[name]
    assert "x-iafvae-compute-seconds" in parts.headers
    assert (
        client.metric("iafvae_requests_total", operation="sample", model="tiny", outcome="ok") == 1
    )


def test_variations_are_streamed_too(serve):
    client = serve(max_n=10)
    body = {"prior_eps": [[0.1, 0.2, 0.3]], "n": 1500, "resample": ["z"], "seed": 4}
    answer = client.post("/v1/sample", json=body, headers=NPY)
    assert np.array_equal(images_of(answer), images_of(sample(client, 1500, seed=4)))


def test_what_is_not_streamed_has_the_smaller_limit(serve, problem):
    client = serve(max_n=10, max_stream_n=2000)
    for answer in (client.post("/v1/sample?n=11"), sample(client, 2001)):
        detail = problem(answer, 413, "payload-too-large")
        assert "limit of 10" in detail
        assert "2000" in detail
    assert len(images_of(sample(client, 2000))) == 2000


def test_the_clients_pieces_are_the_whole(server):
    client = Client(http=server)
    n = client.model()["limits"]["max_n"] + 300
    pieces = list(client.stream(n, seed=1, temperature=0.5))
    assert np.array_equal(np.concatenate(pieces), client.sample(n, seed=1, temperature=0.5).images)


# ------------------------------------------------------------------ how much is computed


def scope_of(path, query):
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "scheme": "http", "server": ("t", 80), "client": ("c", 1),
        "headers": [(b"accept", b"application/x-npy")],
    }  # fmt: skip


class Reader:
    """A client that takes as many messages as it is let, then hangs up when told."""

    def __init__(self, messages):
        self.allowed = asyncio.Semaphore(messages)
        self.gone = asyncio.Event()
        self.bytes = 0
        self._asked = False

    async def receive(self):
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b""}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await self.allowed.acquire()
        self.bytes += len(message.get("body", b""))


def rows_done(client):
    return client.metric("iafvae_batch_rows_sum", operation="sample", model="tiny")


def test_a_client_that_reads_slowly_holds_the_computation_up(serve):
    client = serve(max_n=10, max_stream_n=10**6)

    async def read():
        reader = Reader(3)  # the head and two pieces
        scope = scope_of("/v1/sample", "n=1000000&seed=0")
        task = asyncio.create_task(client.app(scope, reader.receive, reader.send))
        for pieces in (4, 5):  # two that were taken, one that waits, and one ahead of it
            async with asyncio.timeout(60):
                while rows_done(client) < pieces * MAX_PIECE_ROWS:  # noqa: ASYNC110 - a metric wakes nobody
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            assert rows_done(client) == pieces * MAX_PIECE_ROWS
            reader.allowed.release()
        reader.gone.set()
        async with asyncio.timeout(60):
            await task
        return rows_done(client)

    assert client.run(read()) <= 7 * MAX_PIECE_ROWS, "a disconnect cancels the rest"
    labels = {"operation": "sample", "model": "tiny", "outcome": "client-gone"}
    assert client.metric("iafvae_requests_total", **labels) == 1
    assert client.metric("iafvae_queue_rows", operation="sample", model="tiny") == 0


def test_both_pieces_of_a_stream_are_counted_while_it_lasts(serve):
    client = serve(max_n=10)
    admission = client.app.state.shared.admission
    piece = MAX_PIECE_ROWS * 16

    async def read():
        reader = Reader(1)  # the head
        scope = scope_of("/v1/sample", "n=100000&seed=0")
        task = asyncio.create_task(client.app(scope, reader.receive, reader.send))
        async with asyncio.timeout(60):
            while not admission.bytes.held:  # noqa: ASYNC110 - a counter wakes nobody
                await asyncio.sleep(0.01)
        found = [admission.bytes.held]
        for waits in (piece, piece + 2**16):  # in the transport
            taken = admission.unread(scope, waits)
            found.append(admission.bytes.held)
            taken()
        reader.gone.set()
        await task
        return [*found, admission.bytes.held]

    two, both, more, none = client.run(read())
    assert two == both == pytest.approx(2 * piece, rel=0.02), "what is sent, and what is made"
    assert more == pytest.approx(two + 2**16, abs=200)
    assert none == 0


def test_memory_does_not_grow_with_the_answer(serve):
    client = serve(max_n=10)

    def peak(n):
        async def read():
            reader = Reader(10**9)
            scope = scope_of("/v1/sample", f"n={n}&seed=0")
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            await client.app(scope, reader.receive, reader.send)
            assert reader.bytes > 16 * n
            return tracemalloc.get_traced_memory()[1] - before

        return client.run(read())

    tracemalloc.start()
    try:
        small = max(peak(4 * MAX_PIECE_ROWS) for _ in range(2))
        large = peak(24 * MAX_PIECE_ROWS)
    finally:
        tracemalloc.stop()
    body = 20 * MAX_PIECE_ROWS * 16  # what the larger one has more
    assert large - small < body / 4


# ------------------------------------------------------------------ what goes wrong on the way


def images(rows, finite=True):
    good = np.full(rows, True)
    good[-1] = finite
    pixels = np.zeros((rows, 1, 512, 512), np.uint8)
    return Images(images=pixels, finite=good, queue_seconds=0.0, compute_seconds=0.0)


def first_of(work):
    _, streams, _ = work.keys(0, 1)
    return int(streams[0])


class Drawing:
    """A model whose images are what `draw(first, rows)` gives."""

    def __init__(self, draw):
        self._draw = draw
        self.manifest = SimpleNamespace(image=SimpleNamespace(shape=(1, 512, 512), dims=512 * 512))

    async def draw(self, work, **options):
        return await self._draw(first_of(work), work.rows)


def run_stream(draw, n, seconds=5.0):
    work = SampleWork(
        keys=positions(0),
        temperature=np.ones((n, 1), np.float32),
        output="mean",
    )

    async def all_of_it():
        deadline = time.monotonic() + seconds
        answer = await stream_images(Drawing(draw), work, seconds, caller="", deadline=deadline)
        size = len(answer.body)
        async for piece in answer.rest:
            size += len(piece)
        return size, int(dict(answer.raw_headers)[b"content-length"])

    return asyncio.run(all_of_it())


def test_a_full_queue_is_waited_for():
    refusals = iter([None, Overloaded("full", 0.01), Overloaded("full", 0.01), None, None])

    async def draw(first, rows):
        if (error := next(refusals)) is not None:
            raise error
        return images(rows)

    size, length = run_stream(draw, 3)
    assert size == length
    assert next(refusals, "all used") == "all used"


def test_a_queue_that_stays_full_ends_the_answer():
    async def draw(first, rows):
        if first:
            raise Overloaded("full", 0.02)
        return images(rows)

    with pytest.raises(Exception, match="stayed full"):
        run_stream(draw, 3, seconds=0.05)


@pytest.mark.parametrize("bad", [0, 2])
def test_images_that_are_no_numbers_end_the_answer(bad):
    async def draw(first, rows):
        return images(rows, finite=first != bad)

    with pytest.raises(NonFiniteInput, match=f"image {bad} has a mean that is no number"):
        run_stream(draw, 4)


def test_what_makes_no_numbers_is_the_callers(serve, problem):
    client = serve(max_n=10)
    answer = sample(client, 1500, temperature=3e38, seed=0)
    assert "no number" in problem(answer, 422, "non-finite-input")


def test_pieces_are_bounded_in_bytes():
    assert piece_rows(512 * 512) == 1
    assert piece_rows(10**9) == 1
    assert piece_rows(28 * 28) == 334
    assert piece_rows(1) == MAX_PIECE_ROWS


@pytest.fixture
def listening(tiny_bundle):
    """An application behind uvicorn in a thread: the runtime can be broken from here."""
    app = create_app(Settings(models=tiny_bundle, provider="cpu", max_n=10))
    config = uvicorn.Config(app, port=0, log_config=None, http=BoundedHttp, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield app.state.shared, port
    server.should_exit = True
    thread.join()


def count(context, outcome):
    labels = {"operation": "sample", "model": "tiny", "outcome": outcome}
    return context.metrics.registry.get_sample_value("iafvae_requests_total", labels) or 0


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_an_error_on_the_way_is_seen(listening, monkeypatch):
    context, port = listening
    runtime = context.registry.find().runtime
    whole = runtime.draw

    async def breaking(work, **options):
        if first_of(work) >= 5 * MAX_PIECE_ROWS:
            raise EngineFailure("the fifth piece fails")
        return await whole(work, **options)

    monkeypatch.setattr(runtime, "draw", breaking)
    url = f"http://127.0.0.1:{port}"
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        httpx.post(f"{url}/v1/sample?n=20000", headers=NPY)
    with Client(url) as client, pytest.raises(ServiceUnreachable, match="broke its answer off"):
        list(client.stream(20_000))
    assert httpx.post(f"{url}/v1/sample?n=4").json()["shape"][0] == 4
    wait_for(lambda: count(context, "engine-failure") == 2)


def test_an_error_at_the_start_is_a_problem_document(listening, monkeypatch, problem):
    context, port = listening
    runtime = context.registry.find().runtime

    async def broken(*_args, **_options):
        raise EngineFailure("the first piece fails")

    monkeypatch.setattr(runtime, "draw", broken)
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/sample?n=20000", headers=NPY)
    assert "first piece" in problem(answer, 500, "engine-failure")


def test_a_client_that_hangs_up_ends_the_computation(listening):
    context, port = listening
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = "POST /v1/sample?n=1000000 HTTP/1.1\r\nhost: t\r\naccept: application/x-npy\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    wait_for(lambda: count(context, "client-gone") == 1)
    labels = {"operation": "sample", "model": "tiny"}
    done = context.metrics.registry.get_sample_value("iafvae_batch_rows_sum", labels)
    assert done < 900_000
