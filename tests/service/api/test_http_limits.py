"""Limits are checked before the work they protect from, and bad requests harm nobody else."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.codecs.npy import encode_npy
from service.settings import Settings

NPY = {"content-type": "application/x-npy"}


def test_declared_length_is_refused_unread(serve, problem):
    client = serve(max_body_bytes=100)

    async def ask():
        sent = []
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "path": "/v1/score", "raw_path": b"/v1/score", "query_string": b"", "root_path": "",
            "scheme": "http", "server": ("t", 80), "client": ("c", 1),
            "headers": [(b"content-length", b"101"), (b"content-type", b"application/x-npy")],
        }  # fmt: skip

        async def receive():
            raise AssertionError("the body was read")

        async def send(message):
            sent.append(message)

        await client.app(scope, receive, send)
        return sent[0]["status"]

    assert client.run(ask()) == 413
    problem(client.post("/v1/score", content=b"x" * 101, headers=NPY), 413, "payload-too-large")


def test_a_body_of_just_the_limit_is_taken(serve, digits):
    body = encode_npy(digits)
    assert serve(max_body_bytes=len(body)).post("/v1/score", content=body, headers=NPY).is_success
    smaller = serve(max_body_bytes=len(body) - 1)
    assert smaller.post("/v1/score", content=body, headers=NPY).status_code == 413


def test_streamed_bodies_are_counted(serve):
    client = serve(max_body_bytes=1000)
    chunks = 0

    async def ask():
        nonlocal chunks

        async def endless():
            nonlocal chunks
            while True:
                chunks += 1
                yield b"x" * 100

        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as http:
            return await http.post("/v1/score", content=endless(), headers=NPY)

    assert client.run(ask()).status_code == 413
    assert chunks <= 12


def test_a_body_that_does_not_come_times_out(serve):
    client = serve(body_timeout_seconds=0.05)

    async def ask():
        async def slow():
            yield b"x"
            await asyncio.sleep(5)

        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as http:
            return await http.post("/v1/score", content=slow(), headers=NPY)

    response = client.run(ask())
    assert response.status_code == 408
    assert response.json()["type"].endswith("request-timeout")


def test_bodies_together_are_bounded_and_given_back(serve, problem):
    client = serve(max_body_bytes=1000, max_buffered_bytes=1500)
    buffers = client.app.state.shared.admission.bytes
    client.post("/v1/score", content=b"x" * 900, headers=NPY)
    assert buffers.held == 0
    buffers.take("another", 1000)
    answer = client.post("/v1/score", content=b"x" * 900, headers=NPY)
    problem(answer, 429, "overloaded")
    assert answer.headers["retry-after"] == "1"
    assert buffers.held == 1000


def test_answers_are_held_until_they_are_sent(serve, problem):
    client = serve(max_buffered_bytes=2**20, max_body_bytes=2**10)
    buffers = client.app.state.shared.admission.bytes
    large = {"params": {"n": 1024}}  # in JSON 100 kB
    assert len(client.post("/v1/sample", **large).content) > 2**16
    assert buffers.held == 0
    buffers.take("127.0.0.1", 2**19, anyway=True)  # answers that it has not read
    detail = problem(client.post("/v1/sample", **large), 429, "overloaded")
    assert "read your answers" in detail
    assert client.post("/v1/sample").status_code == 200
    assert buffers.held == 2**19


def test_large_arrays_that_fit_have_their_holders_turn(serve, digits, monkeypatch):
    """They were converted in threads that one caller could fill."""
    client, turns = serve(), []
    threads = client.app.state.shared.threads
    run = threads.run

    async def counted(work, *, caller):
        turns.append(caller)
        return await run(work, caller=caller)

    monkeypatch.setattr(threads, "run", counted)
    monkeypatch.setattr("service.api.request.inputs.INLINE_PIXELS", digits.size - 1)
    answer = client.post("/v1/score", content=encode_npy(digits), headers=NPY)
    assert answer.status_code == 200
    assert turns == ["127.0.0.1"]
    assert client.app.state.shared.decoders.processes == 0


def test_deadlines_pass(serve, problem):
    client = serve(timeout_seconds=1e-6)
    problem(client.post("/v1/sample"), 504, "deadline-exceeded")
    longer = client.post("/v1/sample", headers={"x-iafvae-timeout-seconds": "60"})
    problem(longer, 504, "deadline-exceeded")  # a wish for more is not heard


def test_no_answer_before_the_models_are_loaded(tiny_bundle, problem):
    app = create_app(Settings(models=tiny_bundle))  # without its lifespan

    async def ask(method, path):
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://t"
        ) as http:
            return await http.request(method, path)

    problem(asyncio.run(ask("POST", "/v1/sample")), 503, "shutting-down")
    assert asyncio.run(ask("GET", "/readyz")).status_code == 503
    assert asyncio.run(ask("GET", "/livez")).status_code == 200


HOSTILE = [
    ("/v1/score", encode_npy(np.zeros((1, 9, 9), np.uint8)), NPY),
    ("/v1/score", b"\x93NUMPY", NPY),
    ("/v1/sample", b'{"n": 0}', {"content-type": "application/json"}),
    ("/v1/decode", encode_npy(np.full((1, 3), np.inf, np.float32)), NPY),
    ("/v1/score", b"not a png", {"content-type": "image/png"}),
]


def test_requests_beside_bad_ones_are_unharmed(server, digits):
    body = encode_npy(digits)
    reference = server.post("/v1/score", content=body, headers=NPY).json()["results"]

    async def crowd():
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as http:
            good = [http.post("/v1/score", content=body, headers=NPY) for _ in range(20)]
            bad = [http.post(path, content=content, headers=h) for path, content, h in HOSTILE * 4]
            pairs = zip(good, bad, strict=True)
            answers = await asyncio.gather(*(one for pair in pairs for one in pair))
            assert all(400 <= answer.status_code < 500 for answer in answers[1::2])
            return answers[::2]

    for answer in server.run(crowd()):
        assert answer.json()["results"] == reference


OPERATIONS = ("sample", "score", "encode", "decode", "reconstruct", "interpolate")
KINDS = (
    "application/json",
    "application/x-npy",
    "image/png",
    "multipart/form-data; boundary=a",
    "",
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(OPERATIONS),
    st.one_of(st.binary(max_size=100), st.text(max_size=60).map(str.encode), st.just(b"\x93NUMPY")),
    st.sampled_from(KINDS),
    st.dictionaries(st.sampled_from(["n", "seed", "model", "x"]), st.text(max_size=9), max_size=2),
)
def test_whatever_comes_it_is_answered(server, operation, body, kind, query):
    headers = {"content-type": kind} if kind else {}
    answer = server.post(f"/v1/{operation}", content=body, headers=headers, params=query)
    assert answer.status_code < 500
    if answer.status_code != 200:
        assert answer.headers["content-type"] == "application/problem+json"
