"""Statistics of ``/v2``, read from the metrics: requests of both protocols count together."""

from __future__ import annotations

from functools import partial

from service.api.v2.models import InferModel
from service.api.v2.schemas import Duration, ModelStatistics, Statistics
from service.metrics import Metrics

__all__ = ["statistics"]

REQUEST, FAILED, QUEUE, COMPUTE, BATCH = (
    f"iafvae_{name}"
    for name in (
        *("request_seconds", "failed_request_seconds", "queue_seconds", "compute_seconds"),
        "batch_rows",
    )
)


def statistics(metrics: Metrics, model: InferModel) -> ModelStatistics:
    """What `model` has done since the server started."""
    bundle = model.name.rpartition(".")[0]
    value = partial(
        metrics.registry.get_sample_value, labels={"operation": model.operation, "model": bundle}
    )
    durations = {
        name: Duration(
            count=int(value(f"{metric}_count") or 0),
            ns=round(1e9 * (value(f"{metric}_sum") or 0.0)),
        )
        for name, metric in (
            ("success", REQUEST),
            ("fail", FAILED),
            ("queue", QUEUE),
            ("compute_infer", COMPUTE),
        )
    }
    return ModelStatistics(
        name=model.name,
        version=model.version,
        inference_count=int(value(f"{BATCH}_sum") or 0),
        execution_count=int(value(f"{BATCH}_count") or 0),
        inference_stats=Statistics(**durations),
    )
