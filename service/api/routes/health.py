"""Probes and metrics."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from service.api.request.negotiation import negotiate
from service.api.state import AppState

__all__ = ["probe_router"]

EXPOSITIONS = ("text/plain", "application/openmetrics-text")


class Probe(BaseModel):
    """What a probe says; `reason` where it is not good."""

    status: Annotated[str, Field(examples=["ready"])]
    reason: Annotated[str | None, Field(examples=["draining"])] = None


def probe_router(shared: AppState) -> APIRouter:
    """``/livez``, ``/readyz`` and ``/metrics``."""
    router = APIRouter(tags=["health and metrics"])
    registry, metrics = shared.registry, shared.metrics

    @router.get(
        "/livez",
        summary="Whether the process can still work",
        response_model=Probe,
        responses={503: {"model": Probe, "description": "A device failed: replace this process"}},
    )
    async def livez() -> Response:
        return _probe(registry.healthy, "alive", "a device failed: replace this process")

    @router.get(
        "/readyz",
        summary="Whether to send requests here",
        response_model=Probe,
        responses={
            503: {"model": Probe, "description": "Loading, draining, or a model is unhealthy"}
        },
    )
    async def readyz() -> Response:
        reason = "draining" if registry.draining else "loading, or a model is unhealthy"
        return _probe(registry.ready, "ready", reason)

    @router.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=PlainTextResponse,
        responses={200: {"content": {"text/plain": {"example": "iafvae_ready 1.0\n"}}}},
    )
    async def exposition(request: Request) -> Response:
        accept = ", ".join(request.headers.getlist("accept"))
        # Who asks for neither gets text, as from every exporter.
        body, media_type = metrics.exposition(negotiate(f"{accept}, */*;q=0.001", EXPOSITIONS))
        return Response(body, media_type=media_type)

    return router


def _probe(good: bool, word: str, reason: str) -> Response:
    document = {"status": word} if good else {"status": f"not {word}", "reason": reason}
    return JSONResponse(document, 200 if good else 503)
