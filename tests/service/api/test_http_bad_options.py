"""Bad options, latents, bodies and headers: a problem document that says what to do."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from service.codecs.npy import encode_npy, npy_prefix

NPY = {"content-type": "application/x-npy"}
GOOD = np.zeros((1, 1, 4, 4), np.uint8)
SCALAR = b"\x93NUMPY\x01\x00\x35\x00{'descr': '<f4', 'fortran_order': False, 'shape': ()}" + bytes(
    4
)


def raw_json(text: bytes):
    return {"content": text, "headers": {"content-type": "application/json"}}


def npy(array):
    return {"content": encode_npy(array), "headers": NPY}


BAD = {
    # options
    "n zero": ("/v1/sample", {"json": {"n": 0}}, 422, "invalid-input", "n=0"),
    "n negative": ("/v1/sample", {"json": {"n": -3}}, 422, "invalid-input", "n=-3"),
    "n too large": ("/v1/sample", {"json": {"n": 10**6}}, 413, "payload-too-large", "1024"),
    "n text": ("/v1/sample?n=many", {}, 422, "invalid-input", "n="),
    "temperature negative": (
        "/v1/sample",
        {"json": {"temperature": -1}},
        422,
        "invalid-input",
        "temp",
    ),
    "temperature nan": (
        "/v1/sample",
        raw_json(b'{"temperature": NaN}'),
        422,
        "invalid-input",
        "finite",
    ),
    "temperatures as axios sends them": (
        "/v1/sample?temperature[]=1&temperature[]=0.5",
        {},
        422,
        "invalid-input",
        "no field 'temperature[]'; known are",
    ),
    "temperature nan text": ("/v1/sample?temperature=nan", {}, 422, "invalid-input", "finite"),
    "temperatures too many": (
        "/v1/sample",
        {"json": {"temperature": [1, 1]}},
        422,
        "invalid-input",
        "one for each latent group (z), not 2",
    ),
    "temperatures none": (
        "/v1/sample",
        {"json": {"temperature": []}},
        422,
        "invalid-input",
        "one for each latent group",
    ),
    "seed negative": ("/v1/sample", {"json": {"seed": -1}}, 422, "invalid-input", "seed"),
    "seed too large": ("/v1/sample", {"json": {"seed": 2**63}}, 422, "invalid-input", "seed"),
    "k too large": (
        "/v1/score?importance_samples=5000",
        npy(GOOD),
        413,
        "payload-too-large",
        "1024",
    ),
    "rows too many": (
        "/v1/score?importance_samples=1000",
        npy(np.zeros((20, 4, 4), np.uint8)),
        413,
        "payload-too-large",
        "16384",
    ),
    "images too many": (
        "/v1/score",
        npy(np.zeros((1025, 4, 4), np.uint8)),
        413,
        "payload-too-large",
        "1024",
    ),
    "files too many": (
        "/v1/score",
        {"files": [("files", (f"{i}", b"")) for i in range(1025)]},
        413,
        "payload-too-large",
        "1024",
    ),
    "strings too many": (
        "/v1/score",
        {"json": {"images": [""] * 1025}},
        413,
        "payload-too-large",
        "1024",
    ),
    "unknown model": ("/v1/sample", {"json": {"model": "gpt"}}, 404, "unknown-model", "tiny"),
    "unknown field": ("/v1/sample", {"json": {"sed": 1}}, 422, "invalid-input", "'sed'"),
    "unknown parameter": ("/v1/score?k=3", npy(GOOD), 422, "invalid-input", "'k'"),
    "unknown form field": (
        "/v1/score",
        {"files": [("image", ("a.png", b""))]},
        422,
        "invalid-input",
        "'image'",
    ),
    "option twice": ("/v1/sample?n=1&n=2", {}, 422, "invalid-input", "once"),
    "query with json": ("/v1/sample?n=1", {"json": {}}, 422, "invalid-input", "fields: move n"),
    "query unreadable": ("/v1/sample?n", {}, 422, "invalid-input", "query"),
    # latents
    "latents nan": (
        "/v1/decode",
        npy(np.full((1, 3), np.nan, np.float32)),
        422,
        "non-finite-input",
        "finite",
    ),
    "latents infinite in json": (
        "/v1/decode",
        raw_json(b'{"latents": [[1, 2, Infinity]]}'),
        422,
        "non-finite-input",
        "finite",
    ),
    "latents beyond float32": (
        "/v1/decode",
        {"json": {"latents": [[1e300, 0, 0]]}},
        422,
        "non-finite-input",
        "finite",
    ),
    "latents wrong width": (
        "/v1/decode",
        npy(np.zeros((1, 4), np.float32)),
        422,
        "wrong-shape",
        "[n, 3]",
    ),
    "latents float64": ("/v1/decode", npy(np.zeros((1, 3))), 422, "wrong-dtype", "float32"),
    "latents ragged": (
        "/v1/decode",
        {"json": {"latents": [[1], [1, 2]]}},
        422,
        "wrong-shape",
        "takes 3",
    ),
    "latents text": (
        "/v1/decode",
        {"json": {"latents": [["1", "2", "3"]]}},
        422,
        "invalid-input",
        "num",
    ),
    "latents absent": ("/v1/decode", {"json": {}}, 422, "invalid-input", "numbers"),
    "latents none": (
        "/v1/decode",
        npy(np.zeros((0, 3), np.float32)),
        422,
        "invalid-input",
        "least",
    ),
    # bodies
    "not json": (
        "/v1/sample",
        raw_json(b"{n: 1}"),
        400,
        "malformed-body",
        "JSON",
    ),
    "json list": ("/v1/sample", {"json": [1]}, 400, "malformed-body", "object"),
    "json deep": (
        "/v1/sample",
        raw_json(b'{"n":' * 1000),
        400,
        "malformed-body",
        "JSON",
    ),
    "json not utf-8": (
        "/v1/sample",
        raw_json(b'{"\xff": 1}'),
        400,
        "malformed-body",
        "JSON",
    ),
    "form as curl sends it": (
        "/v1/sample",
        {"data": {"n": "1"}},
        415,
        "unsupported-media-type",
        "json",
    ),
    "no content type": (
        "/v1/score",
        {"content": b"abc"},
        415,
        "unsupported-media-type",
        "multipart",
    ),
    "no body": ("/v1/score", {}, 415, "unsupported-media-type", "application/x-npy"),
    "multipart without boundary": (
        "/v1/score",
        {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
        400,
        "malformed-body",
        "boundary",
    ),
    "compressed": (
        "/v1/sample",
        {"json": {}, "headers": {"content-encoding": "br"}},
        415,
        "unsupported-media-type",
        "gzip or deflate",
    ),
    "not what it says": (
        "/v1/sample",
        {"json": {}, "headers": {"content-encoding": "gzip"}},
        400,
        "malformed-body",
        "not gzip",
    ),
    "latents as a file": (
        "/v1/decode",
        {"files": [("files", ("a.png", b"x"))]},
        415,
        "unsupported-media-type",
        "npy",
    ),
    "noise without axes": (
        "/v1/sample",
        {"content": SCALAR, "headers": NPY},
        422,
        "wrong-shape",
        "prior_eps must have the shape [n, 3], not []",
    ),
    "latents without axes": (
        "/v1/decode",
        {"content": SCALAR, "headers": NPY},
        422,
        "wrong-shape",
        "latents must have the shape [n, 3], not []",
    ),
    # JSON
    "nested deep": (
        "/v1/decode",  # deeper than any Python's json goes: 1,000 to some 10,000
        raw_json(b'{"latents":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        400,
        "malformed-body",
        "nested too deep",
    ),
    "a name that is no text": (
        "/v1/sample",
        raw_json(b'{"\\udfff": 1}'),
        422,
        "invalid-input",
        r"there is no field '\udfff'; known are",
    ),
    "a long name": (
        "/v1/sample",
        {"json": {"model": "a" * 5000}},
        422,
        "invalid-input",
        "5000 characters",
    ),
    # negotiation and deadlines
    "accept html": (
        "/v1/sample",
        {"headers": {"accept": "text/html"}},
        406,
        "not-acceptable",
        "image/png",
    ),
    "score as png": (
        "/v1/score",
        {**npy(GOOD), "headers": {**NPY, "accept": "image/png"}},
        406,
        "not-acceptable",
        "npy",
    ),
    "timeout no number": (
        "/v1/sample",
        {"headers": {"x-iafvae-timeout-seconds": "soon"}},
        422,
        "invalid-input",
        "seconds",
    ),
    "timeout in python's digits": (
        "/v1/sample",
        {"headers": {"x-iafvae-timeout-seconds": "1_0"}},
        422,
        "invalid-input",
        "seconds",
    ),
    "images by another name": (
        "/v1/score",
        {"json": {"image": "A" * 2000}},
        422,
        "invalid-input",
        "images are the field 'images'",
    ),
    "timeout negative": (
        "/v1/sample",
        {"headers": {"x-iafvae-timeout-seconds": "-1"}},
        422,
        "invalid-input",
        "seconds",
    ),
    "timeout zero": (
        "/v1/sample",
        {"headers": {"x-iafvae-timeout-seconds": "0"}},
        504,
        "deadline-exceeded",
        "time",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_problem_that_says_what_to_do(server, problem, case):
    path, request, status, slug, words = BAD[case]
    detail = problem(server.post(path, **request), status, slug)
    assert words in detail
    assert server.get("/readyz").status_code == 200


@pytest.mark.parametrize("size", [1, 200_000], ids=["here", "in a decoder's process"])
@pytest.mark.parametrize("depth", [1, 940, 960, 980, 990])
@pytest.mark.parametrize("ends", [(b"[", b"]"), (b'{"a":', b"}")], ids=["lists", "objects"])
def test_options_are_not_nested(server, problem, size, depth, ends):
    nested = ends[0] * depth + b"1" + ends[1] * depth
    body = b'{"images":["' + b"A" * size + b'"],"alpha":[' + nested + b"]}"
    answer = server.post("/v1/score", **raw_json(body))
    if depth < 900:
        words = "'alpha' must be one value, or a list of such"
        assert problem(answer, 422, "invalid-input") == words
    else:  # as deep as Python parses here, and not there
        assert answer.status_code in (400, 422), answer.text


def test_rows_of_one_picture_are_no_images(server, problem):
    for shape in ((1100, 40, 1), (1, 1100, 40), (1100, 40, 3)):
        picture = np.zeros(shape, np.uint8)
        answer = server.post("/v1/score?resize=true&importance_samples=64", **npy(picture))
        assert len(answer.json()["results"]) == 1
    picture = np.zeros((1100, 40), np.uint8)
    answer = server.post("/v1/score?resize=true", **npy(picture))
    assert "one image alone is array[None]" in problem(answer, 422, "wrong-shape")


@pytest.fixture
def short_numbers():
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)  # as `iafvae serve` does
    yield
    sys.set_int_max_str_digits(before)


@pytest.mark.usefixtures("short_numbers")
@pytest.mark.parametrize(
    ("method", "path", "request_"),
    [
        ("POST", "/v1/score?importance_samples={}", npy(GOOD)),
        ("POST", "/v1/score?altered={}", npy(GOOD)),
        ("POST", "/v1/sample?n={}", {}),
        ("POST", "/v1/sample?seed={}", {}),
        ("POST", "/v1/interpolate?seeds=1,2&n={}", {}),
        ("POST", "/v1/anomaly-map?boxes={}", npy(GOOD)),
        ("GET", "/v1/models/tiny/calibration?importance_samples={}", {}),
        ("GET", "/v1/models/tiny/versions/1.0.0/calibration?importance_samples={}", {}),
    ],
)
def test_integers_of_thousands_of_digits_are_refused(server, problem, method, path, request_):
    for digits in (20, 4000, 5000):
        answer = server.request(method, path.format("9" * digits), **request_)
        problem(answer, 422, "invalid-input")


def test_a_share_of_false_discoveries_may_be_as_small_as_a_number_is(server):
    answer = server.post("/v1/score?fdr=5e-324", **npy(GOOD))
    assert answer.status_code == 200
    assert answer.json()["fdr"] == 5e-324


@pytest.mark.parametrize("path", ["/v1/score", "/v1/decode", "/v1/sample"])
def test_sizes_beside_a_zero_are_counted(server, problem, path):
    descr, shape = ("|u1", (0, *[2**26] * 3)) if path == "/v1/score" else ("<f4", (0, *[2**15] * 6))
    body = npy_prefix(descr, shape)
    problem(server.post(path, content=body, headers=NPY), 413, "payload-too-large")


def test_outcomes_are_counted_without_what_callers_wrote(server):
    labels = {"operation": "sample", "model": "", "outcome": "unknown-model"}
    before = server.metric("iafvae_requests_total", **labels)
    server.post("/v1/sample", json={"model": "invented"})
    assert server.metric("iafvae_requests_total", **labels) == before + 1
    assert "invented" not in server.get("/metrics").text
