"""The Open Inference Protocol on the wire: limits, forms that clients may send, refusals."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.api.v2 import infer as infer_module
from service.api.v2.schemas import InferResult, ModelMetadata, StatisticsDocument

URL = "/v2/models/tiny.encode/infer"
LENGTH = "Inference-Header-Content-Length"


def test_lists_flat_or_nested(server, digits, image, post_npy):
    flat = server.post(URL, json={"inputs": [image], "id": "a"})
    document = InferResult.model_validate(flat.json())
    assert document.id == "a"
    nested = server.post(URL, json={"inputs": [{**image, "data": digits.tolist()}]})
    assert nested.json()["outputs"] == flat.json()["outputs"]
    assert "id" not in nested.json()
    native = post_npy("/v1/encode", digits).json()["latents"]
    assert np.array_equal(np.reshape(document.outputs[0].data, (6, 3)), native)
    assert flat.headers["x-iafvae-model"] == "tiny"
    assert float(flat.headers["x-iafvae-compute-seconds"]) > 0


@pytest.mark.parametrize(
    ("parameters", "deadline"),
    [
        ({}, 160.0),
        ({"timeout": 0}, 160.0),
        ({"timeout": 2_500_000}, 102.5),
        ({"timeout": 10**9}, 160.0),
    ],
)
def test_the_protocols_timeout_shortens_a_deadline(monkeypatch, parameters, deadline):
    """In microseconds from now; none, and 0, which is none, leave it."""
    monkeypatch.setattr(infer_module, "time", SimpleNamespace(monotonic=lambda: 100.0))
    got = infer_module._sooner(160.0, SimpleNamespace(parameters=parameters))
    assert got == pytest.approx(deadline)


def test_null_is_what_is_left_out(server, image):
    """Clients made of data classes, as MLServer's, write every field."""
    bare = server.post(URL, json={"inputs": [image]}).json()
    nothing = {"parameters": None, "outputs": None, "id": None}
    full = server.post(URL, json={"inputs": [{**image, "parameters": None}], **nothing})
    assert full.json() == bare
    named = server.post(
        URL, json={"inputs": [image], "outputs": [{"name": "z", "parameters": None}]}
    )
    assert named.json() == bare


@pytest.mark.parametrize("model", ["score", "encode"])
@pytest.mark.parametrize("name", ["seed", "importance_samples", "alpha", "fdr", "timeout"])
def test_a_parameter_that_is_null_is_left_out(server, image, model, name):
    url = f"/v2/models/tiny.{model}/infer"
    bare = server.post(url, json={"inputs": [image]})
    assert server.post(url, json={"inputs": [image], "parameters": {name: None}}).json() == (
        bare.json()
    )


def test_a_parameter_of_a_tensor_that_is_null_is_left_out(server, image):
    bare = server.post(URL, json={"inputs": [image]}).json()
    of_input = dict.fromkeys(["binary_data_size", "shared_memory_region"])
    wanted = {"name": "z", "parameters": dict.fromkeys(["binary_data", "classification"])}
    full = {"inputs": [{**image, "parameters": of_input}], "outputs": [wanted]}
    full["parameters"] = {"binary_data_output": None}
    assert server.post(URL, json=full).json() == bare


def test_versions(server, image, refused_v2):
    by_version = server.post(
        "/v2/models/tiny.encode/versions/1.2.3/infer", json={"inputs": [image]}
    )
    assert by_version.json()["model_version"] == "1.2.3"
    missing = server.post("/v2/models/tiny.encode/versions/7/infer", json={"inputs": [image]})
    assert "1.2.3" in refused_v2(missing, 404)
    metadata = ModelMetadata.model_validate(server.get("/v2/models/tiny.decode").json())
    assert metadata.inputs[0].model_dump() == {"name": "z", "datatype": "FP32", "shape": [-1, 3]}


