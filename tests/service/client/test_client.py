"""The client against an application, and the errors that it raises."""

from __future__ import annotations

import io

import httpx
import numpy as np
import pytest
from PIL import Image

from service.client import Client, ProblemError, ServiceUnreachable
from service.codecs.npy import encode_npy


@pytest.fixture
def client(server):
    return Client(http=server)


def test_every_operation(client, digits, tiny_model):
    drawn = client.sample(4, seed=1, temperature=[0.5], output="draw")
    assert drawn.images.shape == (4, 1, 4, 4)
    assert drawn.images.dtype == np.uint8
    assert (drawn.model, drawn.version, drawn.provider, drawn.seed) == ("tiny", "1.2.3", "cpu", 1)
    digits = np.where(digits < 128, 0, 255).astype(np.uint8)  # nothing grey, that would be drawn
    coded = client.encode(digits)
    assert np.allclose(coded.latents, tiny_model.posterior_mean(digits), atol=1e-5)
    assert coded.seed is None
    assert np.array_equal(client.decode(coded.latents).images, client.reconstruct(digits).images)
    assert client.interpolate(digits[:2], 5).images.shape == (5, 1, 4, 4)
    assert client.models()["default"] == client.model()["name"] == "tiny"


def test_an_http_client_of_ones_own_asks_the_same_server_with_the_same_key():
    asked = []

    def answer(request):
        asked.append((str(request.url), request.headers.get("authorization")))
        return httpx.Response(200, json={"default": "a", "models": []})

    own = httpx.Client(transport=httpx.MockTransport(answer))
    with Client("http://somewhere:1/below", key="secret", http=own) as client:
        client.models()
    placed = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://elsewhere")
    with Client(http=placed) as client:
        client.models()
    assert asked == [
        ("http://somewhere:1/below/v1/models", "Bearer secret"),
        ("http://elsewhere/v1/models", None),
    ]


def test_a_drawn_seed_draws_the_same_again(client):
    first = client.sample(2)
    assert np.array_equal(client.sample(2, seed=first.seed).images, first.images)


def test_scores_are_columns(client, digits):
    table = client.score(digits, importance_samples=1)
    assert len(table) == 6
    assert table.log_likelihood_nats.shape == (6,)
    assert np.isnan(table.standard_error_nats).all()
    assert (table.estimator, table.importance_samples, table.seed) == ("elbo", 1, 0)
    assert table.anomalous.dtype == np.bool_


def test_images_that_were_altered_before_are_judged_as_such(client, server, tiny_model):
    images = np.unique(tiny_model.images(6, seed=77), axis=0)
    altered = np.arange(len(images)) % 2 == 1
    who = {"model": "tiny", "version": "1.2.3"}
    before = server.metric("iafvae_drift_p_value_count", **who)
    table = client.score(images, altered=altered)
    assert table.altered.tolist() == altered.tolist()
    assert [status == "altered" for status in table.status] == altered.tolist()
    assert (table.decided == ~altered).all()
    counted = server.metric("iafvae_drift_p_value_count", **who) - before
    assert counted == (~altered).sum()
    plain = client.score(images)
    assert np.array_equal(plain.p_value, table.p_value)
    assert not plain.altered.any()
    refused = server.post("/v1/score", params={"altered": "9"}, json={"images": []})
    assert refused.status_code == 422


def test_maps_and_boxes_of_one_request_are_those_of_two(client, digits):
    maps, boxes = client.anomalies(digits, seed=3, boxes=2)
    assert np.array_equal(maps, client.anomaly_map(digits, seed=3).array)
    assert boxes == client.anomaly_boxes(digits, seed=3, boxes=2)


def test_a_sheet_is_a_png(client):
    with Image.open(io.BytesIO(client.sheet(9, seed=0))) as image:
        assert image.format == "PNG"


def test_refusals_carry_the_problem(client):
    with pytest.raises(ProblemError, match="resize=true") as caught:
        client.score(np.zeros((1, 5, 5), np.uint8))
    assert (caught.value.type, caught.value.status) == ("wrong-shape", 422)
    assert caught.value.request_id
    with pytest.raises(ProblemError) as caught:
        Client(http=client._http, model="none").sample()
    assert caught.value.type == "unknown-model"


def test_an_answer_that_is_no_problem_document(digits):
    def proxy(request):
        return httpx.Response(502, text="<html>Bad gateway</html>")

    http = httpx.Client(transport=httpx.MockTransport(proxy), base_url="http://t")
    with Client(http=http) as client, pytest.raises(ProblemError, match="Bad gateway") as caught:
        client.score(digits)
    assert caught.value.status == 502


JSON, NPY = {"content-type": "application/json"}, {"content-type": "application/x-npy"}
STRANGERS = {
    "html": httpx.Response(200, html="<html>login</html>"),
    "nothing": httpx.Response(204),
    "a list": httpx.Response(200, json=[]),
    "an empty object": httpx.Response(200, json={}),
    "broken JSON": httpx.Response(200, text="{", headers=JSON),
    "an array": httpx.Response(
        200, content=encode_npy(np.zeros((1, 1, 4, 4), np.uint8)), headers=NPY
    ),
    "JSON nested without end": httpx.Response(200, content=b"[" * 10**5, headers=JSON),
    "a broken array": httpx.Response(200, content=b"\x93NUMPY\x01\x00\x00\x00", headers=NPY),
}
CALLS = {
    "models": lambda client, digits: client.models(),
    "model": lambda client, digits: client.model("tiny"),
    "sample": lambda client, digits: client.sample(),
    "sheet": lambda client, digits: client.sheet(),
    "score": lambda client, digits: client.score(digits),
    "anomalies": lambda client, digits: client.anomalies(digits),
    "anomaly_boxes": lambda client, digits: client.anomaly_boxes(digits),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("stranger", STRANGERS)
def test_another_server(digits, stranger, call):
    answer = STRANGERS[stranger]
    transport = httpx.MockTransport(lambda request: answer)
    http = httpx.Client(transport=transport, base_url="http://me:hunter2@t")
    expected = rf"^http://t is no iafvae service \(it answered {answer.status_code} with"
    with Client(http=http) as client, pytest.raises(ServiceUnreachable, match=expected):
        CALLS[call](client, digits)


@pytest.mark.parametrize("stranger", ["html", "nothing", "a list", "a broken array"])
def test_another_server_has_no_stream(stranger):
    http = httpx.Client(
        transport=httpx.MockTransport(lambda _: STRANGERS[stranger]), base_url="http://t"
    )
    with (
        Client(http=http) as client,
        pytest.raises(ServiceUnreachable, match="is no iafvae service"),
    ):
        list(client.stream(3))


def test_nobody_there():
    with Client("http://127.0.0.1:9") as client, pytest.raises(ServiceUnreachable, match="serve"):
        client.models()
    with (
        Client("http://me:hunter2@127.0.0.1:9/?key=hunter2") as client,
        pytest.raises(ServiceUnreachable) as caught,
    ):
        client.models()
    assert "hunter2" not in str(caught.value)
