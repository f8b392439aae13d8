"""Compressed requests to the native operations: the same answers, and the same limits."""

from __future__ import annotations

import gc
import gzip
import tracemalloc
import zlib

import numpy as np
import pytest

from service.codecs.npy import encode_npy

NPY = {"content-type": "application/x-npy"}
PACKED = pytest.mark.parametrize(
    ("pack", "encoding"), [(gzip.compress, "gzip"), (zlib.compress, "deflate")]
)


@PACKED
def test_images_may_come_compressed(server, digits, pack, encoding):
    body = encode_npy(np.tile(digits, (40, 1, 1, 1)))
    accept = NPY | {"accept": "application/x-npy"}
    plain = server.post("/v1/score", content=body, headers=accept)
    headers = accept | {"content-encoding": encoding}
    packed = server.post("/v1/score", content=pack(body), headers=headers)
    assert packed.status_code == plain.status_code == 200
    assert packed.content == plain.content


def test_codings_may_be_named_on_several_lines(server, problem):
    def post(body, *codings):
        lines = [("content-type", "application/json"), *(("content-encoding", c) for c in codings)]
        return server.post("/v1/sample", content=body, headers=lines)

    packed = gzip.compress(b'{"n": 2, "seed": 5}')
    assert post(packed, "identity", "gzip").json() == post(packed, "gzip").json()
    problem(post(gzip.compress(packed), "gzip", "gzip"), 415, "unsupported-media-type")


@pytest.mark.parametrize(("name", "status"), [("content-encoding", 415), ("accept-encoding", 200)])
def test_long_headers_are_not_remembered(server, name, status):
    infer = {"inputs": [{"name": "seed", "datatype": "INT64", "shape": [1], "data": [1]}]}

    def ask(start):
        for index in range(start, start + 40):
            headers = {name: f"{index}" + "x" * 60_000}
            answer = server.post("/v2/models/tiny.sample/infer", json=infer, headers=headers)
            assert answer.status_code == status

    ask(0)
    tracemalloc.start()
    try:
        ask(40)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2**20


@PACKED
def test_options_may_come_compressed(server, pack, encoding):
    plain = server.post("/v1/sample", json={"n": 2, "seed": 5})
    headers = {"content-type": "application/json", "content-encoding": encoding}
    packed = server.post("/v1/sample", content=pack(b'{"n": 2, "seed": 5}'), headers=headers)
    assert packed.json() == plain.json()


def test_what_is_in_it_has_the_limits_of_what_comes_plain(serve, digits, problem):
    client = serve(max_body_bytes=100_000, max_buffered_bytes=150_000)
    headers = NPY | {"content-encoding": "gzip"}
    bomb = gzip.compress(bytes(10_000_000))
    answer = client.post("/v1/score", content=bomb, headers=headers)
    assert "decompressed" in problem(answer, 413, "payload-too-large")
    cut = gzip.compress(encode_npy(digits))[:-1]
    answer = client.post("/v1/score", content=cut, headers=headers)
    assert "cut off" in problem(answer, 400, "malformed-body")
    buffers = client.app.state.shared.admission.bytes
    buffers.take("another", 100_000)
    held = gzip.compress(encode_npy(np.tile(digits, (1000, 1, 1, 1))))
    answer = client.post("/v1/score", content=held, headers=headers)
    assert "held at once" in problem(answer, 429, "overloaded")
    buffers.give("another", 100_000)
    whole = gzip.compress(encode_npy(digits))
    assert client.post("/v1/score", content=whole, headers=headers).status_code == 200
    assert buffers.held == 0


def test_decompressing_is_done_in_turns_of_holders(server, digits, monkeypatch):
    """Under the name that shares are counted by: a caller may send many bodies at once."""
    threads, callers = server.app.state.shared.threads, []
    run = threads.run

    def watched(work, *, caller):
        callers.append(caller)
        return run(work, caller=caller)

    monkeypatch.setattr(threads, "run", watched)
    body = gzip.compress(encode_npy(np.tile(digits, (1000, 1, 1, 1))))
    server.post("/v1/score", content=body, headers=NPY | {"content-encoding": "gzip"})
    assert callers[0] == "127.0.0.1"  # without its port
