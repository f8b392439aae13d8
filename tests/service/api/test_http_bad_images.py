"""Bad images and arrays: a problem document that says what to do."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from service.codecs.npy import encode_npy
from service.codecs.png import encode_png

NPY = {"content-type": "application/x-npy"}
GOOD = np.zeros((1, 1, 4, 4), np.uint8)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def bomb(side: int) -> bytes:
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6)))


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


def sixteen_bits() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(file, "PNG")
    return file.getvalue()


def npy(array):
    return {"content": encode_npy(array), "headers": NPY}


BAD = {
    # images
    "wrong size": ("/v1/score", npy(np.zeros((1, 5, 5), np.uint8)), 422, "wrong-shape", "resize"),
    "wrong dimensions": ("/v1/score", npy(np.zeros((4, 4), np.uint8)), 422, "wrong-shape", "shape"),
    "wrong dtype": ("/v1/score", npy(np.zeros((1, 4, 4), np.float32)), 422, "wrong-dtype", "uint8"),
    "no images": ("/v1/score", npy(np.zeros((0, 4, 4), np.uint8)), 422, "invalid-input", "one"),
    "no pixels": ("/v1/score", npy(np.zeros((2, 0, 4), np.uint8)), 422, "invalid-input", "no im"),
    "colour": (
        "/v1/score",
        {"json": {"images": [b64(encode_png(np.arange(48, dtype=np.uint8).reshape(3, 4, 4)))]}},
        422,
        "wrong-shape",
        "convert=true",
    ),
    "truncated png": (
        "/v1/score",
        {
            "json": {
                "images": [b64(encode_png(np.arange(16, dtype=np.uint8).reshape(1, 4, 4))[:-30])]
            }
        },
        422,
        "undecodable-image",
        "complete",
    ),
    "text as an image": (
        "/v1/score",
        {"files": [("files", ("a.png", b"hello"))]},
        422,
        "undecodable-image",
        "a.png",
    ),
    "text in json": (
        "/v1/score",
        {"json": {"images": ["hello!"]}},
        422,
        "undecodable-image",
        "base64",
    ),
    "sixteen bits": (
        "/v1/score",
        {"files": [("files", ("a.png", sixteen_bits()))]},
        422,
        "wrong-dtype",
        "8 bits",
    ),
    "images no list": ("/v1/score", {"json": {"images": "aGk="}}, 422, "invalid-input", "list"),
    "images no strings": ("/v1/score", {"json": {"images": [1]}}, 422, "invalid-input", "base64"),
    "images empty": ("/v1/score", {"json": {"images": []}}, 422, "invalid-input", "at least one"),
    "images absent": ("/v1/score", {"json": {}}, 422, "invalid-input", "at least one"),
    "files absent": ("/v1/encode", {"files": [("seed", (None, "1"))]}, 422, "invalid-input", "one"),
    "decompression bomb": (
        "/v1/score",
        {"files": [("files", ("b.png", bomb(30_000)))]},
        413,
        "payload-too-large",
        "33554432",
    ),
    "three to interpolate": (
        "/v1/interpolate",
        npy(np.zeros((3, 4, 4), np.uint8)),
        422,
        "invalid-input",
        "two",
    ),
    # npy
    "pickled npy": (
        "/v1/score",
        {"content": pickled(), "headers": NPY},
        422,
        "wrong-dtype",
        "pickled",
    ),
    "no npy": ("/v1/score", {"content": b"\x89PNG", "headers": NPY}, 400, "malformed-body", "npy"),
    "npy cut off": (
        "/v1/score",
        {"content": encode_npy(GOOD)[:-1], "headers": NPY},
        400,
        "malformed-body",
        "cut off",
    ),
}


def saved(array):
    file = io.BytesIO()  # encode_npy has no arrays without axes
    np.save(file, array)
    return file.getvalue()


SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5)
ARRAYS = hnp.arrays(st.sampled_from(["u1", "f4", "?", "i8"]), SHAPES | st.sampled_from([(2, 4)]))
PATHS = ["score", "encode", "reconstruct", "interpolate", "anomaly-map", "decode", "sample"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(ARRAYS, st.sampled_from(PATHS), st.sampled_from(["", "?resize=true&convert=true"]))
def test_no_array_is_a_fault_of_the_service(server, array, path, query):
    query = query if path not in ("decode", "sample") else ""
    answer = server.post(f"/v1/{path}{query}", content=saved(array), headers=NPY)
    assert answer.status_code < 500, answer.text


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_problem_that_says_what_to_do(server, problem, case):
    path, request, status, slug, words = BAD[case]
    detail = problem(server.post(path, **request), status, slug)
    assert words in detail
    assert server.get("/readyz").status_code == 200
