"""Images and latents of a request, as arrays that a model takes, with limits checked first."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.api.request.limits import OperationRequest
from service.api.request.parsing import Files
from service.api.request.schemas import ImageOptions
from service.codecs.fitting import channels_first, fit_images
from service.codecs.images import (
    Fit,
    Fitted,
    PixelLimits,
    decode_base64,
    decoding_work,
    fit_files,
)
from service.codecs.json_body import of_base64
from service.codecs.npy import in_order, view_npy
from service.errors import (
    InvalidInput,
    NonFiniteInput,
    PayloadTooLarge,
    UndecodableImage,
    WrongShape,
)
from service.operations.checks import at_most
from service.settings import Settings

__all__ = [
    "INLINE_NUMBERS",
    "INLINE_PIXELS",
    "check_json_numbers",
    "latents",
    "pictures",
]

MAX_JSON_NUMBERS = 2**20  # floats of an answer: each takes twenty bytes of it, and more to write
INLINE_NUMBERS = 2**12  # more than this is written beside the event loop
INLINE_PIXELS = 2**18  # more than this is encoded or decoded beside the event loop
INLINE_FILES, INLINE_WORK = 2**14, 2**14  # bytes, and pixels times passes: a millisecond
INLINE_COUNT = 2**5  # of files, of which each takes some time, however small


async def pictures(
    request: OperationRequest, options: ImageOptions, *, rows_each: int = 1
) -> Fitted:
    """The request's images as the model takes them, with limits checked before decoding.

    rows_each: importance samples of each image.
    """
    manifest, settings, payload = request.model.manifest, request.settings, request.payload
    shape = manifest.image.shape
    fit = Fit(resize=options.resize, convert=options.convert, how=manifest.fit)
    who: dict[str, Any] = {"deadline": request.deadline, "caller": request.holder}
    decoders = request.shared.decoders
    if isinstance(payload, bytes):
        array = view_npy(payload, dtypes=("uint8",), max_items=settings.max_total_pixels * shape[0])
        images = channels_first(array, shape)
        _check_images(len(images) if images.size else 0, rows_each, settings)
        if fit.resize:
            fitted = await decoders.fit(array, shape, fit, **who)
        elif array.size <= INLINE_PIXELS:
            fitted = fit_images(images, shape, fit)
        else:
            fitted = await request.beside(fit_images, images, shape, fit)
    else:
        if isinstance(payload, Files):
            files, names = payload.contents, payload.names
        else:
            files, names = of_base64(payload), None
        _check_images(len(files), rows_each, settings)
        limits = PixelLimits(image=settings.max_image_pixels, total=settings.max_total_pixels)
        is_small = len(files) <= INLINE_COUNT and sum(map(len, files)) <= INLINE_FILES
        how = (shape, fit, limits, names)
        work, headers = decoding_work(files, *how) if is_small else (None, [])
        if work is not None and work <= INLINE_WORK:
            fitted = fit_files(files, *how, headers)
        else:
            fitted = await decoders.decode(files, *how, work=work, **who)
    request.parsed = time.perf_counter()
    return fitted


def _check_images(count: int, rows_each: int, settings: Settings) -> None:
    if count == 0:
        raise InvalidInput("there are no images in the request: send at least one")
    if count > settings.max_images:
        at_most("images", count, settings.max_images)
    if count * rows_each > settings.max_rows:
        at_most("images times importance_samples", count * rows_each, settings.max_rows)


async def latents(request: OperationRequest, name: str = "latents") -> NDArray[np.float32]:
    """The request's latents as float32; `name`: the body's field that holds them.

    An npy file has the shape ``[n, D]``; of a JSON list the operation checks it. Raises
    InvalidInput, WrongShape, WrongDtype, and PayloadTooLarge above `max_images` rows.
    """
    dim, limit = request.model.manifest.latent.dim, request.settings.max_images
    payload = request.payload
    if isinstance(payload, str):
        with suppress(UndecodableImage):  # a text that is no base64 is refused as what is no list
            payload = decode_base64(payload, name)
    if not isinstance(payload, bytes):
        return _latents_from_json(payload, dim, name)
    array = view_npy(payload, dtypes=("float32",), max_items=limit * dim)
    if array.ndim != 2 or array.shape[1] != dim:
        raise WrongShape(f"{name} must have the shape [n, {dim}], not {list(array.shape)}")
    return in_order(array) if array.size <= INLINE_PIXELS else await request.beside(in_order, array)


def _latents_from_json(payload: object, dim: int, name: str) -> NDArray[np.float32]:
    """Numbers alone go to NumPy, which would copy one long text into every place of an array."""
    if not isinstance(payload, list) or not all(isinstance(row, list) for row in payload):
        raise InvalidInput(
            f"{name} must be a list of lists of numbers, one for each image, or the base64 of an "
            "npy file"
        )
    for index, row in enumerate(payload):
        if len(row) != dim:
            raise WrongShape(f"{name}[{index}] has {len(row)} numbers, the model takes {dim}")
        if not {int, float}.issuperset(map(type, row)):
            raise InvalidInput(f"{name}[{index}] must be a list of numbers")
    try:
        array = np.array(payload, np.float64).reshape(len(payload), dim)
    except OverflowError:
        raise NonFiniteInput(f"{name} hold integers beyond float32: send smaller ones") from None
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity and is refused
        return array.astype(np.float32)


def check_json_numbers(count: int, instead: str) -> None:
    """Raises PayloadTooLarge where an answer would have `count` numbers, too many to be JSON.

    instead: what else to ask for.
    """
    if count > MAX_JSON_NUMBERS:
        raise PayloadTooLarge(
            f"the answer would have {count} numbers, {MAX_JSON_NUMBERS} are written as JSON: ask "
            f"for fewer images, or for {instead}"
        )
