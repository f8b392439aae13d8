"""The public client of the Open Inference Protocol drives every operation of a real server."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from service.codecs.npy import decode_npy, encode_npy

NPY = {"content-type": "application/x-npy", "accept": "application/x-npy"}
WAYS = {
    "binary": {"binary_data": True},
    "json": {"binary_data": False},
}


@pytest.fixture(scope="module")
def client(running):
    with triton.InferenceServerClient(f"127.0.0.1:{running.port}", concurrency=4) as client:
        yield client


def tensor(name, array, binary):
    datatype = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64"}[str(array.dtype)]
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def native(running, path, array):
    answer = httpx.post(running.url + path, content=encode_npy(array), headers=NPY)
    return decode_npy(answer.content, dtypes=("uint8", "float32"), max_items=10**6)


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny.score")
    assert client.is_model_ready("tiny.score", "1.2.3")
    assert not client.is_model_ready("tiny.none")
    server = client.get_server_metadata()
    assert server["name"] == "iafvae"
    assert "binary_tensor_data" in server["extensions"]
    metadata = client.get_model_metadata("tiny.sample", "1.2.3")
    assert metadata["versions"] == ["1.2.3"]
    assert metadata["inputs"] == [
        {"name": "seed", "datatype": "INT64", "shape": [-1]},
        {"name": "temperature", "datatype": "FP32", "shape": [-1]},
    ]
    assert [o["name"] for o in metadata["outputs"]] == ["image", "draw", "mean"]
    assert metadata["outputs"][0]["shape"] == [-1, 1, 4, 4]
    config = client.get_model_config("tiny.sample")
    assert config["input"][1]["optional"] is True
    names = {entry["name"] for entry in client.get_model_repository_index()}
    assert names == {"tiny.score", "tiny.sample", "tiny.encode", "tiny.decode"}


@pytest.mark.parametrize("inputs", WAYS)
@pytest.mark.parametrize("outputs", WAYS)
def test_score(client, running, digits, inputs, outputs):
    names = ("log_likelihood_nats", "elbo_nats", "bits_per_dim", "p_value")
    result = client.infer(
        "tiny.score",
        [tensor("image", digits, inputs == "binary")],
        outputs=[triton.InferRequestedOutput(name, **WAYS[outputs]) for name in names],
        parameters={"seed": 3, "importance_samples": 16},
        request_id="mine-1",
    )
    answer = httpx.post(
        f"{running.url}/v1/score?seed=3&importance_samples=16",
        content=encode_npy(digits),
        headers={"content-type": "application/x-npy"},
    ).json()["results"]
    for name in names:
        expected = np.array([row[name] for row in answer], np.float32)
        assert result.as_numpy(name).dtype == np.float32
        assert np.array_equal(result.as_numpy(name), expected), name
    document = result.get_response()
    assert (document["id"], document["model_name"]) == ("mine-1", "tiny.score")
    assert document["model_version"] == "1.2.3"
    assert document["parameters"]["importance_samples"] == 16


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.5, "fdr": 0.5}, {"importance_samples": 3}])
def test_verdicts(client, running, digits, binary, options):
    """As v1 gives them; where v1 has null, -1."""
    names = ("anomalous", "discovery", "status")
    result = client.infer(
        "tiny.score",
        [tensor("image", digits, True)],
        outputs=[triton.InferRequestedOutput(name, binary_data=binary) for name in names],
        parameters=options,
    )
    answer = httpx.post(
        f"{running.url}/v1/score",
        params=options,
        content=encode_npy(digits),
        headers={"content-type": "application/x-npy"},
    ).json()
    for name in names[:2]:
        wanted = [-1 if row[name] is None else int(row[name]) for row in answer["results"]]
        assert result.as_numpy(name).dtype == np.int8
        assert result.as_numpy(name).tolist() == wanted
    texts = [t if isinstance(t, str) else t.decode() for t in result.as_numpy("status").tolist()]
    assert texts == [row["status"] for row in answer["results"]]
    parameters = result.get_response()["parameters"]
    for name in ("alpha", "certified_alpha", "fdr", "seed", "importance_samples"):
        assert parameters.get(name) == answer[name]
    calibration = answer["calibration"] or {}
    assert {k: parameters[f"calibration_{k}"] for k in calibration} == calibration


def test_a_verdict_has_its_evidence(client, running, digits):
    """By part, as v1 has it; and a note where nothing can be discovered."""
    options = {"fdr": 1e-6}
    given = [tensor("image", digits, True)]
    result = client.infer("tiny.score", given, parameters=options)
    answer = httpx.post(
        f"{running.url}/v1/score",
        params=options,
        content=encode_npy(digits),
        headers={"content-type": "application/x-npy"},
    ).json()
    parameters = result.get_response()["parameters"]
    names = parameters["evidence_names"].split(",")
    wanted = [[row["evidence"][name] for name in names] for row in answer["results"]]
    assert set(names) == set(answer["results"][0]["evidence"])
    assert np.allclose(result.as_numpy("evidence"), wanted, rtol=1e-6)
    assert parameters["notes"] == "; ".join(answer["notes"]) != ""
    few = client.infer("tiny.score", given, parameters={"importance_samples": 2})
    assert np.isnan(few.as_numpy("evidence")).all()


@pytest.mark.parametrize("binary", [True, False])
def test_sample(client, running, binary):
    seeds = np.array([5, 0, 7], np.int64)
    given = [
        tensor("seed", seeds, binary),
        tensor("temperature", np.array([1, 0.5, 0], np.float32), binary),
    ]
    result = client.infer("tiny.sample", given)  # all outputs, in binary
    for index, (seed, warmth) in enumerate(zip(seeds, (1, 0.5, 0), strict=True)):
        for name, output in (("image", "mean"), ("draw", "draw")):
            url = f"{running.url}/v1/sample?seed={seed}&temperature={warmth}&output={output}"
            alone = httpx.post(url, headers={"accept": "application/x-npy"}).content
            expected = decode_npy(alone, dtypes=("uint8",), max_items=16)
            assert np.array_equal(result.as_numpy(name)[index], expected[0]), name
    mean = result.as_numpy("mean")
    assert mean.dtype == np.float32
    assert np.array_equal(np.rint(255 * mean), result.as_numpy("image"))
    assert client.infer("tiny.sample", given[:1]).as_numpy("image").shape == (3, 1, 4, 4)


@pytest.mark.parametrize("binary", [True, False])
def test_encode_and_decode(client, running, digits, binary):
    wanted = [triton.InferRequestedOutput("z", binary_data=binary)]
    given = [tensor("image", digits, binary)]
    z = client.infer("tiny.encode", given, outputs=wanted).as_numpy("z")
    assert np.array_equal(z, native(running, "/v1/encode", digits))
    drawn = client.infer("tiny.encode", given, parameters={"seed": 1}).as_numpy("z")
    assert np.array_equal(drawn, native(running, "/v1/encode?seed=1", digits))
    mean = client.infer("tiny.decode", [tensor("z", z, binary)]).as_numpy("mean")
    assert np.array_equal(np.rint(255 * mean), native(running, "/v1/decode", z))


@pytest.mark.parametrize("way", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compressed(client, digits, way, binary):
    given = [tensor("image", np.tile(digits, (50, 1, 1, 1)), binary)]
    wanted = [triton.InferRequestedOutput("z", binary_data=binary)]
    plain = client.infer("tiny.encode", given, outputs=wanted)
    packed = client.infer(
        "tiny.encode",
        given,
        outputs=wanted,
        request_compression_algorithm=way,
        response_compression_algorithm=way,
    )
    assert np.array_equal(plain.as_numpy("z"), packed.as_numpy("z"))


def test_asynchronous(client, digits):
    alone = client.infer("tiny.encode", [tensor("image", digits, True)]).as_numpy("z")
    pending = [
        client.async_infer("tiny.encode", [tensor("image", digits[i : i + 1], i % 2 == 0)])
        for i in range(6)
    ]
    for index, one in enumerate(pending):
        assert np.array_equal(one.get_result().as_numpy("z"), alone[index : index + 1])


def test_outputs_are_chosen_one_by_one(client, digits):
    wanted = [
        triton.InferRequestedOutput("elbo_nats", binary_data=False),
        triton.InferRequestedOutput("p_value", binary_data=True),
    ]
    result = client.infer("tiny.score", [tensor("image", digits, True)], outputs=wanted)
    first, second = result.get_response()["outputs"]
    assert (first["name"], "data" in first) == ("elbo_nats", True)
    assert second["parameters"] == {"binary_data_size": 24}
    assert result.as_numpy("log_likelihood_nats") is None


@pytest.mark.parametrize("binary", [True, False])
def test_what_is_no_number_comes_back_as_none(client, digits, binary):
    result = client.infer(
        "tiny.score",
        [tensor("image", digits, True)],
        outputs=[triton.InferRequestedOutput("p_value", binary_data=binary)],
        parameters={"importance_samples": 2},  # not calibrated
    )
    assert np.isnan(result.as_numpy("p_value")).all()


def test_errors_are_the_clients_own(client, digits):
    given = [tensor("image", digits, True)]
    for words, status, call in (
        ("no model", "404", lambda: client.infer("tiny.none", given)),
        ("no version", "404", lambda: client.infer("tiny.score", given, model_version="9")),
        ("missing", "422", lambda: client.infer("tiny.sample", [])),
        ("no input 'image'", "422", lambda: client.infer("tiny.sample", given)),
        ("parameter 'k'", "422", lambda: client.infer("tiny.score", given, parameters={"k": 3})),
        (
            "above the limit of 1024",
            "413",
            lambda: client.infer("tiny.score", given, parameters={"importance_samples": 2000}),
        ),
        ("[-1, 1, 4, 4]", "422", lambda: client.infer("tiny.score", [odd_shape()])),
        ("must be UINT8", "422", lambda: client.infer("tiny.score", [odd_type()])),
        ("no model", "404", lambda: client.get_model_metadata("mnist.none")),
        ("nothing at", "404", lambda: client.get_log_settings()),
    ):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert words in caught.value.message()
        assert caught.value.status() == status


def odd_shape():
    return tensor("image", np.zeros((1, 5, 5), np.uint8), True)


def odd_type():
    return tensor("image", np.zeros((1, 1, 4, 4), np.float32), False)


def test_the_clients_calls_that_change_models_say_who_may(client):
    for call in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="/v1/admin/models/NAME/load"):
            call("tiny")


def test_the_clients_timeout_is_a_deadline(client, digits):
    with pytest.raises(InferenceServerException, match="deadline"):
        client.infer("tiny.score", [tensor("image", digits, True)], timeout=1)  # microseconds


def test_statistics_count(client, digits):
    def rows():
        (model,) = client.get_inference_statistics("tiny.decode", "1.2.3")["model_stats"]
        return model["inference_count"], model["inference_stats"]["success"]["count"]

    before = rows()
    client.infer("tiny.decode", [tensor("z", np.zeros((5, 3), np.float32), True)])
    assert rows() == (before[0] + 5, before[1] + 1)
    assert len(client.get_inference_statistics()["model_stats"]) == 4


@pytest.mark.parametrize("output", ["p_value", "log_likelihood_nats"])
def test_scores_count_with_and_without_a_verdict(client, digits, output):
    def counted():
        (model,) = client.get_inference_statistics("tiny.score")["model_stats"]
        return model["inference_count"], model["execution_count"]

    before = counted()
    wanted = [triton.InferRequestedOutput(output)]
    client.infer("tiny.score", [tensor("image", digits[:2], True)], outputs=wanted)
    rows, batches = counted()
    assert rows >= before[0] + 2
    assert batches > before[1]
