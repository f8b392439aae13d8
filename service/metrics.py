"""What an operator sees: Prometheus metrics, named ``iafvae_*``.

Every application has a registry of its own, so that several live in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    Summary,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.verdicts.drift import Drift

__all__ = ["Metrics", "ModelMetrics"]

disable_created_metrics()  # type: ignore[no-untyped-call] # a series for each series, which nobody asks for

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
Count = Callable[..., None]
Taken = Callable[[str, int], None]  # a caller, and its rows
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
WHO = ("operation", "model")
INFO = ("model", "version", "bundle", "provider", "precision")


class Metrics:
    """The metrics of one application. Outcomes are "ok" or an error's slug."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        where: dict[str, Any] = {"namespace": "iafvae", "registry": self.registry}

        def count(name: str, text: str, labels: tuple[str, ...] = WHO) -> Counter:
            return Counter(name, text, labels, **where)

        def timed(name: str, text: str) -> Histogram:
            return Histogram(name, text, WHO, buckets=SECONDS, **where)

        self._requests = count("requests", "Requests answered or given up.", (*WHO, "outcome"))
        self._request_seconds = timed("request_seconds", "From a request's headers to its answer.")
        self._failed_seconds = Summary(
            "failed_request_seconds", "The same of requests whose outcome is not ok.", WHO, **where
        )
        self._queue_seconds = timed("queue_seconds", "Time that a request's rows waited.")
        self._compute_seconds = timed("compute_seconds", "Time that a request's batches computed.")
        self._batch_rows = Histogram(
            "batch_rows", "Rows computed together.", WHO, buckets=ROWS, **where
        )
        self._batch_seconds = timed("batch_seconds", "Time of one batch.")
        self._padded = count("padded_rows", "Rows added to fill a batch's shape.")
        self.dropped = count("dropped_rows", "Rows never computed, by reason.", (*WHO, "reason"))
        self.retries = count("batch_retries", "Runs of halves of batches that failed as a whole.")
        self.non_finite = count("non_finite_results", "Results with NaN or infinity.")
        self._info = Gauge("model_info", "1 for each loaded model.", INFO, **where)
        changed = "Models loaded, swapped for another bundle, unloaded."
        self.changes = count("model_changes", changed, ("model", "change"))
        refused = "Bundles that were refused, by directory."
        self.load_failures = count("model_load_failures", refused, ("directory",))
        states = (
            "Models by state: loaded, retiring (replaced, but still answering), failed; foreign is "
            "what a file system puts beside them (lost+found)."
        )
        self.models = Gauge("models", states, ("state",), **where)
        self.taken: Taken = lambda _caller, _rows: None  # hears of rows that are to be computed
        self._request = lru_cache(maxsize=512)(self._request_children)
        self.batches = lru_cache(maxsize=512)(self._batch_children)

    def request(
        self,
        operation: str,
        model: str,
        outcome: str,
        *,
        seconds: float,
        queue_seconds: float | None = None,
        compute_seconds: float | None = None,
        trace: str | None = None,
    ) -> None:
        """Count one request; queue and compute time are known where its operation ran.

        trace: the id of its trace, an exemplar of how long it took.
        """
        count, whole, queue, compute = self._request(operation, model, outcome)
        count()
        if trace is None or outcome != "ok":  # a summary takes no exemplar
            whole(seconds)
        else:
            whole(seconds, {"trace_id": trace})
        if queue_seconds is not None:
            queue(queue_seconds)
        if compute_seconds is not None:
            compute(compute_seconds)

    def model_info(self, **who: str) -> None:
        """Export a loaded model as an info metric; `who`: a value for each label of INFO."""
        self._info.labels(**who).set(1)

    def model_gone(self, **who: str) -> None:
        """Remove what `model_info` stated."""
        self._info.remove(*(who[name] for name in INFO))

    def _request_children(
        self, operation: str, model: str, outcome: str
    ) -> tuple[Count, Count, Count, Count]:
        """The four metrics of one kind of request; looking labels up costs more than counting."""
        who = (operation, model)
        whole = self._request_seconds if outcome == "ok" else self._failed_seconds
        return (
            self._requests.labels(*who, outcome).inc,
            whole.labels(*who).observe,
            self._queue_seconds.labels(*who).observe,
            self._compute_seconds.labels(*who).observe,
        )

    def _batch_children(self, operation: str, model: str) -> tuple[Count, Count, Count]:
        """The three metrics of one kind of batch: rows, seconds, rows of padding."""
        labels = (operation, model)
        return (
            self._batch_rows.labels(*labels).observe,
            self._batch_seconds.labels(*labels).observe,
            self._padded.labels(*labels).inc,
        )

    def queued(self, rows: Callable[[], dict[tuple[str, str], int]]) -> None:
        """A gauge of what `rows` gives, by operation and model, whenever it is read."""

        def collect() -> Iterable[Metric]:
            gauge = GaugeMetricFamily("iafvae_queue_rows", "Rows that wait.", labels=WHO)
            for labels, waiting in rows().items():
                gauge.add_metric(labels, waiting)
            yield gauge

        self.registry.register(_Read(collect))

    def drifting(self, models: Callable[[], dict[tuple[str, str], Drift]]) -> None:
        """Metrics of what `models` gives, by model and version, whenever they are read: how unlike
        the calibration images those are that were scored."""

        def collect() -> Iterable[Metric]:
            who = ("model", "version")
            capital = GaugeMetricFamily(
                "iafvae_drift_log_martingale",
                "Natural logarithm of what bets against 'as calibrated' have made of 1: above 3, "
                "which 1 stream in 20 without drift ever reaches, images differ from "
                "calibration's.",
                labels=who,
            )
            p_values = HistogramMetricFamily(
                "iafvae_drift_p_value",
                "p-values of the images that count for drift; uniform as calibrated.",
                labels=who,
            )
            for labels, drift in models().items():
                capital.add_metric(labels, drift.log_martingale)
                p_values.add_metric(labels, drift.buckets, drift.p_sum)
            return (capital, p_values)

        self.registry.register(_Read(collect))

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that says what `value` gives whenever it is read."""
        Gauge(f"iafvae_{name}", text, registry=self.registry).set_function(value)

    def exposition(self, kind: str = "") -> tuple[bytes, str]:
        """The page of ``/metrics`` and its content type: OpenMetrics, which has exemplars, where
        `kind` is its media type. No header of a client's: the library fails at some versions.
        """
        encode, media_type = choose_encoder(kind)
        return encode(self.registry), media_type


class ModelMetrics:
    """The scheduler's observer for one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics, self._model = metrics, model

    def taken(self, caller: str, rows: int) -> None:
        """`rows` rows of `caller` will be computed."""
        self._metrics.taken(caller, rows)

    def batch(self, operation: str, rows: int, padded: int, seconds: float) -> None:
        """A batch of `rows` rows, of which none is among the `padded`, took `seconds`."""
        computed, took, for_nothing = self._metrics.batches(operation, self._model)
        computed(rows)
        took(seconds)
        if padded:
            for_nothing(padded)

    def dropped(self, operation: str, rows: int, reason: str) -> None:
        """`rows` rows will never be computed."""
        self._metrics.dropped.labels(operation, self._model, reason).inc(rows)

    def retried(self, operation: str, runs: int) -> None:
        """A batch failed and was run `runs` times more, in halves."""
        self._metrics.retries.labels(operation, self._model).inc(runs)


class _Read(Collector):
    """Metrics that are made whenever they are read."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()
