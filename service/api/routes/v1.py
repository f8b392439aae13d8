"""``/v1``: each route parses, calls one operation of the model, and encodes what it gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, get_type_hints

from fastapi import Query

from service.api.openapi import documented_operation
from service.api.operation_route import OperationRoute
from service.api.request.inputs import (
    INLINE_NUMBERS,
    INLINE_PIXELS,
    check_json_numbers,
    latents,
    pictures,
)
from service.api.request.limits import OperationRequest
from service.api.request.schemas import (
    AnomalyMapOptions,
    DecodeOptions,
    EncodeOptions,
    InterpolateOptions,
    ReconstructOptions,
    SampleOptions,
    ScoreOptions,
)
from service.api.response.rendering import (
    Answer,
    render_anomaly_maps,
    render_images,
    render_latents,
    render_log_likelihoods,
    render_scores,
)
from service.api.response.schemas import (
    AnomalyMapResponse,
    EncodeResponse,
    ImagesResponse,
    Response,
    ScoreResponse,
)
from service.api.response.streaming import stream_images
from service.api.state import AppState
from service.codecs import JSON, NPY, PNG
from service.codecs.fitting import Fitted
from service.errors import InvalidInput, NotAcceptable, PayloadTooLarge
from service.operations.checks import at_most
from service.operations.results import Images, Result

__all__ = ["operation_routes"]

INLINE_SCORES = 64  # likewise: some forty numbers each
# What each kind of answer can be made as, in the order of the server's preference.
IMAGE_OFFERS = (JSON, NPY, PNG)
NUMBER_OFFERS = (JSON, NPY)


async def sample(request: OperationRequest, options: Annotated[SampleOptions, Query()]) -> Answer:
    """Draw images from the prior, or change images in its noise: keep some latent groups of
    `prior_eps`, as encode gives it, and draw the others anew."""
    model, settings = request.model, request.settings
    given = None if request.payload is None else await latents(request, "prior_eps")
    n = options.n or (1 if given is None else len(given))
    is_stream = n > settings.max_n
    if is_stream and (request.media_type != NPY or n > settings.max_stream_n):
        raise PayloadTooLarge(
            f"n: {n} is above the limit of {settings.max_n}; ask for fewer, or with "
            f"'Accept: {NPY}', whose answer is streamed, for at most {settings.max_stream_n}"
        )
    work = model.sampling(
        n,
        seed=options.seed,
        temperature=options.temperature,
        output=options.output,
        prior_eps=given,
        resample=options.resample,
        keep=options.keep,
    )
    if is_stream:
        return await stream_images(model, work, settings.timeout_seconds, **request.asked)
    return await _images(request, await model.draw(work, **request.asked))


async def decode(request: OperationRequest, options: Annotated[DecodeOptions, Query()]) -> Answer:
    """Images of given latents."""
    images = await request.model.decode(
        await latents(request), output=options.output, seed=options.seed, **request.asked
    )
    return await _images(request, images)


async def encode(request: OperationRequest, options: Annotated[EncodeOptions, Query()]) -> Answer:
    """Latents of images."""
    model = request.model
    fitted = await pictures(request, options)
    if request.media_type == JSON:
        numbers = 2 * len(fitted.images) * model.manifest.latent.dim
        check_json_numbers(numbers, f"'Accept: {NPY}'")
    coded = await model.encode(fitted.images, seed=options.seed, **request.asked)
    small = coded.latents.size <= INLINE_NUMBERS
    how: dict[str, Any] = {"fitted": fitted, "output": options.output}
    return await _rendered(request, render_latents, coded, small, **how)


async def score(request: OperationRequest, options: Annotated[ScoreOptions, Query()]) -> Answer:
    """Log-likelihoods and p-values of images."""
    model, manifest = request.model, request.model.manifest
    samples = options.importance_samples or manifest.scoring.default_importance_samples
    # Asked first, as for images: a score that is within its limits makes no call for it.
    if samples > (most := request.settings.max_importance_samples):
        at_most("importance_samples", samples, most)
    fitted = await pictures(request, options, rows_each=samples)
    if options.altered:
        if max(options.altered) >= len(fitted.images):
            raise InvalidInput(f"altered names an image that is none of {len(fitted.images)}")
        fitted.altered[options.altered] = True
    asked: dict[str, Any] = {"importance_samples": options.importance_samples}
    asked |= {"seed": options.seed, **request.asked}
    if request.media_type == NPY:  # the log-likelihoods alone: nothing else is computed for it
        values = await model.log_likelihood(fitted.images, **asked)
        return render_log_likelihoods(values, fitted=fitted)
    scores = await model.score(
        fitted.images, alpha=options.alpha, fdr=options.fdr, altered=fitted.altered, **asked
    )
    small = len(fitted.images) <= INLINE_SCORES
    how: dict[str, Any] = {"fitted": fitted, "kl_groups": manifest.kl_groups}
    return await _rendered(request, render_scores, scores, small, **how)


async def anomaly_map(
    request: OperationRequest, options: Annotated[AnomalyMapOptions, Query()]
) -> Answer:
    """Where images are unlike what the model expects of each, in standard deviations of what is
    usual at a pixel: npy float32 `[n,H,W]`, a PNG of the images under their maps on one scale for
    all, or in JSON the largest boxes with their p-values."""
    fitted = await pictures(request, options)
    found = await request.model.anomaly_map(
        fitted.images, seed=options.seed, boxes=options.boxes, **request.asked
    )
    small = found.maps.size <= INLINE_NUMBERS
    how: dict[str, Any] = {"fitted": fitted, "maps": options.maps}
    return await _rendered(request, render_anomaly_maps, found, small, **how)


async def reconstruct(
    request: OperationRequest, options: Annotated[ReconstructOptions, Query()]
) -> Answer:
    """Images through their latents and back."""
    fitted = await pictures(request, options)
    images = await request.model.reconstruct(
        fitted.images, seed=options.seed, output=options.output, **request.asked
    )
    return await _images(request, images, fitted)


async def interpolate(
    request: OperationRequest, options: Annotated[InterpolateOptions, Query()]
) -> Answer:
    """Images on the way between two images, two seeds, or one of each, through the prior's noise:
    a great circle, whose ends are the image's reconstruction and the seed's first sample."""
    at_most("n", options.n, request.settings.max_n)
    fitted = None if request.payload is None else await pictures(request, options)
    images = await request.model.interpolate(
        None if fitted is None else fitted.images,
        n=options.n,
        seeds=options.seeds,
        seed=options.seed,
        output=options.output,
        **request.asked,
    )
    return await _images(request, images, fitted)


def operation_routes(shared: AppState) -> list[OperationRoute]:
    """``POST /v1/{operation}``."""
    images: dict[str, Any] = {"payload": "images"}
    eps: dict[str, Any] = {"payload": "prior_eps", "optional": True}
    ends: dict[str, Any] = {"payload": "images", "optional": True}
    latent: dict[str, Any] = {"payload": "latents"}
    drawn = ImagesResponse, IMAGE_OFFERS
    table: tuple[tuple[Any, str, type[Response], tuple[str, ...], dict[str, Any]], ...] = (
        (sample, "Draw images, or change some", *drawn, eps),
        (score, "Log-likelihood and p-value of images", ScoreResponse, NUMBER_OFFERS, images),
        (anomaly_map, "Where images are unusual", AnomalyMapResponse, IMAGE_OFFERS, images),
        (encode, "Latents of images", EncodeResponse, NUMBER_OFFERS, images),
        (decode, "Images of latents", *drawn, latent),
        (reconstruct, "Images through their latents and back", *drawn, images),
        (interpolate, "Images between two images or seeds", *drawn, ends),
    )
    routes = []
    for endpoint, summary, response, offers, body in table:
        options = get_type_hints(endpoint)["options"]
        declared = documented_operation(endpoint, summary, options, response, offers, **body)
        path = f"/v1/{endpoint.__name__.replace('_', '-')}"
        given: dict[str, Any] = {"options": options, "offers": offers, **body, **declared}
        routes.append(OperationRoute(path, endpoint, shared, **given))
    return routes


async def _images(
    request: OperationRequest, images: Images, fitted: Fitted | None = None
) -> Answer:
    channels = images.images.shape[1]
    if request.media_type == PNG and channels not in (1, 3):
        raise NotAcceptable(f"a PNG cannot hold {channels} channels: ask for application/x-npy")
    small = images.images.size <= INLINE_PIXELS
    return await _rendered(request, render_images, images, small, fitted=fitted)


async def _rendered(
    request: OperationRequest,
    render: Callable[..., Answer],
    result: Result,
    small: bool,
    **how: Any,
) -> Answer:
    """The answer that `render` makes of `result`; beside the event loop where it is not small."""
    who = {"model": request.model.name, "version": request.model.version}
    make = partial(render, result, request.media_type, who, **how)
    return make() if small else await request.beside(make)
