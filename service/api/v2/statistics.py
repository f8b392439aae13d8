"""Statistics of ``/v2``, read from the metrics: requests of both protocols count together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from service.api.v2.models import InferModel
from service.api.v2.schemas import Duration, ModelStatistics, Statistics
from service.metrics import Metrics

__all__ = ["statistics"]

BATCH = "iafvae_batch_rows"
DURATIONS = {
    "success": "iafvae_request_seconds",
    "fail": "iafvae_failed_request_seconds",
    "queue": "iafvae_queue_seconds",
    "compute_infer": "iafvae_compute_seconds",
}


def statistics(metrics: Metrics, models: Iterable[InferModel]) -> list[ModelStatistics]:
    """What each of `models` has done since the server started."""
    values = {
        (sample.name, sample.labels.get("operation"), sample.labels.get("model")): sample.value
        for family in metrics.registry.collect()  # once: it asks whatever is watched, too
        if family.name in (BATCH, *DURATIONS.values())
        for sample in family.samples
    }
    return [_of_model(values, model) for model in models]


def _of_model(
    values: Mapping[tuple[str, str | None, str | None], float], model: InferModel
) -> ModelStatistics:
    bundle = model.name.rpartition(".")[0]

    def value(name: str) -> float:
        return values.get((name, model.operation, bundle), 0.0)

    durations = {
        name: Duration(count=int(value(f"{metric}_count")), ns=round(1e9 * value(f"{metric}_sum")))
        for name, metric in DURATIONS.items()
    }
    return ModelStatistics(
        name=model.name,
        version=model.version,
        inference_count=int(value(f"{BATCH}_sum")),
        execution_count=int(value(f"{BATCH}_count")),
        inference_stats=Statistics(**durations),
    )
