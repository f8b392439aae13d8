"""``/v2``: the Open Inference Protocol (KServe v2, as Triton's clients speak it) over REST."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import APIRouter

from service.api.openapi import (
    BINARY_CONTENT,
    HEADERS,
    REF,
    described_headers,
    inference_error,
    timeout_parameter,
)
from service.api.state import AppState
from service.api.v2.infer import BINARY, HEADER_LENGTH, InferRoute
from service.api.v2.models import InferModel, InferModels
from service.api.v2.schemas import (
    ConfigTensor,
    Duration,
    HealthDocument,
    InferDocument,
    InferenceError,
    InferResult,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    ModelStatistics,
    RepositoryEntry,
    ServerMetadata,
    Statistics,
    StatisticsDocument,
)
from service.api.v2.tensors import TensorInfo
from service.bundle import Manifest
from service.codecs import JSON
from service.errors import ShuttingDown
from service.metrics import Metrics
from service.settings import Settings

__all__ = ["infer_routes", "inference_router"]

PLATFORM = "iafvae_onnx"
EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics", "model_repository"]
UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": InferenceError, "description": "Unknown model or version"},
    503: {"model": InferenceError, "description": "No model is loaded yet, or it is not ready"},
}
NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"model": InferenceError, "description": "Not now"}
}
STATUSES = (400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504)
VERSIONS = "/models/{name}/versions/{version}"
BATCH = "iafvae_batch_rows"
# Batches are counted by graph, whose name is the operation's but for scores with a verdict.
GRAPHS = {"score": ("score", "evidence")}
DURATIONS = {
    "success": "iafvae_request_seconds",
    "fail": "iafvae_failed_request_seconds",
    "queue": "iafvae_queue_seconds",
    "compute_infer": "iafvae_compute_seconds",
}


INFER = """Four operations of a bundle are models. `mnist.score`: input `image` UINT8 `[N,C,H,W]`;
outputs `log_likelihood_nats`, `elbo_nats`, `bits_per_dim`, `p_value` FP32 `[N]`, `anomalous` and
`discovery` INT8 (-1: no decision), `status` BYTES, `evidence` FP32 `[N,parts]`; parameters `seed`,
`importance_samples`, `alpha`, `fdr`. `mnist.sample`: inputs `seed` INT64 `[N]`, one image a seed,
and optionally `temperature` FP32 `[N]`; outputs `image` UINT8 (the mean as pixels), `draw` UINT8,
`mean` FP32.
`mnist.encode`: `image` to `z` FP32 `[N,D]`; parameter `seed`. `mnist.decode`: `z` to `mean`.

With the binary tensor data extension the body is JSON followed by the bytes of the tensors, in
order, little-endian; the header `Inference-Header-Content-Length` is then the length of the JSON.
Bodies may be compressed with gzip or deflate, and answers are where `Accept-Encoding` names one of
them."""


def infer_routes(shared: AppState, models: InferModels) -> list[InferRoute]:
    """``infer``, with and without a version."""

    # For what FastAPI documents: the routes answer by themselves.
    async def infer(model: str) -> None: ...
    async def infer_version(model: str, version: str) -> None: ...

    return [
        InferRoute(
            f"/v2/models/{path}/infer", endpoint, shared, models, **_documented(endpoint.__name__)
        )
        for path, endpoint in (("{model}", infer), ("{model}/versions/{version}", infer_version))
    ]


def _documented(name: str) -> dict[str, Any]:
    """What the routes of ``infer`` declare: arguments of `APIRoute`."""
    headers = {k: v for k, v in HEADERS.items() if k != "x-iafvae-altered"} | {
        HEADER_LENGTH: "Bytes of JSON before the tensors' bytes; absent where there are none"
    }
    length = {
        "name": HEADER_LENGTH,
        "in": "header",
        "required": False,
        "description": "How many bytes of the body are JSON; absent: all.",
        "schema": {"type": "integer", "minimum": 0},
    }
    document = {"schema": {"$ref": REF.format(model=InferDocument.__name__)}}
    return {
        "tags": ["Open Inference Protocol"],
        "operation_id": name,
        "summary": "Compute, by the Open Inference Protocol",
        "description": INFER,
        "response_model": InferResult,
        "responses": {
            200: {
                "description": "Done",
                "headers": described_headers(headers),
                "content": {BINARY: BINARY_CONTENT},
            },
            **{status: inference_error(status) for status in STATUSES},
        },
        "openapi_extra": {
            "parameters": [timeout_parameter(), length],
            "requestBody": {"required": True, "content": {JSON: document, BINARY: BINARY_CONTENT}},
        },
    }


def inference_router(shared: AppState, models: InferModels, *, version: str) -> APIRouter:
    """Health, metadata, configuration and statistics; `version` is the program's."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    _add_server(router, shared, models, version)
    _add_models(router, shared, models)
    return router


