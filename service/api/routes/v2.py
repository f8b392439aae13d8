"""``/v2``: the Open Inference Protocol (KServe v2, as Triton's clients speak it) over REST."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.routing import Route

from service.api.state import Context
from service.api.v2.infer import InferExchange
from service.api.v2.models import INFER_OPERATIONS, InferModel, find_model, infer_model
from service.api.v2.schemas import (
    ConfigTensor,
    HealthDocument,
    InferenceError,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    RepositoryEntry,
    ServerMetadata,
    StatisticsDocument,
    TensorMetadata,
)
from service.api.v2.statistics import statistics
from service.api.v2.tensors import TensorInfo
from service.errors import ShuttingDown
from service.operations.model import ModelRuntime

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
VERSIONS = "/models/{name}/versions/{version}"


def infer_routes(exchange: InferExchange) -> list[Route]:
    """The hot routes: plain ASGI, documented by `service.openapi`."""
    paths = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
    return [Route(path, exchange, methods=["POST"]) for path in paths]


def inference_router(context: Context, *, version: str) -> APIRouter:
    """Health, metadata, configuration and statistics; `version` is the program's."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    _add_server(router, context, version)
    _add_models(router, context)
    return router


def _add_server(router: APIRouter, context: Context, version: str) -> None:
    registry = context.registry

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
        return _health(registry.ready and registry.healthy, "ready")

    @router.get("", summary="The server and its extensions")
    async def server() -> ServerMetadata:
        return ServerMetadata(name="iafvae", version=version, extensions=EXTENSIONS)

    @router.post("/repository/index", summary="Every model that is here")
    async def index() -> list[RepositoryEntry]:
        return [
            RepositoryEntry(
                name=infer_model(runtime, operation).name,
                version=runtime.bundle.manifest.version,
                state="READY" if runtime.ready else "UNAVAILABLE",
            )
            for runtime in registry
            for operation in INFER_OPERATIONS
        ]

    @router.get("/models/stats", summary="What all models have done")
    async def all_stats() -> StatisticsDocument:
        models = [infer_model(runtime, name) for runtime in registry for name in INFER_OPERATIONS]
        return StatisticsDocument(model_stats=[statistics(context.telemetry, m) for m in models])


def _add_models(router: APIRouter, context: Context) -> None:
    registry = context.registry

    @router.get(f"{VERSIONS}", summary="What a model takes and gives", responses=UNKNOWN)
    @router.get("/models/{name}", summary="What a model takes and gives", responses=UNKNOWN)
    async def metadata(name: str, version: str | None = None) -> ModelMetadata:
        runtime, model = find_model(registry, name, version)
        versions = [model.version] if version else list(registry.versions(runtime.name))
        return _metadata(model, versions)

    @router.get(f"{VERSIONS}/ready", summary="Whether a model is", responses=UNKNOWN)
    @router.get("/models/{name}/ready", summary="Whether a model is", responses=UNKNOWN)
    async def model_ready(name: str, version: str | None = None) -> ModelReady:
        runtime, model = find_model(registry, name, version)
        if not runtime.ready:
            raise ShuttingDown(f"{model.name} is not ready: a device failed, or the service stops")
        return ModelReady(name=model.name, ready=True)

    @router.get(f"{VERSIONS}/config", summary="A model's configuration", responses=UNKNOWN)
    @router.get("/models/{name}/config", summary="A model's configuration", responses=UNKNOWN)
    async def config(name: str, version: str | None = None) -> ModelConfig:
        return _config(context, *find_model(registry, name, version))

    @router.get(f"{VERSIONS}/stats", summary="What a model has done", responses=UNKNOWN)
    @router.get("/models/{name}/stats", summary="What a model has done", responses=UNKNOWN)
    async def stats(name: str, version: str | None = None) -> StatisticsDocument:
        _, model = find_model(registry, name, version)
        return StatisticsDocument(model_stats=[statistics(context.telemetry, model)])


def _health(good: bool, what: str) -> HealthDocument:
    document = HealthDocument.model_validate({what: good})
    if not good:
        raise ShuttingDown(f"the server is not {what}: /readyz says why")
    return document


def _metadata(model: InferModel, versions: list[str]) -> ModelMetadata:
    def described(infos: tuple[TensorInfo, ...]) -> list[TensorMetadata]:
        return [
            TensorMetadata.model_validate(
                {"name": info.name, "datatype": info.datatype, "shape": list(info.shape)}
            )
            for info in infos
        ]

    return ModelMetadata(
        name=model.name,
        versions=versions,
        platform=PLATFORM,
        inputs=described(model.inputs),
        outputs=described(model.outputs),
    )


def _config(context: Context, runtime: ModelRuntime, model: InferModel) -> ModelConfig:
    def described(infos: tuple[TensorInfo, ...]) -> list[ConfigTensor]:
        return [
            ConfigTensor.model_validate(
                {
                    "name": info.name,
                    "data_type": f"TYPE_{info.datatype}",
                    "dims": list(info.shape[1:]) or [1],
                    "optional": info.optional,
                }
            )
            for info in infos
        ]

    settings = context.settings
    return ModelConfig(
        name=model.name,
        platform=PLATFORM,
        backend=runtime.backend,
        max_batch_size=settings.max_n if model.operation == "sample" else settings.max_images,
        input=described(model.inputs),
        output=described(model.outputs),
    )
