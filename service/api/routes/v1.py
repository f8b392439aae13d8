"""``/v1``: each route parses, calls one operation of the model, and encodes what it gives."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.routing import Route

from service.api.native import NativeExchange, Operation, Work
from service.api.request.inputs import (
    INLINE_PIXELS,
    check_count,
    has_images,
    latents,
    pictures,
    prior_eps,
)
from service.api.request.negotiation import JSON, NPY, PNG
from service.api.request.schemas import (
    DecodeOptions,
    EncodeOptions,
    InterpolateOptions,
    ReconstructOptions,
    SampleOptions,
    ScoreOptions,
)
from service.api.response.rendering import (
    IMAGE_OFFERS,
    NUMBER_OFFERS,
    Answer,
    altered_notes,
    images_answer,
    latents_answer,
    log_likelihoods_answer,
    scores_answer,
)
from service.api.response.streaming import Draw, streamed
from service.api.state import Context
from service.errors import InvalidInput, NotAcceptable, PayloadTooLarge
from service.operations.defaults import seed_or_drawn, temperatures
from service.operations.latents import resampled_groups
from service.operations.model import Images
from service.operations.results import Call

__all__ = ["OPERATIONS", "operation_routes"]

MAX_JSON_NUMBERS = 2**20  # floats of an answer: each takes twenty bytes of it, and more to write
INLINE_NUMBERS = 2**12  # more than this is written beside the event loop


async def sample(work: Work[SampleOptions]) -> Answer:
    """Draw images from the prior, or change images in its noise: keep some latent groups of
    `prior_eps`, as encode gives it, and draw the others anew."""
    options, runtime, latent = work.options, work.runtime, work.runtime.bundle.manifest.latent
    given = prior_eps(work)
    if given is None and (options.resample is not None or options.keep is not None):
        raise InvalidInput("resample and keep say what becomes of prior_eps: send it as well")
    n = options.n or (1 if given is None else max(1, len(given)))
    groups = resampled_groups(latent, options.resample, options.keep)
    temperature = temperatures(options.temperature, latent)
    # Without noise there is no seed to tell.
    noisy = given is None or bool(groups) or options.output == "draw"
    seed = seed_or_drawn(options.seed) if noisy else None

    async def draw(first: int, rows: int, call: Call) -> Images:
        return await runtime.sample(
            rows,
            seed=seed or 0,
            temperature=temperature,
            output=options.output,
            first=first,
            prior_eps=given,
            resample=groups,
            call=call,
        )

    if n > work.settings.max_n:
        return await _streamed(work, draw, n, seed)
    fields: dict[str, Any] = {"output": options.output, "seed": seed, "temperature": temperature}
    if given is not None:
        fields["resampled"] = groups
    return await _images(work, await draw(0, n, work.call), fields, [])


async def _streamed(work: Work[SampleOptions], draw: Draw, n: int, seed: int | None) -> Answer:
    """More images than an answer in one piece may have."""
    most = work.settings.max_stream_n
    if work.media_type != NPY or n > most:
        raise PayloadTooLarge(
            f"n: {n} is above the limit of {work.settings.max_n}; ask for fewer, or with "
            f"'Accept: {NPY}', whose answer is streamed, for at most {most}"
        )
    shape, seconds = work.runtime.bundle.manifest.image.shape, work.settings.timeout_seconds
    return await streamed(draw, n=n, shape=shape, seed=seed, call=work.call, seconds=seconds)


async def decode(work: Work[DecodeOptions]) -> Answer:
    """Images of given latents."""
    options = work.options
    given = latents(work)
    # A mean takes no noise, so there is no seed to tell.
    seed = seed_or_drawn(options.seed) if options.output == "draw" else None
    images = await work.runtime.decode(given, output=options.output, seed=seed or 0, call=work.call)
    return await _images(work, images, {"output": options.output, "seed": seed}, [])


async def encode(work: Work[EncodeOptions]) -> Answer:
    """Latents of images."""
    options = work.options
    fitted = await pictures(work, options)
    numbers = 2 * len(fitted.images) * work.runtime.bundle.manifest.latent.dim
    if work.media_type == JSON and numbers > MAX_JSON_NUMBERS:
        raise PayloadTooLarge(
            f"the answer would have {numbers} numbers, {MAX_JSON_NUMBERS} are written as JSON: "
            f"send fewer images, or 'Accept: {NPY}'"
        )
    coded = await work.runtime.encode(fitted.images, seed=options.seed, call=work.call)
    fields = _common(work, altered_notes(fitted.altered)) | {"seed": options.seed}
    answer = partial(latents_answer, coded, work.media_type, fields, fitted.altered)
    if coded.latents.size <= INLINE_NUMBERS:
        return answer(output=options.output)
    return await work.beside(answer, output=options.output)


async def score(work: Work[ScoreOptions]) -> Answer:
    """Log-likelihoods and p-values of images."""
    options, manifest = work.options, work.runtime.bundle.manifest
    scoring = manifest.scoring
    samples = options.importance_samples or scoring.default_importance_samples
    check_count("importance_samples", samples, work.settings.max_importance_samples)
    fitted = await pictures(work, options, rows_each=samples)
    asked: dict[str, Any] = {
        "importance_samples": samples,
        "seed": scoring.default_seed if options.seed is None else options.seed,
    }
    if work.media_type == NPY:  # the log-likelihoods alone: nothing else is computed for it
        values = await work.runtime.log_likelihood(fitted.images, **asked, call=work.call)
        return log_likelihoods_answer(values, altered=fitted.altered)
    asked["alpha"] = scoring.alpha if options.alpha is None else options.alpha
    scores = await work.runtime.score(fitted.images, **asked, call=work.call)
    fields = _common(work, altered_notes(fitted.altered)) | {"estimator": scores.estimator} | asked
    return scores_answer(scores, fields, altered=fitted.altered, kl_groups=manifest.kl_groups)


async def reconstruct(work: Work[ReconstructOptions]) -> Answer:
    """Images through their latents and back."""
    options = work.options
    fitted = await pictures(work, options)
    images = await work.runtime.reconstruct(
        fitted.images, seed=options.seed, output=options.output, call=work.call
    )
    fields = {"output": options.output, "seed": options.seed}
    return await _images(work, images, fields, _encoding_notes(options), fitted.altered)


async def interpolate(work: Work[InterpolateOptions]) -> Answer:
    """Images on the way between two images, two seeds, or one of each, through the prior's noise:
    a great circle, whose ends are the image's reconstruction and the seed's first sample."""
    options = work.options
    check_count("n", options.n, work.settings.max_n)
    fitted = await pictures(work, options) if has_images(work) else None
    images = await work.runtime.interpolate(
        None if fitted is None else fitted.images,
        n=options.n,
        seeds=options.seeds,
        seed=options.seed,
        output=options.output,
        call=work.call,
    )
    fields = {"output": options.output, "seed": options.seed}
    notes = _encoding_notes(options, encoded=fitted is not None)
    return await _images(work, images, fields, notes, None if fitted is None else fitted.altered)


OPERATIONS: tuple[Operation[Any], ...] = (
    Operation(
        name="sample",
        options=SampleOptions,
        payload="prior_eps",
        optional=True,
        offers=IMAGE_OFFERS,
        handler=sample,
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
        optional=True,
        offers=IMAGE_OFFERS,
        handler=interpolate,
    ),
)


def operation_routes(context: Context) -> list[Route]:
    """The hot routes: plain ASGI, documented by `service.openapi`."""
    return [
        Route(f"/v1/{operation.name}", NativeExchange(operation, context), methods=["POST"])
        for operation in OPERATIONS
    ]


def _common(work: Work[Any], notes: list[str]) -> dict[str, Any]:
    manifest = work.runtime.bundle.manifest
    return {"model": work.runtime.name, "version": manifest.version, "notes": notes}


def _encoding_notes(options: ReconstructOptions, *, encoded: bool = True) -> list[str]:
    """What a reader must know of noise that was not asked for."""
    notes = []
    if encoded and options.seed is None:
        notes.append("encoded at eps = 0, the centre of the posterior: give a seed to draw from it")
    if options.output == "draw" and options.seed is None:
        notes.append("pixels drawn with seed 0, as none was given")
    return notes


async def _images(
    work: Work[Any],
    images: Images,
    fields: dict[str, Any],
    notes: list[str],
    altered: NDArray[np.bool_] | None = None,
) -> Answer:
    """Encode `images`; altered inputs are said in the notes."""
    known = [] if altered is None else altered_notes(altered)
    fields = _common(work, known + notes) | fields
    if work.media_type == PNG and images.images.shape[1] not in (1, 3):
        raise NotAcceptable(
            f"a PNG cannot hold {images.images.shape[1]} channels: ask for application/x-npy"
        )
    if images.images.size <= INLINE_PIXELS:
        return images_answer(images, work.media_type, fields, altered=altered)
    return await work.beside(images_answer, images, work.media_type, fields, altered=altered)
