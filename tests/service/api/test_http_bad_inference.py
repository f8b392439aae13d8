"""Bad requests of the Open Inference Protocol: ``{"error": ...}`` that says what to do."""

from __future__ import annotations

import pytest

URL = "/v2/models/tiny.encode/infer"
LENGTH = "Inference-Header-Content-Length"


def changed(image, **changes):
    return {"inputs": [{**image, **changes}]}


BAD = {
    "no inputs": (lambda i: {}, 422, "inputs must be a list"),
    "inputs no list": (lambda i: {"inputs": 3}, 422, "inputs must be a list"),
    "input no object": (lambda i: {"inputs": ["image"]}, 422, "JSON object"),
    "no name": (lambda i: changed(i, name=None), 422, "there are image"),
    "twice": (lambda i: {"inputs": [i, i]}, 422, "more than once"),
    "datatype": (lambda i: changed(i, datatype="FP32"), 422, "must be UINT8"),
    "shape": (lambda i: changed(i, shape=[6, 4, 4]), 422, "[-1, 1, 4, 4]"),
    "shape no list": (lambda i: changed(i, shape="6"), 422, "list of sizes"),
    "shape negative": (lambda i: changed(i, shape=[-1, 1, 4, 4]), 422, "list of sizes"),
    "shape zero": (lambda i: changed(i, shape=[0, 1, 4, 4], data=[]), 422, "shape"),
    "too few": (lambda i: changed(i, data=[1, 2]), 422, "data has 2"),
    "no data": (lambda i: changed(i, data=None), 422, "no data"),
    "too deep": (lambda i: changed(i, data=[[[[[[[[[i["data"]]]]]]]]]]), 422, "flat list"),
    "a list as name": (lambda i: changed(i, name=["image"] * 9), 422, "no input a list; there"),
    "a datatype that is an object": (lambda i: changed(i, datatype={"a": 1}), 422, "not an object"),
    "a shape without end": (lambda i: changed(i, shape=[6] * 1000), 422, "[-1, 1, 4, 4]"),
    "data and bytes": (
        lambda i: changed(i, parameters={"binary_data_size": 0}),
        422,
        "data and binary_data_size: send one",
    ),
    "seed too large": (
        lambda i: {"inputs": [i], "parameters": {"seed": 2**64 - 1}},
        422,
        "from 0 to 9223372036854775807",
    ),
    "ragged": (lambda i: changed(i, data=[[1], 2]), 422, "equal depth"),
    "fractions": (lambda i: changed(i, data=[0.5] * 96), 422, "fit UINT8"),
    "truth": (lambda i: changed(i, data=[True] * 96), 422, "fit UINT8"),
    "beyond": (lambda i: changed(i, data=[256] * 96), 422, "beyond UINT8"),
    "far beyond": (lambda i: changed(i, data=[10**30] * 96), 422, "beyond UINT8"),
    "unknown output": (lambda i: {"inputs": [i], "outputs": [{"name": "y"}]}, 422, "there are z"),
    "output twice": (
        lambda i: {"inputs": [i], "outputs": [{"name": "z"}, {"name": "z"}]},
        422,
        "more than once",
    ),
    "classes": (
        lambda i: {"inputs": [i], "outputs": [{"name": "z", "parameters": {"classification": 2}}]},
        422,
        "no classes",
    ),
    "shared memory": (
        lambda i: changed(i, parameters={"shared_memory_region": "a"}),
        422,
        "shared memory",
    ),
    "bytes without a length": (
        lambda i: changed(i, parameters={"binary_data_size": 96}),
        400,
        "Inference-Header-Content-Length",
    ),
    "flag": (
        lambda i: {"inputs": [i], "parameters": {"binary_data_output": 1}},
        422,
        "true or false",
    ),
    "seed": (lambda i: {"inputs": [i], "parameters": {"seed": -1}}, 422, "seed must be"),
    "parameter": (lambda i: {"inputs": [i], "parameters": {"sed": 1}}, 422, "known are: seed"),
    "timeout": (lambda i: {"inputs": [i], "parameters": {"timeout": "1"}}, 422, "microseconds"),
    "another shape of as many": (lambda i: changed(i, shape=[6, 1, 2, 8]), 422, "(-1: any size)"),
    "id": (lambda i: {"inputs": [i], "id": 3}, 422, "id must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_say_what_to_do(server, image, case, refused_v2):
    document, status, words = BAD[case]
    assert words in refused_v2(server.post(URL, json=document(image)), status)


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"content": b"{"}, 400, "not JSON"),
        ({"content": b"[1]"}, 422, "JSON object"),
        ({"content": b"{}", "headers": {LENGTH: "9"}}, 400, "the body has 2 bytes"),
        ({"content": b"{}", "headers": {LENGTH: "-1"}}, 422, "no number of bytes"),
        ({"content": b'{"a":1,"a":2}'}, 422, "more than once"),
        ({"content": b"[" + b"0," * 1_100_000}, 413, "bytes"),
        ({"content": b"[" + b"0," * 200_000}, 413, "or tensors as binary data"),
        ({"content": b"{}", "headers": {"content-encoding": "br"}}, 415, "gzip or deflate"),
        ({"content": b"{}", "headers": {"content-encoding": "gzip"}}, 400, "not gzip"),
        ({"content": b"{}", "headers": {"x-iafvae-timeout-seconds": "0"}}, 504, "some time"),
    ],
)
def test_bad_bodies_say_what_to_do(server, request_, status, words, refused_v2):
    assert words in refused_v2(server.post(URL, **request_), status)


def test_bytes_too_many_or_too_few(server, digits, image, refused_v2, as_binary):
    tensor = {k: image[k] for k in ("name", "datatype", "shape")}

    def send(size, blob):
        given = {"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}
        return server.post(URL, **as_binary(given, blob))

    assert "96 bytes, but binary_data_size is 95" in refused_v2(send(95, bytes(95)), 400)
    assert "90 bytes are left" in refused_v2(send(96, bytes(90)), 400)
    assert "4 bytes follow" in refused_v2(send(96, bytes(100)), 400)


def test_values_that_models_refuse(server, refused_v2):
    def ask(model, *tensors):
        return server.post(f"/v2/models/tiny.{model}/infer", json={"inputs": list(tensors)})

    def tensor(name, datatype, data, shape=None):
        return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}

    assert "seed must be" in refused_v2(ask("sample", tensor("seed", "INT64", [-1])), 422)
    warm = tensor("temperature", "FP32", [1.0, 1.0])
    assert "2 numbers for 1" in refused_v2(ask("sample", tensor("seed", "INT64", [1]), warm), 422)
    cold = tensor("temperature", "FP32", [-1.0])
    assert "negative" in refused_v2(ask("sample", tensor("seed", "INT64", [1]), cold), 422)
    wild = tensor("z", "FP32", [1e300, 0, 0], [1, 3])
    assert "finite" in refused_v2(ask("decode", wild), 422)
    assert "at least 1" in refused_v2(ask("decode", tensor("z", "FP32", [], [0, 3])), 422)
