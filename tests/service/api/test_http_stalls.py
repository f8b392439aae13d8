"""Bodies that are cheap to send and were dear to parse: refused, and the event loop goes on.

The longest stall is measured with a bare coroutine on the loop of the application, in seconds of
its thread's processor, which no busy neighbour changes.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import time

import pytest

MANY = 2**20 - 8
JSON = {"content-type": "application/json"}
LONGEST_STALL_SECONDS = 0.25


def form(charset, value=b"x"):
    part = b'--b\r\nContent-Disposition: form-data; name="m%d-"\r\n\r\n%b\r\n'
    body = b"".join(part % (i, value) for i in range(30)) + b"--b--\r\n"
    return body, {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}


LINE_ENDS = b'--b\r\nContent-Disposition: form-data; name="files"; filename=a\r\n\r\n'
LINE_ENDS += b"\r\n" * 2**22 + b"\r\n--b--"


def files(disposition):
    """A form of many files with such a Content-Disposition, and perhaps other headers."""
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename=a%b\r\n\r\nx\r\n'
    body = part % disposition * 280 + b"--b--"
    return "/v1/score", body, {"content-type": "multipart/form-data; boundary=b"}


ATTACKS = {
    "many files with semicolons": (*files(b";" * 8000), 400),
    "many files with parameters": (*files(b"; a=b" * 1500), 400),
    "many files with a few long parameters": (*files(b"; a*0=" + b"'" * 1900), 422),
    "many files of many names": (
        *files(b'\r\nContent-Disposition: form-data; name="files"; filename=b' * 120),
        422,
    ),
    "many files of many headers": (*files(b"\r\nx:y" * 1500), 422),
    "an Accept of 60 kB": ("/v1/score", b"", {"accept": "a," * 30_000}, 406),
    "an Accept-Encoding of 60 kB": (
        *("/v1/score", b"", {"accept-encoding": "gzip;q=.1," * 6000}),
        415,
    ),
    "a file of line ends": (
        *("/v1/score", LINE_ENDS, {"content-type": "multipart/form-data; boundary=b"}),
        422,
    ),
    "images that are numbers of thousands of digits": (
        *("/v1/score", b'{"images":[' + (b"9" * 4300 + b",") * 4000 + b"1]}", JSON),
        422,
    ),
    "one image of escapes": (
        *("/v1/score", b'{"images":["' + b"\\u0041" * 2**21 + b'"]}', JSON),
        422,
    ),
    "spaces around nothing": ("/v1/sample", b"{" + b" " * 2**24 + b"}", JSON, 413),
    "spaces around no images": ("/v1/score", b'{"images":[' + b"\n" * 2**24 + b"]}", JSON, 422),
    "latents of hundreds of digits": (
        *("/v1/decode", b'{"latents":[[' + (b"9" * 600 + b",") * 1700 + b"1]]}", JSON),
        422,
    ),
    "a list of a million groups": (
        *("/v1/sample", b'{"keep":[' + b",".join([b"0"] * MANY) + b"]}", JSON),
        413,
    ),
    "a list of many groups beside latents": (
        "/v1/sample",
        b'{"prior_eps":[[0,0,0]],"keep":[' + b",".join([b'""'] * 100_000) + b"]}",
        JSON,
        422,
    ),
    "a million fields": (
        "/v1/decode",
        b"{" + b",".join(b'"%x":0' % i for i in range(MANY)) + b"}",
        JSON,
        413,
    ),
    "many fields": (
        "/v1/decode",
        b"{" + b",".join(b'"%x":0' % i for i in range(100_000)) + b"}",
        JSON,
        413,
    ),
    "a few thousand fields": (
        "/v1/decode",
        b"{" + b",".join(b'"%x":0' % i for i in range(5_000)) + b"}",
        JSON,
        422,
    ),
    "a form in punycode": ("/v1/score", *form("punycode", b"x-" + b"a" * 65_400), 415),
    "a form of long fields": ("/v1/score", *form("utf-8", b"x" * 65_400), 400),
    "a content type of semicolons": (
        *("/v1/score", b"x", {"content-type": "multipart/form-data" + ";" * 60_000}),
        422,
    ),
    "a query of 60 kB": ("/v1/sample?" + "&".join(["seed=1"] * 8000), b"", {}, 422),
    "a query of 60 kB where none is read": ("/v2/repository/index?" + "a&" * 30_000, b"", {}, 422),
    "many numbers, each deep, of /v2": (
        "/v2/models/tiny.score/infer",
        b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,1,4,4],"data":['
        + b",".join([b"[" * 500 + b"]" * 500] * 260)
        + b"]}]}",
        JSON,
        422,
    ),
    "a million numbers of /v2": (
        "/v2/models/tiny.score/infer",
        b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[65535,1,4,4],"data":['
        + b",".join([b"0"] * MANY)
        + b"]}]}",
        JSON,
        413,
    ),
}


@pytest.fixture(autouse=True, scope="module")
def objects_of_other_tests():
    """Out of sight of the collector, which would look at millions of them while it is timed."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_event_loop_goes_on(server, attack, packed):
    path, body, headers, status = ATTACKS[attack]
    if packed:
        body, headers = gzip.compress(body, 1), headers | {"content-encoding": "gzip"}
    watch = server.run(begin(longest_stall()))
    answer = server.post(path, content=body, headers=headers)
    stall = server.run(end(watch))
    assert answer.status_code == status, answer.text[:300]
    assert stall < LONGEST_STALL_SECONDS


async def longest_stall():
    """The longest time between two turns of the event loop, until it is cancelled."""
    longest, last = 0.0, time.thread_time()
    while True:
        try:
            await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            return longest
        now = time.thread_time()
        longest, last = max(longest, now - last), now


async def begin(work):
    return asyncio.ensure_future(work)


async def end(task):
    task.cancel()
    return await task


def test_a_form_without_boundary_and_an_ampersand_too_many(server, problem):
    answer = server.post("/v1/score", content=b"x", headers={"content-type": "multipart/form-data"})
    assert "boundary" in problem(answer, 400, "malformed-body")
    for query in ("n=1&", "&n=1", "n=1&&seed=2"):
        assert server.post(f"/v1/sample?{query}").status_code == 200


def test_what_no_operation_is_asked_is_counted_too(server, problem):
    labels = {"operation": "", "model": "", "outcome": "invalid-input"}
    for query in ("a&" * 30_000, "importance_samples=a"):
        before = server.metric("iafvae_requests_total", **labels)
        answer = server.get(f"/v1/models/tiny/calibration?{query}")
        problem(answer, 422, "invalid-input")
        assert server.metric("iafvae_requests_total", **labels) == before + 1


def test_other_protocols_are_told_where_to_go(server, problem):
    for verb in ("predict", "explain"):
        answer = server.post(f"/v1/models/tiny:{verb}", json={"instances": []})
        assert "/v2/models/MODEL.score/infer" in problem(answer, 404, "not-found")
    labels = {"operation": "", "model": "", "outcome": "not-found"}
    assert server.metric("iafvae_requests_total", **labels) >= 1