def test_binary_one_way_or_both(server, digits, image, as_binary):
    tensor = {k: image[k] for k in ("name", "datatype", "shape")}
    given = {"inputs": [{**tensor, "parameters": {"binary_data_size": digits.nbytes}}]}
    plain = server.post(URL, json={"inputs": [image]}).json()["outputs"][0]["data"]
    one_way = server.post(URL, **as_binary(given, digits.tobytes()))
    assert one_way.json()["outputs"][0]["data"] == plain
    both = server.post(
        URL, **as_binary({**given, "parameters": {"binary_data_output": True}}, digits.tobytes())
    )
    head = json.loads(both.content[: int(both.headers[LENGTH])])
    assert both.headers["content-type"] == "application/octet-stream"
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 72}
    numbers = np.frombuffer(both.content[int(both.headers[LENGTH]) :], "<f4")
    assert np.array_equal(numbers, np.array(plain, np.float32))
    # What is asked of one output wins over what is asked of all.
    given["parameters"] = {"binary_data_output": True}
    given["outputs"] = [{"name": "z"}]
    assert server.post(URL, **as_binary(given, digits.tobytes())).content == both.content
    given["outputs"] = [{"name": "z", "parameters": {"binary_data": False}}]
    assert (
        server.post(URL, **as_binary(given, digits.tobytes())).json()["outputs"][0]["data"] == plain
    )


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_compressed_both_ways(server, digits, image, pack, as_binary):
    encoding = "gzip" if pack is gzip.compress else "deflate"
    many = np.tile(digits, (40, 1, 1, 1))
    tensor = {**image, "shape": list(many.shape), "parameters": {"binary_data_size": many.nbytes}}
    del tensor["data"]
    request = as_binary(
        {"inputs": [tensor], "parameters": {"binary_data_output": True}}, many.tobytes()
    )
    request["headers"]["accept-encoding"] = "identity"
    plain = server.post(URL, **request)
    assert "content-encoding" not in plain.headers
    request["content"] = pack(request["content"])
    request["headers"] |= {"content-encoding": encoding, "accept-encoding": encoding}
    packed = server.post(URL, **request)
    assert packed.headers["content-encoding"] == encoding
    assert packed.headers["vary"] == "accept-encoding"
    assert packed.content == plain.content  # httpx has decompressed it
    assert packed.headers[LENGTH] == plain.headers[LENGTH]


def test_decompressed_bodies_have_the_same_limits(serve, image, refused_v2):
    client = serve(max_body_bytes=100_000, max_buffered_bytes=150_000)
    headers = {"content-encoding": "gzip"}
    bomb = gzip.compress(bytes(10_000_000))
    assert "decompressed" in refused_v2(client.post(URL, content=bomb, headers=headers), 413)
    client.app.state.shared.admission.bytes.take("another", 100_000)
    held = gzip.compress(json.dumps({"inputs": [image]}).encode() + b" " * 60_000)
    answer = client.post(URL, content=held, headers=headers)
    assert "held at once" in refused_v2(answer, 429)
    assert answer.headers["retry-after"] == "1"
    client.app.state.shared.admission.bytes.give("another", 100_000)
    assert client.post(URL, content=held, headers=headers).status_code == 200
    assert client.app.state.shared.admission.bytes.held == 0


def test_limits_are_those_of_v1(serve, refused_v2):
    client = serve(max_images=4, max_n=3, max_rows=64, max_importance_samples=32)

    def images(n):
        data = [0] * (16 * n)
        return {"name": "image", "datatype": "UINT8", "shape": [n, 1, 4, 4], "data": data}

    def ask(model, tensor, **parameters):
        body = {"inputs": [tensor], "parameters": parameters}
        return client.post(f"/v2/models/tiny.{model}/infer", json=body)

    seeds = {"name": "seed", "datatype": "INT64", "shape": [4], "data": [1, 2, 3, 4]}
    z = {"name": "z", "datatype": "FP32", "shape": [5, 3], "data": [0] * 15}
    assert "limit of 4" in refused_v2(ask("encode", images(5)), 413)
    assert "limit of 4" in refused_v2(ask("decode", z), 413)
    assert "limit of 3" in refused_v2(ask("sample", seeds), 413)
    assert "limit of 32" in refused_v2(ask("score", images(1), importance_samples=33), 413)
    assert "limit of 64" in refused_v2(ask("score", images(3), importance_samples=32), 413)
    assert ask("score", images(2), importance_samples=32).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/tiny", 404),
        ("GET", "/v2/models/tiny.score/versions/9/ready", 404),
        ("POST", "/v2/models/other.score/infer", 404),
        ("POST", "/v2/models/a/b/infer", 404),
        ("GET", "/v2/models/tiny.score/infer", 405),
        ("POST", "/v2/health/live", 405),
        ("DELETE", "/v2", 405),
    ],
)
def test_frameworks_errors_have_the_protocols_form(server, method, path, status, refused_v2):
    answer = server.request(method, path)
    refused_v2(answer, status)
    if status == 405:
        assert answer.headers["allow"]


