"""``/v1``: each route parses, calls one operation of the model, and encodes what it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
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
from service.defaults import seed_or_drawn, temperatures
from service.errors import InvalidInput, NotAcceptable
from service.exchange import Context, Exchange, Operation, Work
from service.media import PNG
from service.operations import Images
from service.payloads import INLINE_PIXELS, check_count, latents, pictures
from service.schemas import (
    DecodeOptions,
    EncodeOptions,
    InterpolateOptions,
    ReconstructOptions,
    SampleOptions,
    ScoreOptions,
)

__all__ = ["OPERATIONS", "operation_routes"]


async def sample(work: Work[SampleOptions]) -> Answer:
    """Draw images from the prior."""
    options, runtime = work.options, work.runtime
    check_count("n", options.n, work.settings.max_n)
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
    given = latents(work)
    # A mean takes no noise, so there is no seed to tell.
    seed = seed_or_drawn(options.seed) if options.output == "draw" else None
    images = await work.runtime.decode(given, output=options.output, seed=seed or 0, call=work.call)
    return await _images(work, images, {"output": options.output, "seed": seed})


async def encode(work: Work[EncodeOptions]) -> Answer:
    """Latents of images."""
    fitted = await pictures(work, work.options)
    seed = work.options.seed
    coded = await work.runtime.encode(fitted.images, seed=seed, call=work.call)
    fields = _common(work, altered_notes(fitted.altered)) | {"seed": seed}
    return latents_answer(coded, work.media_type, fields, fitted.altered)


async def score(work: Work[ScoreOptions]) -> Answer:
    """Log-likelihoods and p-values of images."""
    options, manifest = work.options, work.runtime.bundle.manifest
    scoring = manifest.scoring
    samples = options.importance_samples or scoring.default_importance_samples
    check_count("importance_samples", samples, work.settings.max_importance_samples)
    fitted = await pictures(work, options, rows_each=samples)
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
    fitted = await pictures(work, options)
    images = await work.runtime.reconstruct(
        fitted.images, seed=options.seed, output=options.output, call=work.call
    )
    fields = {"output": options.output, "seed": options.seed}
    return await _images(work, images, fields, fitted.altered)


async def interpolate(work: Work[InterpolateOptions]) -> Answer:
    """Images on the way from one image to another, through the prior's noise."""
    options = work.options
    check_count("n", options.n, work.settings.max_n)
    fitted = await pictures(work, options)
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
        if fields["output"] == "draw":
            notes.append("pixels drawn with seed 0, as none was given")
    fields = _common(work, notes) | fields
    if work.media_type == PNG and images.images.shape[1] not in (1, 3):
        raise NotAcceptable(
            f"a PNG cannot hold {images.images.shape[1]} channels: ask for application/x-npy"
        )
    if images.images.size <= INLINE_PIXELS:
        return images_answer(images, work.media_type, fields, altered=altered)
    return await work.beside(images_answer, images, work.media_type, fields, altered=altered)