def _add_server(router: APIRouter, shared: AppState, models: InferModels, version: str) -> None:
    registry = shared.registry

    @router.get(
        "/health/live",
        summary="Whether the server lives",
        responses=NOT_READY,
        response_model_exclude_none=True,
    )
    async def live() -> HealthDocument:
        return _health(registry.healthy, "live")

    @router.get(
        "/health/ready",
        summary="Whether every model is ready",
        responses=NOT_READY,
        response_model_exclude_none=True,
    )
    async def ready() -> HealthDocument:
        return _health(registry.ready, "ready")

    @router.get("", summary="The server and its extensions")
    async def server() -> ServerMetadata:
        return ServerMetadata(name="iafvae", version=version, extensions=EXTENSIONS)

    @router.post("/repository/index", summary="Every model that is here")
    async def index() -> list[RepositoryEntry]:
        return [
            RepositoryEntry(
                name=infer.name,
                version=infer.version,
                state="READY" if model.ready else "UNAVAILABLE",
            )
            for model, infer in models
        ]

    @router.get("/models/stats", summary="What all models have done")
    async def all_stats() -> StatisticsDocument:
        return StatisticsDocument(
            model_stats=_statistics(shared.metrics, [infer for _, infer in models])
        )


def _add_models(router: APIRouter, shared: AppState, models: InferModels) -> None:
    registry, settings = shared.registry, shared.settings

    @router.get(VERSIONS, summary="What a model takes and gives", responses=UNKNOWN)
    @router.get("/models/{name}", summary="What a model takes and gives", responses=UNKNOWN)
    async def metadata(name: str, version: str | None = None) -> ModelMetadata:
        loaded, infer = models.find(name, version)
        versions = [infer.version] if version else list(registry.versions(loaded.name))
        said = {"name": infer.name, "versions": versions, "platform": PLATFORM}
        tensors = {"inputs": infer.inputs, "outputs": infer.outputs}
        return ModelMetadata.model_validate(said | tensors, from_attributes=True)

    @router.get(f"{VERSIONS}/ready", summary="Whether a model is", responses=UNKNOWN)
    @router.get("/models/{name}/ready", summary="Whether a model is", responses=UNKNOWN)
    async def model_ready(name: str, version: str | None = None) -> ModelReady:
        loaded, infer = models.find(name, version)
        if not loaded.runtime.ready:
            raise ShuttingDown(f"{infer.name} is not ready: a device failed, or the service stops")
        return ModelReady(name=infer.name, ready=True)

    @router.get(f"{VERSIONS}/config", summary="A model's configuration", responses=UNKNOWN)
    @router.get("/models/{name}/config", summary="A model's configuration", responses=UNKNOWN)
    async def config(name: str, version: str | None = None) -> ModelConfig:
        loaded, infer = models.find(name, version)
        return ModelConfig(
            name=infer.name,
            platform=PLATFORM,
            backend=loaded.runtime.engine.backend,
            max_batch_size=_most(infer.operation, loaded.runtime.manifest, settings),
            input=_configured(infer.inputs),
            output=_configured(infer.outputs),
        )

    @router.get(f"{VERSIONS}/stats", summary="What a model has done", responses=UNKNOWN)
    @router.get("/models/{name}/stats", summary="What a model has done", responses=UNKNOWN)
    async def stats(name: str, version: str | None = None) -> StatisticsDocument:
        _, infer = models.find(name, version)
        return StatisticsDocument(model_stats=_statistics(shared.metrics, [infer]))


def _health(good: bool, what: str) -> HealthDocument:
    document = HealthDocument.model_validate({what: good})
    if not good:
        raise ShuttingDown(f"the server is not {what}: /readyz says why")
    return document


def _most(operation: str, manifest: Manifest, settings: Settings) -> int:
    """How many rows the tensors of one request may have, with the default parameters."""
    if operation == "sample":
        return settings.max_n
    if operation != "score":
        return settings.max_images
    each = manifest.scoring.default_importance_samples
    return max(1, min(settings.max_images, settings.max_rows // each))


def _configured(tensors: tuple[TensorInfo, ...]) -> list[ConfigTensor]:
    return [
        ConfigTensor.model_validate(
            {
                "name": info.name,
                "data_type": f"TYPE_{info.datatype}".replace("BYTES", "STRING"),
                "dims": list(info.shape[1:]) or [1],
                "optional": info.optional,
            }
        )
        for info in tensors
    ]


def _statistics(metrics: Metrics, models: Iterable[InferModel]) -> list[ModelStatistics]:
    """What each of `models` has done since the server started, of the metrics: requests of both
    protocols count together."""
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
    graphs = GRAPHS.get(model.operation, (model.operation,))

    def value(name: str) -> float:
        return sum(values.get((name, graph, bundle), 0.0) for graph in graphs)

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
