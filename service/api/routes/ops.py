"""Probes, metrics and the pages that people look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from service.api.state import Context

__all__ = ["page_routes", "probe_router"]

WEB = Path(__file__).resolve().parents[2] / "web"
# The pages load nothing from anywhere else, and a browser is told to hold them to it.
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
        "base-uri 'none'; form-action 'self'"
    ),
    "cache-control": "no-cache",
}


class Probe(BaseModel):
    """What a probe says; `reason` where it is not good."""

    status: Annotated[str, Field(examples=["ready"])]
    reason: Annotated[str | None, Field(examples=["draining"])] = None


def _refused(description: str) -> dict[int | str, dict[str, Any]]:
    return {503: {"model": Probe, "description": description}}


def probe_router(context: Context) -> APIRouter:
    """``/livez``, ``/readyz`` and ``/metrics``."""
    router = APIRouter(tags=["health and metrics"])
    registry, telemetry = context.registry, context.telemetry

    @router.head("/livez", include_in_schema=False)
    @router.get(
        "/livez",
        summary="Whether the process can still work",
        response_model=Probe,
        responses=_refused("A device failed: replace this process"),
    )
    async def livez() -> Response:
        return _probe(registry.healthy, "alive", "a device failed: replace this process")

    @router.head("/readyz", include_in_schema=False)
    @router.get(
        "/readyz",
        summary="Whether to send requests here",
        response_model=Probe,
        responses=_refused("Loading, draining, or a model is unhealthy"),
    )
    async def readyz() -> Response:
        ready = registry.ready and registry.healthy
        telemetry.ready(ready=ready)
        reason = "draining" if registry.draining else "loading, or a model is unhealthy"
        return _probe(ready, "ready", reason)

    @router.head("/metrics", include_in_schema=False)
    @router.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=PlainTextResponse,
        responses={200: {"content": {"text/plain": {"example": "iafvae_ready 1.0\n"}}}},
    )
    async def metrics() -> Response:
        telemetry.ready(ready=registry.ready and registry.healthy)
        body, media_type = telemetry.exposition()
        return Response(body, media_type=media_type)

    return router


def _probe(good: bool, word: str, reason: str) -> Response:
    document = {"status": word} if good else {"status": f"not {word}", "reason": reason}
    return JSONResponse(document, 200 if good else 503, {"cache-control": "no-store"})


def page_routes() -> list[Route | Mount]:
    """``/``, ``/docs`` and what they load."""

    async def page(_: object) -> Response:
        return FileResponse(WEB / "index.html", headers=PAGE_HEADERS)

    async def docs(_: object) -> Response:
        return FileResponse(WEB / "docs.html", headers=PAGE_HEADERS)

    return [
        Route("/", page, methods=["GET"], include_in_schema=False),
        Route("/docs", docs, methods=["GET"], include_in_schema=False),
        Mount("/web", _Assets(directory=WEB)),
    ]


class _Assets(StaticFiles):
    """Static files that browsers ask about again, so that an upgrade is seen at once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """One file, or 304."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response
