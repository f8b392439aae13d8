"""Probes, metrics, models, OpenAPI, and the frameworks' own errors."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.api.response.schemas import CalibrationDistances, ModelDescription, ModelsResponse
from service.codecs.npy import encode_npy

NPY = {"content-type": "application/x-npy"}


def test_probes(server):
    assert server.get("/livez").json() == {"status": "alive"}
    ready = server.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


def test_readiness_ends_with_draining_but_requests_are_served(serve):
    client = serve()
    client.app.state.shared.registry.drain()
    assert client.get("/readyz").status_code == 503
    assert client.get("/readyz").json()["reason"] == "draining"
    assert client.get("/livez").status_code == 200
    assert client.post("/v1/sample").status_code == 200


def test_liveness_ends_with_a_fault_of_the_device(serve, problem):
    client = serve()
    runtime = client.app.state.shared.registry.find().runtime
    runtime.scheduler.healthy = False
    assert client.get("/livez").status_code == 503
    assert client.get("/readyz").status_code == 503
    problem(client.post("/v1/sample"), 500, "device-fault")


def test_metrics(serve, digits):
    client = serve()
    client.post("/v1/score?importance_samples=1", content=encode_npy(digits), headers=NPY)
    client.post("/v1/sample", json={"n": 0})
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    who = {"operation": "score", "model": "tiny"}
    assert client.metric("iafvae_requests_total", outcome="ok", **who) == 1
    assert client.metric("iafvae_compute_seconds_count", **who) == 1
    graph = {"operation": "evidence", "model": "tiny"}  # what computes a score with its verdict
    assert client.metric("iafvae_batch_rows_sum", **graph) == 6
    bad = {"operation": "sample", "model": "", "outcome": "invalid-input"}
    assert client.metric("iafvae_requests_total", **bad) == 1
    assert client.metric("iafvae_ready") == 1
    assert 'iafvae_model_info{bundle="' in page.text
    assert 'model="tiny"' in page.text


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        *[("application/openmetrics-text;version=" + v, "openmetrics") for v in ("x", "9", "²")],
        ("application/openmetrics-text;version=" + "9" * 1900, "openmetrics"),
        ("application/openmetrics-text;escaping=dots, */*;q=0.1", "openmetrics"),
        ("application/openmetrics-text;q=0", "plain"),
        ("text/plain;version=²", "plain"),
        ("application/json", "plain"),
    ],
)
def test_metrics_have_the_types_that_there_are(server, accept, media_type):
    page = server.get("/metrics", headers={"accept": accept.encode("latin-1")})
    assert page.status_code == 200
    known = {
        "plain": "text/plain; version=0.0.4; charset=utf-8",
        "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
    }
    assert page.headers["content-type"] == known[media_type]
    assert "iafvae_ready 1.0" in page.text


def test_the_document_of_the_api_is_made_beside_the_event_loop(serve, monkeypatch):
    """It takes a tenth of a second."""
    client, threads = serve(), []
    make = client.app.openapi
    monkeypatch.setattr(
        client.app, "openapi", lambda: threads.append(threading.get_ident()) or make()
    )
    assert client.get("/openapi.json").json()["openapi"].startswith("3.")
    assert threads != [client.run(thread())]


async def thread():
    return threading.get_ident()


def test_the_document_of_the_api_is_made_once_for_all_who_ask_at_once(serve, monkeypatch):
    from service.api import openapi

    made, make = [], openapi.get_openapi

    def slowly(**kwargs):
        made.append(make(**kwargs))
        time.sleep(0.1)  # the others are at it, too
        return made[-1]

    monkeypatch.setattr(openapi, "get_openapi", slowly)
    app = serve().app
    with ThreadPoolExecutor(3) as threads:
        first, *others = [threads.submit(app.openapi) for _ in range(3)]
    assert all(each.result() is first.result() for each in others)
    assert made == [first.result()]


def test_the_first_who_ask_at_once_all_get_the_whole_document(serve, monkeypatch):
    """Also where one of them is done while another has begun."""
    from service.api.routes import pages

    render = pages.JSONResponse
    monkeypatch.setattr(pages, "JSONResponse", lambda made: time.sleep(0.05) or render(made))
    client = serve()
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(client.get, "/openapi.json") for _ in range(4)]
    assert len({answer.result().content for answer in asked}) == 1
    assert asked[0].result().json()["openapi"].startswith("3.")


def test_models(server):
    models = ModelsResponse.model_validate(server.get("/v1/models").json())
    assert models.default == "tiny"
    model = ModelDescription.model_validate(server.get("/v1/models/tiny").json())
    assert model == models.models[0]
    assert model.manifest["image"] == {"channels": 1, "height": 4, "width": 4, "levels": 256}
    assert model.manifest["evaluation"][0]["value_nats"] == -9.5
    assert model.limits["max_n"] == 1024


def test_p_values_are_ranks_among_the_distances_of_calibration_images(server, digits):
    """(1 + as far) / (1 + n) has to be met by a number of distances: whole, and from 0 to n."""
    path = "/v1/models/tiny/calibration"
    found = CalibrationDistances.model_validate(server.get(path).json())
    distances, n = found.distances, len(found.distances)
    manifest = server.get("/v1/models/tiny").json()["manifest"]
    assert n == manifest["calibration"]["images"]
    assert found.importance_samples == manifest["scoring"]["default_importance_samples"]
    assert distances == sorted(distances)
    assert server.get("/v1/models/tiny/versions/1.2.3/calibration").json() == found.model_dump()
    other = server.get(path, params={"importance_samples": 1}).json()
    assert other["distances"] != distances
    scored = server.post("/v1/score", content=encode_npy(digits), headers=NPY).json()
    for result in scored["results"]:
        as_far = result["p_value"] * (n + 1) - 1
        assert as_far == pytest.approx(round(as_far), abs=1e-6)
        assert 0 <= round(as_far) <= n


def test_calibrations_that_are_not_there(server, problem):
    path = "/v1/models/tiny/calibration"
    detail = problem(server.get(f"{path}?importance_samples=5"), 422, "invalid-input")
    assert "calibrated at 1, 16, 64" in detail
    problem(server.get("/v1/models/none/calibration"), 404, "unknown-model")


def test_errors_of_the_frameworks_are_problems_too(server, problem):
    problem(server.get("/nothing"), 404, "not-found")
    assert "tiny" in problem(server.get("/v1/models/none"), 404, "unknown-model")
    answer = server.get("/v1/score")
    assert "POST" in problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"
    problem(server.delete("/v1/models"), 405, "method-not-allowed")
    problem(server.get("/web/nothing.js"), 404, "not-found")
    assert server.get("/web/../settings.py").status_code == 404


def test_an_unforeseen_error_is_a_problem_without_insides(serve, problem, monkeypatch, caplog):
    client = serve()
    runtime = client.app.state.shared.registry.find().runtime

    async def broken(*_args, **_named):
        raise RuntimeError("secret path /etc/x")

    monkeypatch.setattr(runtime, "draw", broken)
    answer = client.post("/v1/sample")
    detail = problem(answer, 500, "internal-error")
    assert answer.headers["x-iafvae-model"] == "tiny"
    assert "secret" not in detail
    assert any("secret" in record.message for record in caplog.records)


@pytest.mark.parametrize("path", ["/v1/sample", "/v1/models", "/livez", "/", "/nothing"])
def test_every_answer_has_a_request_id(server, path):
    first, second = server.get(path), server.get(path)
    assert len(first.headers["x-request-id"]) == 24
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.headers["x-content-type-options"] == "nosniff"


def test_a_sane_request_id_is_kept_and_others_are_replaced(server):
    kept = server.get("/livez", headers={"x-request-id": "trace-1.a"})
    assert kept.headers["x-request-id"] == "trace-1.a"
    for odd in ("a b", "x" * 200, '"'):
        replaced = server.get("/livez", headers={"x-request-id": odd})
        assert len(replaced.headers["x-request-id"]) == 24


def test_access_log(serve, caplog):
    client = serve(access_log=True)
    with caplog.at_level("INFO", "iafvae.access"):
        client.post("/v1/sample")
        client.get("/nothing")
    first, second = (r for r in caplog.records if r.name == "iafvae.access")
    assert first.getMessage() == "POST /v1/sample"
    assert first.fields["outcome"] == "ok"
    assert first.fields["compute_seconds"] > 0
    assert second.fields["status"] == 404
