"""``/v1``: each route parses, calls one operation of the model, and encodes what it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.routing import Route

from service.answers import (
    IMAGE_OFFERS,
    NUMBER_OFFERS,
    Answer,
    altered_notes,
    images_answer,
    latents_answer,
    scores_answer,
)
from service.bundle import manifest_to_json
from service.codecs import decode_base64, decode_npy
from service.defaults import seed_or_drawn, temperatures
from service.errors import (
    InvalidInput,
    NonFiniteInput,
    NotAcceptable,
    PayloadTooLarge,
    WrongShape,
)
from service.exchange import Context, Exchange, Operation, Work
from service.media import PNG
from service.operations import Images, ModelRuntime
from service.pictures import Fit, Fitted, PixelLimits, fit_array, fit_files
from service.schemas import (
    DecodeOptions,
    EncodeOptions,
    ImageOptions,
    InterpolateOptions,
    ModelDescription,
    ModelsResponse,
    ReconstructOptions,
    SampleOptions,
    ScoreOptions,
)
from service.settings import Settings

__all__ = ["OPERATIONS", "model_router", "operation_routes"]

INLINE_PIXELS = 2**18  # more than this is encoded or decoded beside the event loop


async def sample(work: Work[SampleOptions]) -> Answer:
    """Draw images from the prior."""
    options, runtime = work.options, work.runtime
    _check_count("n", options.n, work.settings.max_n)
    temperature = temperatures(options.temperature, runtime.bundle.manifest.latent)
    seed = seed_or_drawn(options.seed)
    images = await runtime.sample(
        options.n, seed=seed, temperature=temperature, output=options.output, call=work.call
    )
    fields = {"output": options.output, "seed": seed, "temperature": temperature}
    return await _images(work, images, fields)


async def decode(work: Work[DecodeOptions]) -> Answer:
    """Images of given latents."""
    options = work.options
    latents = _latents(work)
    seed = seed_or_drawn(options.seed) if options.output == "draw" else options.seed or 0
    images = await work.runtime.decode(latents, output=options.output, seed=seed, call=work.call)
    return await _images(work, images, {"output": options.output, "seed": seed})


async def encode(work: Work[EncodeOptions]) -> Answer:
    """Latents of images."""
    fitted = await _pictures(work, work.options)
    seed = work.options.seed
    latents = await work.runtime.encode(fitted.images, seed=seed, call=work.call)
    fields = _common(work, altered_notes(fitted.altered)) | {"seed": seed}
    return latents_answer(latents, work.media_type, fields, fitted.altered)


async def score(work: Work[ScoreOptions]) -> Answer:
    """Log-likelihoods and p-values of images."""
    options, manifest = work.options, work.runtime.bundle.manifest
    scoring = manifest.scoring
    samples = options.importance_samples or scoring.default_importance_samples
    _check_count("importance_samples", samples, work.settings.max_importance_samples)
    fitted = await _pictures(work, options)
    _check_count("images times importance_samples", len(fitted.images) * samples, _rows(work))
    alpha = scoring.alpha if options.alpha is None else options.alpha
    scores = await work.runtime.score(
        fitted.images,
        importance_samples=samples,
        seed=scoring.default_seed if options.seed is None else options.seed,
        alpha=alpha,
        call=work.call,
    )
    fields = _common(work, altered_notes(fitted.altered)) | {
        "estimator": scores.estimator,
        "importance_samples": samples,
        "seed": scores.seed,
        "alpha": alpha,
    }
    groups = manifest.kl_groups
    return scores_answer(scores, work.media_type, fields, altered=fitted.altered, kl_groups=groups)


async def reconstruct(work: Work[ReconstructOptions]) -> Answer:
    """Images through their latents and back."""
    options = work.options
    fitted = await _pictures(work, options)
    images = await work.runtime.reconstruct(
        fitted.images, seed=options.seed, output=options.output, call=work.call
    )
    fields = {"output": options.output, "seed": options.seed}
    return await _images(work, images, fields, fitted.altered)


async def interpolate(work: Work[InterpolateOptions]) -> Answer:
    """Images on the way from one image to another, through the prior's noise."""
    options = work.options
    _check_count("n", options.n, work.settings.max_n)
    fitted = await _pictures(work, options)
    if len(fitted.images) != 2:
        raise InvalidInput(f"{len(fitted.images)} images: an interpolation goes between two")
    images = await work.runtime.interpolate(
        fitted.images, n=options.n, seed=options.seed, output=options.output, call=work.call
    )
    fields = {"output": options.output, "seed": options.seed}
    return await _images(work, images, fields, fitted.altered)


