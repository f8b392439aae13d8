"""The application: wiring and lifespan, nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from service.bodies import Buffers
from service.exchange import Context
from service.middleware import HotPaths, RequestContext
from service.openapi import install_openapi
from service.problems import add_problem_handlers
from service.registry import Registry
from service.routes.models import model_router
from service.routes.ops import page_routes, probe_router
from service.routes.v1 import OPERATIONS, operation_routes
from service.settings import Settings, load_settings
from service.telemetry import Telemetry

__all__ = ["create_app", "program_version"]

DECODERS = 2  # threads for image files: bounds the pixels that are decoded at once
DESCRIPTION = (
    "Draw images from a density model, score images by log-likelihood, encode and reconstruct "
    "them. The model is a variational autoencoder with inverse autoregressive flow "
    "(arXiv:1606.04934). Errors are RFC 9457 problem documents with a stable `type`."
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service as an ASGI application; models are loaded, warmed and started by its lifespan.

    `settings` default to the ``IAFVAE_*`` environment variables. ``app.state.registry`` holds the
    models. Use one application for one lifespan.

    Raises:
        SettingsError: here; BundleError and ProviderUnavailable at start of the lifespan.
    """
    settings = settings or load_settings()
    decoders = ThreadPoolExecutor(DECODERS, "decoder")
    context = Context(
        settings=settings,
        registry=Registry(),
        telemetry=Telemetry(),
        buffers=Buffers(settings.max_buffered_bytes),
        decoders=decoders,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:  # noqa: ARG001
        if not context.registry.loaded:
            await asyncio.to_thread(context.registry.load, settings, context.telemetry)
        await context.registry.start()
        try:
            yield
        finally:
            await context.registry.stop(settings.drain_seconds)
            decoders.shutdown()

    app = FastAPI(
        title="iafvae",
        version=program_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere; ours is in service/web
        redoc_url=None,
    )
    app.state.context = context
    hot = operation_routes(context)
    app.router.routes.extend(hot)
    app.include_router(model_router(context))
    app.include_router(probe_router(context))
    app.router.routes.extend(page_routes())
    add_problem_handlers(app)
    install_openapi(app, OPERATIONS, context.registry)
    app.add_middleware(HotPaths, targets={route.path: route.app for route in hot})
    app.add_middleware(RequestContext, access_log=settings.access_log)
    return app


def program_version() -> str:
    """The installed version; "0" from a tree that is not installed."""
    try:
        return version("iafvae")
    except PackageNotFoundError:
        return "0"
