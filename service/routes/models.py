"""``/v1/models``: what is loaded."""

from __future__ import annotations

from fastapi import APIRouter

from service.bundle import manifest_to_json
from service.exchange import Context
from service.operations import ModelRuntime
from service.schemas import ModelDescription, ModelsResponse
from service.settings import Settings

__all__ = ["model_router"]


def model_router(context: Context) -> APIRouter:
    """``GET /v1/models`` and ``GET /v1/models/{name}``."""
    router = APIRouter(prefix="/v1", tags=["models"])
    registry, settings = context.registry, context.settings

    @router.get("/models", summary="What is loaded")
    async def list_models() -> ModelsResponse:
        models = [_describe(runtime, registry.default, settings) for runtime in registry]
        return ModelsResponse(default=registry.default, models=models)

    @router.get("/models/{name}", summary="One model: its manifest and figures")
    async def get_model(name: str) -> ModelDescription:
        return _describe(registry.get(name), registry.default, settings)

    return router


def _describe(runtime: ModelRuntime, default: str, settings: Settings) -> ModelDescription:
    manifest = runtime.bundle.manifest
    names = ("max_n", "max_images", "max_importance_samples", "max_rows", "max_body_bytes")
    return ModelDescription(
        name=runtime.name,
        version=manifest.version,
        default=runtime.name == default,
        ready=runtime.ready,
        bundle=runtime.bundle.hash,
        provider=runtime.provider,
        precision=runtime.precision,
        manifest=manifest_to_json(manifest),
        limits={name: getattr(settings, name) for name in names},
    )
