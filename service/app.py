"""The application: wiring and lifespan, nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from service.api.openapi import HEADERS, install_openapi
from service.api.request.limits import TIMEOUT_HEADER
from service.api.response.problems import add_problem_handlers
from service.api.routes.admin import admin_router
from service.api.routes.health import probe_router
from service.api.routes.models import model_router
from service.api.routes.pages import page_routes
from service.api.routes.v1 import operation_routes
from service.api.routes.v2 import infer_routes, inference_router
from service.api.security.admission import Admission, Quota
from service.api.security.auth import KeyGuard
from service.api.security.keys import KeyFile
from service.api.security.middleware import RequestContext
from service.api.state import AppState
from service.api.v2.infer import HEADER_LENGTH
from service.api.v2.models import InferModels
from service.codecs.pool import DecoderPool, Threads
from service.engine.hardware import available_cores
from service.metrics import Metrics
from service.repository.manager import ModelManager
from service.repository.registry import Registry
from service.repository.watcher import Watcher
from service.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from service.tracing import Tracer

__all__ = ["create_app", "program_version"]

THREADS = 4  # for long work on bytes: large answers, compressed bodies
THREADS_OF_ONE = 2  # that one holder may have: the next finds one free
DESCRIPTION = (
    "Draw images from a density model, score images by log-likelihood, encode and reconstruct "
    "them. The model is a variational autoencoder with inverse autoregressive flow "
    "(arXiv:1606.04934). Errors are RFC 9457 problem documents with a stable `type`."
)
OPERATIONS = frozenset(
    {*("sample", "score", "anomaly_map", "encode", "decode", "reconstruct", "interpolate"), "infer"}
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service as an ASGI application; models are loaded, warmed and started by its lifespan.

    `settings` default to the ``IAFVAE_*`` environment variables. ``app.state.shared`` holds the
    models, metrics and admission, ``app.state.manager`` changes the models. Use one application for
    one lifespan.

    Raises:
        SettingsError, KeyFileError: here.
        BundleError, ProviderUnavailable: at the start of the lifespan.
    """
    settings = settings or load_settings()
    metrics = Metrics()
    shared = AppState(
        settings=settings,
        registry=Registry(settings.drain_seconds),
        metrics=metrics,
        admission=Admission(
            max_in_flight=settings.max_in_flight,
            max_bytes=settings.max_buffered_bytes,
            quota=Quota(settings.quota_rows_per_minute),
            metrics=metrics,
            operations=OPERATIONS,
            early=not settings.access_log and not settings.cors_origins,
            by_address=not settings.forwarded_allow_ips and settings.keys_file is None,
        ),
        decoders=DecoderPool(available_cores()),
        threads=Threads(THREADS, THREADS_OF_ONE),
        tracer=_tracer() if settings.tracing else None,
    )
    registry, admission = shared.registry, shared.admission
    metrics.taken = admission.quota.charge
    metrics.queued(registry.queued_rows)
    metrics.drifting(registry.drift)
    metrics.watch("ready", "1 if the process takes requests.", lambda: registry.ready)
    metrics.watch(
        "max_queue_rows", "Rows that may wait, of each model.", lambda: settings.max_queue_rows
    )
    metrics.watch("requests_in_flight", "Requests worked on.", lambda: admission.in_flight)
    held = "Bytes of bodies that are held, and of answers that wait for their clients."
    metrics.watch("held_bytes", held, lambda: admission.bytes.held)
    metrics.watch("decoder_processes", "Processes.", lambda: shared.decoders.processes)
    metrics.watch("decoder_queue", "Jobs that wait for them.", lambda: shared.decoders.waiting)
    manager = ModelManager(settings, shared.registry, metrics)
    app = FastAPI(
        title="iafvae",
        version=program_version(),
        description=DESCRIPTION,
        lifespan=lambda _: _life(shared, manager),
        openapi_url=None,  # FastAPI makes the document on the event loop: ours is in `pages`
        docs_url=None,  # FastAPI's pages load scripts from elsewhere; ours is in service/web
        redoc_url=None,
        # Asking at every request whether somebody traces costs more than our own middleware.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.shared, app.state.manager = shared, manager
    models = InferModels(shared.registry)
    app.router.routes.extend([*operation_routes(shared), *infer_routes(shared, models)])
    app.include_router(model_router(shared))
    app.include_router(admin_router(manager))
    app.include_router(probe_router(shared))
    app.include_router(inference_router(shared, models, version=app.version))
    app.router.routes.extend(page_routes(app))
    add_problem_handlers(app, metrics)
    install_openapi(app, shared.registry)
    _add_middleware(app, shared)
    return app


def _add_middleware(app: FastAPI, shared: AppState) -> None:
    """The last that is added is the first that a request meets. Raises KeyFileError."""
    settings = shared.settings
    if settings.keys_file is not None:
        keys, watch = KeyFile(settings.keys_file), shared.metrics.watch
        watch("keys_file_failed", "1 if its keys are those of before.", lambda: keys.failed)
        watch("keys_age_seconds", "Since the keys in force were read.", lambda: keys.age_seconds)
        app.add_middleware(
            KeyGuard, keys=keys, open_metrics=settings.open_metrics, metrics=shared.metrics
        )
    if settings.cors_origins:  # outside the keys: a browser's preflight carries none
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=(
                "authorization",
                "content-type",
                "content-encoding",
                "x-request-id",
                TIMEOUT_HEADER,
                HEADER_LENGTH,
                "traceparent",
                "tracestate",
            ),
            expose_headers=(*HEADERS, HEADER_LENGTH, "retry-after"),
        )
    app.add_middleware(RequestContext, access_log=settings.access_log, metrics=shared.metrics)


@asynccontextmanager
async def _life(shared: AppState, manager: ModelManager) -> AsyncGenerator[None, None]:
    """Load and start the models, follow their directory, and drain in the end."""
    registry, settings = shared.registry, shared.settings
    if not registry.models:
        await asyncio.to_thread(manager.load_all)
    await registry.start()
    watching = None
    if settings.watch_seconds:
        watching = asyncio.create_task(Watcher(manager, registry).run(settings.watch_seconds))
    try:
        yield
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])
        await manager.stop()
        await registry.stop(settings.drain_seconds)
        await shared.decoders.close()
        shared.threads.close()
        if shared.tracer is not None:
            await asyncio.to_thread(shared.tracer.close)


def _tracer() -> Tracer:
    try:
        from service.tracing import Tracer  # OpenTelemetry, which is not there otherwise
    except ImportError as error:
        raise SettingsError(
            f"IAFVAE_TRACING: {error.name} is not installed; pip install -e '.[otel]' -c "
            "constraints.txt, or unset it"
        ) from None
    try:
        return Tracer()
    except ValueError as error:
        raise SettingsError(f"IAFVAE_TRACING: {error}") from None


def program_version() -> str:
    """The installed version; "0" from a tree that is not installed."""
    try:
        return version("iafvae")
    except PackageNotFoundError:
        return "0"
