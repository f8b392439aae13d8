"""Metrics and logs, without a server."""

from __future__ import annotations

import json
import logging
import warnings

import pytest

from service.api.response.problems import PROBLEMS
from service.errors import shown_url
from service.logs import LOGGERS, configure_logging
from service.metrics import Metrics, ModelMetrics
from service.verdicts.drift import Drift


@pytest.fixture
def metrics():
    return Metrics()


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def test_a_request_is_counted_and_timed(metrics):
    metrics.request("score", "m", "ok", seconds=0.02, queue_seconds=0.0, compute_seconds=0.01)
    labels = {"operation": "score", "model": "m"}
    assert value(metrics, "iafvae_requests_total", **labels, outcome="ok") == 1
    assert value(metrics, "iafvae_request_seconds_sum", **labels) == 0.02
    assert value(metrics, "iafvae_queue_seconds_count", **labels) == 1
    assert value(metrics, "iafvae_compute_seconds_bucket", le="0.01", **labels) == 1
    assert value(metrics, "iafvae_compute_seconds_bucket", le="0.005", **labels) == 0


def test_histograms_reach_from_half_a_millisecond_to_ten_seconds(metrics):
    metrics.request("score", "m", "ok", seconds=1)
    page = metrics.exposition()[0].decode()
    assert 'iafvae_request_seconds_bucket{le="0.0005"' in page
    assert 'iafvae_request_seconds_bucket{le="10.0"' in page


def test_what_never_ran_has_no_queue_time(metrics):
    metrics.request("score", "m", "overloaded", seconds=0.001)
    labels = {"operation": "score", "model": "m"}
    assert value(metrics, "iafvae_queue_seconds_count", **labels) == 0
    assert value(metrics, "iafvae_failed_request_seconds_sum", **labels) == 0.001
    assert value(metrics, "iafvae_request_seconds_count", **labels) is None


@pytest.mark.parametrize("outcome", ["ok", "unauthorized"])
def test_a_trace_is_an_exemplar_of_what_was_answered(metrics, outcome):
    for trace in (None, "0af7651916cd43dd8448eb211c80319c"):
        metrics.request("score", "m", outcome, seconds=0.02, trace=trace)
    page = metrics.exposition("application/openmetrics-text; version=1.0.0")[0].decode()
    assert ('trace_id="0af7651916cd43dd8448eb211c80319c"' in page) == (outcome == "ok")
    labels = {"operation": "score", "model": "m", "outcome": outcome}
    assert value(metrics, "iafvae_requests_total", **labels) == 2


def test_the_page_stays_small_whatever_becomes_of_requests(metrics):
    metrics.request("score", "m", "ok", seconds=1)
    small = len(metrics.exposition()[0])
    for problem in PROBLEMS.values():
        metrics.request("score", "m", problem.type, seconds=1)
    assert len(metrics.exposition()[0]) - small < 100 * len(PROBLEMS)


def test_the_scheduler_reports(metrics):
    observer = ModelMetrics(metrics, "m")
    observer.batch("score", 7, 1, 0.003)
    observer.dropped("score", 5, "cancelled")
    observer.retried("score", 3)
    metrics.queued(lambda: {("score", "m"): 9})
    labels = {"operation": "score", "model": "m"}
    assert value(metrics, "iafvae_batch_rows_sum", **labels) == 7
    assert value(metrics, "iafvae_padded_rows_total", **labels) == 1
    assert value(metrics, "iafvae_dropped_rows_total", **labels, reason="cancelled") == 5
    assert value(metrics, "iafvae_batch_retries_total", **labels) == 3
    assert value(metrics, "iafvae_queue_rows", **labels) == 9


def test_drift_is_read_where_it_is_counted(metrics):
    drift = Drift(99)
    metrics.drifting(lambda: {("m", "1.0.0"): drift})
    labels = {"model": "m", "version": "1.0.0"}
    assert value(metrics, "iafvae_drift_log_martingale", **labels) == 0
    drift.add(range(3), [0.01, 0.03, 1.0])
    assert value(metrics, "iafvae_drift_log_martingale", **labels) == drift.log_martingale != 0
    assert value(metrics, "iafvae_drift_p_value_bucket", **labels, le="0.05") == 2
    assert value(metrics, "iafvae_drift_p_value_count", **labels) == 3
    assert value(metrics, "iafvae_drift_p_value_sum", **labels) == pytest.approx(1.04)


