"""Statistics of ``/v2``, read from the metrics: requests of both protocols count together."""

from __future__ import annotations

from service.api.v2.models import InferModel
from service.api.v2.schemas import Duration, ModelStatistics, Statistics
from service.metrics import Metrics

__all__ = ["statistics"]

REQUEST, QUEUE, COMPUTE, BATCH = (
    f"iafvae_{name}"
    for name in ("request_seconds", "queue_seconds", "compute_seconds", "batch_rows")
)


def statistics(metrics: Metrics, model: InferModel) -> ModelStatistics:
    """What `model` has done since the server started."""
    bundle = model.name.rpartition(".")[0]
    totals = _totals(metrics, model.operation, bundle)
    durations = {
        name: Duration(
            count=int(totals.get((metric, "count", good), 0)),
            ns=round(1e9 * totals.get((metric, "sum", good), 0.0)),
        )
        for name, metric, good in (
            ("success", REQUEST, True),
            ("fail", REQUEST, False),
            ("queue", QUEUE, True),
            ("compute_infer", COMPUTE, True),
        )
    }
    return ModelStatistics(
        name=model.name,
        version=model.version,
        inference_count=int(totals.get((BATCH, "sum", True), 0)),
        execution_count=int(totals.get((BATCH, "count", True), 0)),
        inference_stats=Statistics(**durations),
    )


def _totals(metrics: Metrics, operation: str, bundle: str) -> dict[tuple[str, str, bool], float]:
    """Counts and sums by metric, and whether the outcome was good; every other one is not."""
    totals: dict[tuple[str, str, bool], float] = {}
    for metric in metrics.registry.collect():
        if metric.name not in (REQUEST, QUEUE, COMPUTE, BATCH):
            continue
        for sample in metric.samples:
            kind = sample.name.rpartition("_")[2]
            labels = sample.labels
            mine = (labels["operation"], labels["model"]) == (operation, bundle)
            if mine and kind in ("count", "sum"):
                key = (metric.name, kind, labels.get("outcome", "ok") == "ok")
                totals[key] = totals.get(key, 0.0) + sample.value
    return totals
