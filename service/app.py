"""The application: wiring and lifespan, nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.openapi import install_openapi
from service.api.request.body import Buffers
from service.api.response.problems import add_problem_handlers
from service.api.routes.admin import admin_router
from service.api.routes.models import model_router
from service.api.routes.ops import page_routes, probe_router
from service.api.routes.v1 import OPERATIONS, operation_routes
from service.api.routes.v2 import infer_routes, inference_router
from service.api.security.admission import Gate
from service.api.security.auth import with_access_control
from service.api.security.middleware import HotPaths, RequestContext
from service.api.state import Context
from service.api.v2.infer import InferExchange
from service.repository.manager import ModelManager
from service.repository.registry import Registry
from service.repository.watcher import Watcher
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

    `settings` default to the ``IAFVAE_*`` environment variables. ``app.state.context.registry``
    holds the models, ``app.state.manager`` changes them. Use one application for one lifespan.

    Raises:
        SettingsError, KeyFileError: here.
        BundleError, ProviderUnavailable: at the start of the lifespan.
    """
    settings = settings or load_settings()
    decoders = ThreadPoolExecutor(DECODERS, "decoder")
    context = Context(
        settings=settings,
        registry=Registry(settings.drain_seconds),
        telemetry=Telemetry(),
        buffers=Buffers(settings.max_buffered_bytes),
        decoders=decoders,
    )
    manager = ModelManager(settings, context.registry, context.telemetry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:  # noqa: ARG001
        if not context.registry.loaded:
            await asyncio.to_thread(manager.load_all)
        await context.registry.start()
        try:
            async with _watching(manager, context):
                yield
        finally:
            await manager.stop()
            await context.registry.stop(settings.drain_seconds)
            decoders.shutdown()

    app = _Application(
        title="iafvae",
        version=program_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere; ours is in service/web
        redoc_url=None,
        # Asking at every request whether somebody traces costs more than our own middleware.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.context, app.state.manager = context, manager
    hot = operation_routes(context)
    infer = InferExchange(context)
    app.router.routes.extend([*hot, *infer_routes(infer)])
    app.include_router(model_router(context))
    app.include_router(admin_router(manager))
    app.include_router(probe_router(context))
    app.include_router(inference_router(context, version=app.version))
    app.router.routes.extend(page_routes())
    add_problem_handlers(app)
    install_openapi(app, OPERATIONS, context.registry)
    targets = {route.path: route.app for route in hot}
    gate = Gate(settings.max_in_flight, frozenset(targets), context.telemetry)
    paths = HotPaths(app.routed, targets=targets, infer=infer, gate=gate)
    guarded = with_access_control(paths, context)
    app.outermost = RequestContext(guarded, access_log=settings.access_log)
    # For a server that refuses requests before they are tasks; not where every answer must go
    # through the access log or the headers of other origins.
    direct = not settings.access_log and not settings.cors_origins
    app.state.admission = gate if direct else None
    return app


class _Application(FastAPI):
    """FastAPI behind what every request goes through first.

    As middleware of its own that would stand behind four others, which cost an operation as much
    as it does: operations never get to them, and need none.
    """

    outermost: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or follow the server's life."""
        app = self.outermost if scope["type"] == "http" else self.routed
        await app(scope, receive, send)

    async def routed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """FastAPI's own stack and routes."""
        await super().__call__(scope, receive, send)


@asynccontextmanager
async def _watching(manager: ModelManager, context: Context) -> AsyncGenerator[None, None]:
    """Follow the directory of models meanwhile, where the settings ask for it."""
    seconds = context.settings.watch_seconds
    if not seconds:
        yield
        return
    task = asyncio.create_task(Watcher(manager, context.registry).run(seconds))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def program_version() -> str:
    """The installed version; "0" from a tree that is not installed."""
    try:
        return version("iafvae")
    except PackageNotFoundError:
        return "0"