def test_health_ends_with_draining_and_faults(serve, image, refused_v2):
    client = serve()
    assert client.get("/v2/health/ready").json() == {"ready": True}
    client.app.state.shared.registry.drain()
    assert "ready" in refused_v2(client.get("/v2/health/ready"), 503)
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.post(URL, json={"inputs": [image]}).status_code == 200
    client.app.state.shared.registry.find().runtime.scheduler.healthy = False
    refused_v2(client.get("/v2/health/live"), 503)
    refused_v2(client.get("/v2/models/tiny.score/ready"), 503)
    refused_v2(client.post(URL, json={"inputs": [image]}), 500)


@pytest.mark.parametrize(
    ("operation", "most"), [("score", 12), ("sample", 300), ("encode", 40), ("decode", 40)]
)
def test_the_largest_batch_is_one_that_is_taken(serve, operation, most):
    """A score has 16 rows for each image."""
    client = serve(max_rows=200, max_importance_samples=200, max_images=40, max_n=300)
    assert client.get(f"/v2/models/tiny.{operation}/config").json()["max_batch_size"] == most
    if operation == "score":
        for count, status in ((most, 200), (most + 1, 413)):
            pixels = [0] * (16 * count)
            image = {"name": "image", "datatype": "UINT8", "shape": [count, 1, 4, 4]}
            body = {"inputs": [image | {"data": pixels}]}
            assert client.post("/v2/models/tiny.score/infer", json=body).status_code == status


def test_requests_of_both_protocols_are_counted_together(serve, image):
    client = serve()
    client.post(URL, json={"inputs": [image]})
    client.post(URL, json={"inputs": []})
    client.post("/v2/models/invented.x/infer", json={"inputs": []})
    who = {"operation": "encode", "model": "tiny"}
    assert client.metric("iafvae_requests_total", outcome="ok", **who) == 1
    assert client.metric("iafvae_requests_total", outcome="invalid-input", **who) == 1
    unknown = {"operation": "infer", "model": "", "outcome": "unknown-model"}
    assert client.metric("iafvae_requests_total", **unknown) == 1
    answer = client.get("/v2/models/tiny.encode/stats").json()
    (stats,) = StatisticsDocument.model_validate(answer).model_stats
    assert (stats.inference_count, stats.execution_count) == (6, 1)
    assert (stats.inference_stats.success.count, stats.inference_stats.fail.count) == (1, 1)
    assert stats.inference_stats.compute_infer.ns > 0


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(st.binary(max_size=80), st.text(max_size=60).map(str.encode)),
    st.sampled_from(["tiny.score", "tiny.sample", "tiny.decode", "x"]),
    st.dictionaries(
        st.sampled_from([LENGTH, "content-encoding", "accept-encoding", "content-type"]),
        st.sampled_from(["0", "3", "gzip", "deflate", "application/json"]),
        max_size=3,
    ),
)
def test_whatever_comes_it_is_answered(server, refused_v2, body, model, headers):
    answer = server.post(f"/v2/models/{model}/infer", content=body, headers=headers)
    assert 400 <= answer.status_code < 500
    refused_v2(answer, answer.status_code)


# ------------------------------------------------------------------ answers that are no numbers


