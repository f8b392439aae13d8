"""What an operator sees: Prometheus metrics, named ``iafvae_*``, and logs.

Every application has a registry of its own, so that several live in one process.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["ModelTelemetry", "Telemetry", "configure_logging"]

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
INFO = ("model", "version", "bundle", "provider", "precision")


class Telemetry:
    """The metrics of one application. Outcomes are "ok" or an error's slug."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        who, what = ("operation", "model"), ("operation", "model", "outcome")
        make = _Maker(self.registry)
        self._requests = make.counter("requests", "Requests answered or given up.", what)
        self._request_seconds = make.histogram(
            "request_seconds", "From a request's headers to its answer.", what, SECONDS
        )
        self._queue_seconds = make.histogram(
            "queue_seconds", "Time that a request's rows waited.", what, SECONDS
        )
        self._compute_seconds = make.histogram(
            "compute_seconds", "Time that a request's batches computed.", what, SECONDS
        )
        self._batch_rows = make.histogram("batch_rows", "Rows computed together.", who, ROWS)
        self._batch_seconds = make.histogram("batch_seconds", "Time of one batch.", who, SECONDS)
        self._padded = make.counter("padded_rows", "Rows added to fill a batch's shape.", who)
        self._queue_rows = make.gauge("queue_rows", "Rows that wait.", who)
        self._dropped = make.counter(
            "dropped_rows", "Rows never computed, by reason.", (*who, "reason")
        )
        self._retries = make.counter(
            "batch_retries", "Runs of halves of batches that failed as a whole.", who
        )
        self._non_finite = make.counter("non_finite_results", "Results with NaN or infinity.", who)
        self._info = make.gauge(
            "model_info",
            "1 for each loaded model.",
            INFO,
        )
        self._changes = make.counter(
            "model_changes",
            "Models loaded, swapped for another bundle, unloaded.",
            ("model", "change"),
        )
        self._load_failures = make.counter(
            "model_load_failures", "Bundles that were refused, by directory.", ("directory",)
        )
        self._models = make.gauge(
            "models",
            "Models by state: loaded, retiring (replaced, but still answering), failed.",
            ("state",),
        )
        self._ready = make.gauge("ready", "1 if the process takes requests.", ())
        self._children = lru_cache(maxsize=512)(_request_children)

    def request(
        self,
        operation: str,
        model: str,
        outcome: str,
        *,
        seconds: float,
        queue_seconds: float | None = None,
        compute_seconds: float | None = None,
    ) -> None:
        """Count one request; queue and compute time are known where its operation ran."""
        count, whole, queue, compute = self._children(self, operation, model, outcome)
        count()
        whole(seconds)
        if queue_seconds is not None:
            queue(queue_seconds)
        if compute_seconds is not None:
            compute(compute_seconds)

    def non_finite(self, operation: str, model: str, results: int) -> None:
        """Count results that are not finite."""
        if results:
            self._non_finite.labels(operation, model).inc(results)

    def ready(self, *, ready: bool) -> None:
        """Set the gauge that mirrors ``/readyz``."""
        self._ready.set(int(ready))

    def model(self, name: str) -> ModelTelemetry:
        """What the scheduler of model `name` reports to."""
        return ModelTelemetry(self, name)

    def model_info(self, *, model: str, version: str, bundle: str, **who: str) -> None:
        """State a loaded model; `who` are its provider and precision."""
        self._info.labels(model=model, version=version, bundle=bundle, **who).set(1)

    def model_gone(self, *, model: str, version: str, bundle: str, **who: str) -> None:
        """Take back what `model_info` said."""
        labels = {"model": model, "version": version, "bundle": bundle, **who}
        self._info.remove(*(labels[name] for name in INFO))

    def model_changed(self, model: str, change: str) -> None:
        """Count a model that was loaded, swapped or unloaded."""
        self._changes.labels(model, change).inc()

    def model_failed(self, directory: str) -> None:
        """Count a bundle that was refused."""
        self._load_failures.labels(directory).inc()

    def models(self, state: str, count: Callable[[], int]) -> None:
        """Let the gauge of models in `state` say what `count` gives whenever it is read."""
        self._models.labels(state).set_function(count)

    def exposition(self) -> tuple[bytes, str]:
        """The page of ``/metrics`` and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class ModelTelemetry:
    """The scheduler's observer for one model; may be called from any thread."""

    def __init__(self, telemetry: Telemetry, model: str) -> None:
        self._telemetry, self._model = telemetry, model
        self._by_operation: dict[str, tuple[Histogram, Histogram, Counter]] = {}
        self._queue_rows: dict[str, tuple[Gauge, int]] = {}

    def batch(self, operation: str, rows: int, padded: int, seconds: float) -> None:
        """A batch of `rows` rows, of which none is among the `padded`, took `seconds`."""
        metrics = self._by_operation.get(operation)
        if metrics is None:
            labels = (operation, self._model)
            metrics = (
                self._telemetry._batch_rows.labels(*labels),
                self._telemetry._batch_seconds.labels(*labels),
                self._telemetry._padded.labels(*labels),
            )
            self._by_operation[operation] = metrics
        metrics[0].observe(rows)
        metrics[1].observe(seconds)
        if padded:
            metrics[2].inc(padded)

    def dropped(self, operation: str, rows: int, reason: str) -> None:
        """`rows` rows will never be computed."""
        self._telemetry._dropped.labels(operation, self._model, reason).inc(rows)

    def retried(self, operation: str, runs: int) -> None:
        """A batch failed and was run `runs` times more, in halves."""
        self._telemetry._retries.labels(operation, self._model).inc(runs)

    def queue(self, rows: Mapping[str, int]) -> None:
        """So many rows of each operation now wait; versions of one model add up."""
        for operation, waiting in rows.items():
            known = self._queue_rows.get(operation)
            if known is None:
                known = self._telemetry._queue_rows.labels(operation, self._model), 0
            gauge, before = known
            if waiting != before:
                gauge.inc(waiting - before)
            self._queue_rows[operation] = gauge, waiting


class _Maker:
    """Metrics with the common prefix and registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"iafvae_{name}", text, labels, registry=self._registry)

    def gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(f"iafvae_{name}", text, labels, registry=self._registry)

    def histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(f"iafvae_{name}", text, labels, registry=self._registry, buckets=buckets)


Count = Callable[..., None]


def _request_children(
    telemetry: Telemetry, operation: str, model: str, outcome: str
) -> tuple[Count, Count, Count, Count]:
    """The four metrics of one kind of request; looking labels up costs more than counting."""
    labels = (operation, model, outcome)
    return (
        telemetry._requests.labels(*labels).inc,
        telemetry._request_seconds.labels(*labels).observe,
        telemetry._queue_seconds.labels(*labels).observe,
        telemetry._compute_seconds.labels(*labels).observe,
    )


class _JsonFormatter(logging.Formatter):
    """One JSON object a line; what is passed as ``extra={"fields": {...}}`` becomes members."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


# A path may hold line breaks and a terminal's commands: callers must not write lines of their own.
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


class _TextFormatter(logging.Formatter):
    """For people: time, level, message, then the fields as ``name=value``, in one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """All of the record but a traceback, which comes after it on lines of its own."""
        fields = getattr(record, "fields", {})
        line = super().formatMessage(record) + "".join(f" {k}={v}" for k, v in fields.items())
        return line.translate(CONTROL)


def configure_logging(level: str, form: str) -> None:
    """Send the logs of this program and of uvicorn to standard error, as "text" or "json"."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _JsonFormatter()
        if form == "json"
        else _TextFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    )
    for name in ("iafvae", "service", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