OPERATIONS: tuple[Operation[Any], ...] = (
    Operation(
        name="sample", options=SampleOptions, payload=None, offers=IMAGE_OFFERS, handler=sample
    ),
    Operation(
        name="score", options=ScoreOptions, payload="images", offers=NUMBER_OFFERS, handler=score
    ),
    Operation(
        name="encode", options=EncodeOptions, payload="images", offers=NUMBER_OFFERS, handler=encode
    ),
    Operation(
        name="decode", options=DecodeOptions, payload="latents", offers=IMAGE_OFFERS, handler=decode
    ),
    Operation(
        name="reconstruct",
        options=ReconstructOptions,
        payload="images",
        offers=IMAGE_OFFERS,
        handler=reconstruct,
    ),
    Operation(
        name="interpolate",
        options=InterpolateOptions,
        payload="images",
        offers=IMAGE_OFFERS,
        handler=interpolate,
    ),
)


def operation_routes(context: Context) -> list[Route]:
    """The hot routes: plain ASGI, documented by `service.openapi`."""
    return [
        Route(f"/v1/{operation.name}", Exchange(operation, context), methods=["POST"])
        for operation in OPERATIONS
    ]


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


def _common(work: Work[Any], notes: list[str]) -> dict[str, Any]:
    manifest = work.runtime.bundle.manifest
    return {"model": work.runtime.name, "version": manifest.version, "notes": notes}


async def _images(
    work: Work[Any],
    images: Images,
    fields: dict[str, Any],
    altered: NDArray[np.bool_] | None = None,
) -> Answer:
    """Encode `images`; an encoding at eps = 0, and altered inputs, are said in the notes."""
    notes = [] if altered is None else altered_notes(altered)
    if altered is not None and fields["seed"] is None:
        notes.append("encoded at eps = 0, the centre of the posterior: give a seed to draw from it")
    fields = _common(work, notes) | fields
    if work.media_type == PNG and images.images.shape[1] not in (1, 3):
        raise NotAcceptable(
            f"a PNG cannot hold {images.images.shape[1]} channels: ask for application/x-npy"
        )
    if images.images.size <= INLINE_PIXELS:
        return images_answer(images, work.media_type, fields, altered=altered)
    return await work.beside(images_answer, images, work.media_type, fields, altered=altered)


async def _pictures(work: Work[Any], options: ImageOptions) -> Fitted:
    """The request's images as the model takes them, with limits checked before decoding."""
    shape, intake, settings = work.runtime.bundle.manifest.image, work.intake, work.settings
    fit = Fit(resize=options.resize, convert=options.convert)
    if intake.npy is not None:
        array = decode_npy(
            intake.npy, dtypes=("uint8",), max_items=settings.max_total_pixels * shape.channels
        )
        _check_images(array.shape[0] if array.ndim else 0, array.size, settings)
        if array.size <= INLINE_PIXELS and not fit.resize:
            return fit_array(array, shape, fit)
        return await work.beside(fit_array, array, shape, fit)
    limits = PixelLimits(image=settings.max_image_pixels, total=settings.max_total_pixels)
    if intake.payload is not None:
        texts = _strings(intake.payload)
        return await work.beside(
            lambda: fit_files(
                [decode_base64(text, f"image {i}") for i, text in enumerate(texts)],
                shape,
                fit,
                limits,
            )
        )
    _check_images(len(intake.files), 1, settings)
    return await work.beside(fit_files, intake.files, shape, fit, limits, intake.names)


def _check_images(count: int, items: int, settings: Settings) -> None:
    if count == 0 or items == 0:
        raise InvalidInput("there are no images in the request: send at least one")
    _check_count("images", count, settings.max_images)


def _strings(payload: object) -> list[str]:
    if not isinstance(payload, list) or not payload or not all(isinstance(x, str) for x in payload):
        raise InvalidInput("images must be a list of at least one base64 string (PNG, JPEG, WebP)")
    return payload


def _latents(work: Work[Any]) -> NDArray[np.float32]:
    """float32 [n, D], finite. Raises WrongShape, WrongDtype, NonFiniteInput, InvalidInput."""
    dim, limit = work.runtime.bundle.manifest.latent.dim, work.settings.max_images
    if work.intake.npy is not None:
        array = decode_npy(work.intake.npy, dtypes=("float32",), max_items=limit * dim)
    else:
        array = _latents_from_json(work.intake.payload)
    if array.ndim != 2 or array.shape[1] != dim:
        raise WrongShape(f"latents have shape {list(array.shape)}, the model takes [n, {dim}]")
    if len(array) == 0:
        raise InvalidInput("there are no latents in the request: send at least one row")
    _check_count("latents", len(array), limit)
    if not np.isfinite(array).all():
        raise NonFiniteInput("latents hold NaN or infinity: send finite float32 numbers")
    return array


def _latents_from_json(payload: object) -> NDArray[np.float32]:
    try:
        array = np.array(payload)
    except ValueError:
        raise WrongShape("latents must be lists of equal length, one for each image") from None
    if array.dtype.kind not in "iuf":
        raise InvalidInput("latents must be a list of lists of numbers, one for each image")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity and is refused
        return array.astype(np.float32)


def _check_count(name: str, value: int, limit: int) -> None:
    if value > limit:
        raise PayloadTooLarge(f"{name}: {value} is above the limit of {limit}; ask for fewer")


def _rows(work: Work[Any]) -> int:
    return work.settings.max_rows
