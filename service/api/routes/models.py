"""``/v1/models``: what is loaded, in which versions, and what could not be."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service.api.openapi import documented
from service.api.request.schemas import MAX_COUNT, WHOLE
from service.api.response.schemas import (
    CalibrationDistances,
    FailedBundle,
    ModelDescription,
    ModelsResponse,
)
from service.api.state import AppState
from service.bundle import manifest_to_json
from service.errors import InvalidInput
from service.repository.registry import LoadedModel, Registry
from service.settings import Settings

__all__ = ["model_router"]

ImportanceSamples = Annotated[
    int | None,
    Query(ge=1, le=MAX_COUNT, description="K of the scores; absent: the model's default."),
    WHOLE,
]
LIMITS = (
    "max_n",
    "max_stream_n",
    "max_images",
    "max_total_pixels",
    "max_importance_samples",
    "max_rows",
    "max_body_bytes",
)


def model_router(context: AppState) -> APIRouter:
    """``GET /v1/models``, ``/v1/models/{name}`` and ``/v1/models/{name}/versions/{version}``, and
    what each of the latter two was calibrated with."""
    router = APIRouter(prefix="/v1", tags=["models"])
    registry, settings = context.registry, context.settings

    @router.get("/models", summary="What is loaded, and what could not be")
    async def list_models() -> ModelsResponse:
        return ModelsResponse(
            default=registry.default,
            models=[_describe(model, registry, settings) for model in registry.models],
            failed=[
                FailedBundle(directory=directory, reason=reason)
                for directory, reason in sorted(registry.failed.items())
            ],
        )

    @router.get(
        "/models/{name}",
        summary="The version that answers for a name: its manifest and figures",
        responses=documented(404, 422, 503),
    )
    async def get_model(name: str) -> ModelDescription:
        return _describe(registry.find(name), registry, settings)

    @router.get(
        "/models/{name}/versions/{version}",
        summary="One version of a model: its manifest and figures",
        responses=documented(404, 422, 503),
    )
    async def get_version(name: str, version: str) -> ModelDescription:
        return _describe(registry.find(name, version), registry, settings)

    @router.get(
        "/models/{name}/calibration",
        summary="The distances of calibration images, among which a p-value ranks an image",
        responses=documented(404, 422, 503),
    )
    async def get_calibration(
        name: str, importance_samples: ImportanceSamples = None
    ) -> CalibrationDistances:
        return _distances(registry.find(name), importance_samples)

    @router.get(
        "/models/{name}/versions/{version}/calibration",
        summary="The distances of one version's calibration images",
        responses=documented(404, 422, 503),
    )
    async def get_version_calibration(
        name: str, version: str, importance_samples: ImportanceSamples = None
    ) -> CalibrationDistances:
        return _distances(registry.find(name, version), importance_samples)

    return router


def _distances(model: LoadedModel, importance_samples: int | None) -> CalibrationDistances:
    bundle = model.runtime.bundle
    known = {} if bundle.reference is None else bundle.reference.distances
    k = importance_samples or bundle.manifest.scoring.default_importance_samples
    if k not in known:
        has = ", ".join(map(str, known)) or "none"
        raise InvalidInput(f"importance_samples={k}: {model.name} is calibrated at {has}")
    # As short as float32 is written, not with the digits that a double would have.
    distances = [float(str(distance)) for distance in known[k]]
    return CalibrationDistances(
        model=model.name, version=model.version, importance_samples=k, distances=distances
    )


def _describe(model: LoadedModel, registry: Registry, settings: Settings) -> ModelDescription:
    runtime = model.runtime
    answering = registry.find(model.name) is model
    return ModelDescription(
        name=model.name,
        version=model.version,
        versions=list(registry.versions(model.name)),
        default=answering and model.name == registry.default,
        default_version=answering,
        pinned=registry.pinned(model.name) == model.version,
        ready=runtime.ready,
        directory=model.directory,
        bundle=runtime.bundle.hash,
        provider=runtime.provider,
        precision=runtime.precision,
        manifest=manifest_to_json(runtime.bundle.manifest),
        limits={name: getattr(settings, name) for name in LIMITS},
    )