def test_non_finite_results_and_models(metrics):
    metrics.non_finite.labels("score", "m").inc(3)
    metrics.model_info(model="m", version="1", bundle="ab", provider="cpu", precision="float32")
    assert value(metrics, "iafvae_non_finite_results_total", operation="score", model="m") == 3
    assert b'iafvae_model_info{bundle="ab",model="m"' in metrics.exposition()[0]


def test_a_model_that_has_gone_is_not_listed(metrics):
    who = {"model": "m", "bundle": "ab", "provider": "cpu", "precision": "float32"}
    metrics.model_info(version="1", **who)
    metrics.model_info(version="2", **who)
    metrics.model_gone(version="1", **who)
    assert value(metrics, "iafvae_model_info", version="1", **who) is None
    assert value(metrics, "iafvae_model_info", version="2", **who) == 1


def test_applications_do_not_share(metrics):
    other = Metrics()
    for each, ready in ((metrics, True), (other, False)):
        each.watch("ready", "1 if the process takes requests.", lambda ready=ready: ready)
    assert (value(metrics, "iafvae_ready"), value(other, "iafvae_ready")) == (1, 0)


@pytest.fixture
def restored():
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers  # the list itself is changed by what is tested
        logger.setLevel(level)
        logger.propagate = propagate
    logging.captureWarnings(False)


def test_json_logs_are_json(restored, capsys):
    configure_logging("info", "json")
    try:
        raise ValueError("oh")
    except ValueError:
        logging.getLogger("iafvae.x").exception("it %s", "failed", extra={"fields": {"status": 5}})
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["message"], line["status"]) == ("error", "it failed", 5)
    assert "ValueError: oh" in line["exception"]


def test_what_libraries_warn_of_is_a_line_of_the_log(restored, capsys):
    """As Python warns of `1L` in the header of an npy file."""
    configure_logging("info", "json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn_explicit("invalid\nliteral", SyntaxWarning, "<unknown>", 1)
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")
    assert "invalid\nliteral" in line["message"]


def test_text_logs_show_fields(restored, capsys):
    configure_logging("warning", "text")
    logging.getLogger("iafvae").info("not shown")
    logging.getLogger("iafvae").warning("shown", extra={"fields": {"status": 5}})
    assert capsys.readouterr().err.rstrip().endswith("WARNING shown status=5")


def test_callers_write_no_lines_of_their_own(restored, capsys):
    configure_logging("info", "text")
    path = "/a\r\n12:00:00 ERROR   forged\x1b[31m\x85\u2028"
    logging.getLogger("iafvae").info("GET %s", path, extra={"fields": {"model": "b\nc"}})
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "\\x0d\\x0a12:00:00 ERROR   forged\\x1b[31m\\x85\\x2028 model=b\\x0ac" in text


def test_tracebacks_keep_their_lines(restored, capsys):
    configure_logging("info", "text")
    try:
        raise ValueError("oh")
    except ValueError:
        logging.getLogger("iafvae").exception("failed", extra={"fields": {"status": 5}})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("failed status=5")
    assert lines[-1] == "ValueError: oh"


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_line_holds_a_password_or_a_query(restored, capsys, form):
    """As OpenTelemetry's exporter names the URL that did not answer."""
    configure_logging("info", form)
    for url in ("https://me:hunter2@host/v1/traces?key=hunter2&a=b", "/v1/traces?api-key=hunter2"):
        try:
            raise OSError(f"no answer from {url}")
        except OSError:
            logging.getLogger("iafvae").exception("Max retries exceeded with url: %s (again?)", url)
    text = capsys.readouterr().err
    assert "hunter2" not in text
    assert text.count("/v1/traces (again?)") == 2
    if form == "json":
        assert all(json.loads(line)["exception"] for line in text.splitlines())


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hunter2@host/m?sig=hunter2#hunter2",
        "https://me:hunt@hunter2@host/m",
        "https://me:hunter2 hunter2@host/m",
        "https://host/m?hunter2)hunter2",
        "me:hunter2@host/m",
        "s3://me:hunter2@host/m",
    ],
)
def test_a_shown_url_says_where_alone(url):
    shown = shown_url(url)
    assert "hunt" not in shown
    assert shown.endswith("host/m")