def test_results_that_are_no_numbers_are_announced_and_counted(server):
    """Latents overflow to infinities, and their sums to none, as under ``/v1``."""
    heat = {"name": "temperature", "datatype": "FP32", "shape": [50], "data": [3.4e38] * 50}
    counted = {"operation": "sample", "model": "tiny"}
    before = server.metric("iafvae_non_finite_results_total", **counted)
    wild = server.post(
        "/v2/models/tiny.sample/infer", json={"inputs": [*seeds(50)["inputs"], heat]}
    )
    means = {each["name"]: each["data"] for each in wild.json()["outputs"]}["mean"]
    bad = sum(None in means[at : at + 16] for at in range(0, len(means), 16))
    assert 0 < bad < 50
    assert wild.headers["x-iafvae-non-finite"] == str(bad)
    assert server.metric("iafvae_non_finite_results_total", **counted) - before == bad
    usual = server.post("/v2/models/tiny.sample/infer", json=seeds(2))
    assert "x-iafvae-non-finite" not in usual.headers


@pytest.mark.parametrize("operation", ["score", "encode", "decode"])
def test_each_operation_says_which_results_are_numbers(serve, image, monkeypatch, operation):
    """A row of each batch is spoilt where it leaves the engine."""
    client = serve()
    spoilt = {"score": "log_weight", "encode": "z", "decode": "mean"}[operation]
    engine = client.app.state.shared.registry.find("tiny").runtime.engine
    sound = engine.run

    def run(graph, arrays):
        outputs = dict(sound(graph, arrays))
        if spoilt in outputs:
            outputs[spoilt] = outputs[spoilt].copy()
            outputs[spoilt][0] = np.nan
        return outputs

    monkeypatch.setattr(engine, "run", run)
    z = {"name": "z", "datatype": "FP32", "shape": [3, 3], "data": [0] * 9}
    given = {"inputs": [z if operation == "decode" else image]}
    answer = client.post(f"/v2/models/tiny.{operation}/infer", json=given)
    output = answer.json()["outputs"][0]
    numbers = np.array(output["data"], np.float64).reshape(output["shape"][0], -1)  # null is NaN
    bad = np.count_nonzero(np.isnan(numbers).any(axis=1))
    assert bad >= 1
    assert answer.headers["x-iafvae-non-finite"] == str(bad)
    counted = {"operation": operation, "model": "tiny"}
    assert client.metric("iafvae_non_finite_results_total", **counted) == bad


# ------------------------------------------------------------------ answers of very many numbers


def seeds(n):
    tensor = {"name": "seed", "datatype": "INT64", "shape": [n], "data": list(range(n))}
    return {"inputs": [tensor]}


def test_lists_of_very_many_numbers_are_refused_before_they_are_computed(
    serve, refused_v2, monkeypatch
):
    """An image, a draw and a mean of 16 pixels each: 48 numbers a seed."""
    monkeypatch.setattr("service.api.request.inputs.MAX_JSON_NUMBERS", 96)
    client, url = serve(), "/v2/models/tiny.sample/infer"
    assert client.post(url, json=seeds(2)).status_code == 200
    binary = {"parameters": {"binary_data_output": True}}
    assert client.post(url, json=seeds(3) | binary).status_code == 200
    few = {"outputs": [{"name": "mean"}, {"name": "draw", "parameters": {"binary_data": True}}]}
    assert client.post(url, json=seeds(6) | few).status_code == 200
    monkeypatch.setattr("service.operations.model.Model.sample_each", None)  # not to be called
    said = refused_v2(client.post(url, json=seeds(3)), 413)
    assert "144 numbers" in said
    assert '"binary_data": true' in said
    assert "112 numbers" in refused_v2(client.post(url, json=seeds(7) | few), 413)


@pytest.mark.parametrize(
    ("n", "parameters", "where"),
    [(80, {}, "loop"), (90, {}, "codec"), (90, {"binary_data_output": True}, "loop")],
)
def test_many_numbers_are_written_beside_the_event_loop(server, monkeypatch, n, parameters, where):
    threads, encode = [], infer_module.encode_response

    def watched(*args, **kwargs):
        threads.append(threading.current_thread())
        return encode(*args, **kwargs)

    async def current():
        return threading.current_thread()

    monkeypatch.setattr(infer_module, "encode_response", watched)
    document = seeds(n) | {"parameters": parameters}
    assert server.post("/v2/models/tiny.sample/infer", json=document).status_code == 200
    (thread,) = threads
    if where == "loop":
        assert thread is server.run(current())
    else:
        assert thread.name.startswith("codec")
