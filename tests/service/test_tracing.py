"""Traces: what a collector would get of a request, through the real application."""

from __future__ import annotations

import http.server
import re
import threading

import pytest

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from service import app as application
from service import tracing
from service.codecs import NPY
from service.codecs.npy import encode_npy
from service.settings import Settings, SettingsError

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PARTS = ["parse", "queue", "compute", "encode"]


@pytest.fixture
def exported(serve, monkeypatch):
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(application, "_tracer", lambda: tracing.Tracer(exporter))
    return serve(tracing=True), exporter


def test_a_request_is_a_span_with_its_parts_in_the_callers_trace(exported):
    client, exporter = exported
    answer = client.post("/v1/sample", json={"n": 3}, headers={"traceparent": PARENT})
    client.post("/v1/sample", json={"n": 0}, headers={"traceparent": PARENT[:-1] + "0"})
    metrics = client.get("/metrics", headers={"accept": "application/openmetrics-text"})
    client.app.state.shared.tracer.close()
    *parts, span = sorted(exporter.get_finished_spans(), key=lambda s: s.name == "sample tiny")
    assert span.name == "sample tiny"
    assert f"{span.context.trace_id:032x}" == PARENT[3:35]
    assert f"{span.parent.span_id:016x}" == PARENT[36:52]
    assert span.attributes["iafvae.outcome"] == "ok"
    assert span.attributes["iafvae.request_id"] == answer.headers["x-request-id"]
    assert span.resource.attributes["service.name"] == "iafvae"
    assert [part.name for part in parts] == PARTS
    assert all(part.parent.span_id == span.context.span_id for part in parts)
    edges = [span.start_time, *(part.end_time for part in parts)]
    assert edges == sorted(edges)
    assert [part.start_time for part in parts] == edges[:-1]
    assert edges[-1] <= span.end_time + 1e6
    assert f'trace_id="{PARENT[3:35]}"' in metrics.text  # the exemplar of its bucket
    assert metrics.text.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("asked", "outcome", "status"),
    [
        ({"json": {"n": 0}}, "invalid-input", StatusCode.UNSET),
        ({"json": {"model": "other"}}, "unknown-model", StatusCode.UNSET),
        ({"headers": {"x-iafvae-timeout-seconds": "1e-6"}}, "deadline-exceeded", StatusCode.ERROR),
    ],
)
def test_a_span_is_an_error_where_the_service_is_at_fault(exported, asked, outcome, status):
    """As OpenTelemetry's conventions for HTTP say of 4xx and 5xx on the server's side."""
    client, exporter = exported
    assert client.post("/v1/sample", **asked).status_code >= 400
    client.app.state.shared.tracer.close()
    span = exporter.get_finished_spans()[-1]
    assert (span.attributes["iafvae.outcome"], span.status.status_code) == (outcome, status)


@pytest.mark.parametrize(
    "parent",
    [
        "nonsense",
        PARENT.replace("b7ad6b7169203331", "0" * 16),
        PARENT + "-more",
        "ff" + PARENT[2:],
        PARENT.upper(),
        "x" * 20_000,
    ],
)
def test_a_malformed_parent_begins_a_trace_of_its_own(exported, parent):
    client, exporter = exported
    answer = client.post("/v1/sample", json={"n": 1}, headers={"traceparent": parent})
    assert answer.status_code == 200
    client.app.state.shared.tracer.close()
    span = exporter.get_finished_spans()[-1]
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != PARENT[3:35]


@pytest.mark.parametrize("operation", ["sample", "score"])  # score: two graphs, at once
def test_server_timing_adds_up(exported, operation, digits):
    client, _ = exported
    if operation == "sample":
        answer = client.post("/v1/sample", json={"n": 2})
    else:
        images = {"content": encode_npy(digits), "headers": {"content-type": NPY}}
        answer = client.post("/v1/score", **images)
    times = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
    assert list(times) == [*PARTS, "total"]
    assert sum(float(times[part]) for part in PARTS) == pytest.approx(
        float(times["total"]), abs=0.1
    )
    refused = client.post("/v1/sample", json={"n": -1})
    for other in (refused, client.get("/"), client.get("/nowhere"), client.get("/v1/models")):
        assert re.fullmatch(r"total;dur=[\d.]+", other.headers["server-timing"])


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization: Bearer hunter2=="),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", 'a=b, authorization="hunter2"'),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),  # below the default of a batch
    ],
)
def test_variables_that_cannot_be_meant_end_the_start_and_show_no_token(
    tiny_bundle, monkeypatch, caplog, variable, value
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=r"^IAFVAE_TRACING: [^\n]+$") as found:
        application.create_app(Settings(models=tiny_bundle, provider="cpu", tracing=True))
    assert "hunter2" not in str(found.value) + caplog.text


def test_the_end_does_not_wait_for_a_collector(monkeypatch):
    monkeypatch.setattr(tracing, "CLOSE_SECONDS", 0.2)
    hung = threading.Event()

    class Silent(InMemorySpanExporter):
        def export(self, spans):
            hung.wait(20)
            return super().export(spans)

    exporter = Silent()
    tracer = tracing.Tracer(exporter)
    tracer.request({}, "score", 0.1, [], {}, failed=False)
    tracer.close()
    assert not exporter.get_finished_spans(), "it waited"
    hung.set()


def test_headers_as_opentelemetry_takes_them(monkeypatch, caplog):
    given = "authorization=Bearer a.b_c==,  x-scope = one?=&/:@ ,,api-key=%20"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", given)
    tracing.Tracer().close()
    assert "invalid" not in caplog.text


def test_spans_reach_a_collector_where_the_standard_variables_say(monkeypatch):
    """By the exporter itself, over HTTP, read with OpenTelemetry's own protocol."""
    traces = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    taken = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            sent = traces.ExportTraceServiceRequest.FromString(body)
            taken.append((self.path, self.headers["x-scope"], sent.resource_spans[0]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        for name, value in {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-scope=one",
            "OTEL_SERVICE_NAME": "eyes",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(tracing, "CLOSE_SECONDS", 30)
        tracer = tracing.Tracer()
        tracer.request({"traceparent": PARENT}, "score", 0.1, [("parse", 0.01)], {}, failed=False)
        tracer.close()
        server.shutdown()
        thread.join()
    ((path, scope, resource),) = taken
    assert (path, scope) == ("/v1/traces", "one")
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert named["service.name"] == "eyes"
    spans = resource.scope_spans[0].spans
    assert [span.name for span in spans] == ["parse", "score"]
    assert {span.trace_id.hex() for span in spans} == {PARENT[3:35]}


def test_without_tracing_nothing_of_it_is_imported(tiny_bundle, monkeypatch):
    def never():
        raise AssertionError

    monkeypatch.setattr(application, "_tracer", never)
    app = application.create_app(Settings(models=tiny_bundle, provider="cpu"))
    assert app.state.shared.tracer is None
