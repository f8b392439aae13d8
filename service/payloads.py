"""Images and latents of a request, as arrays that a model takes, with limits checked first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codecs import decode_base64, decode_npy
from service.errors import InvalidInput, NonFiniteInput, PayloadTooLarge, WrongShape
from service.exchange import Work
from service.pictures import Fit, Fitted, PixelLimits, fit_array, fit_files
from service.schemas import ImageOptions
from service.settings import Settings

__all__ = ["INLINE_PIXELS", "check_count", "latents", "pictures"]

INLINE_PIXELS = 2**18  # more than this is encoded or decoded beside the event loop


async def pictures(work: Work[Any], options: ImageOptions) -> Fitted:
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
    check_count("images", count, settings.max_images)


def _strings(payload: object) -> list[str]:
    if not isinstance(payload, list) or not payload or not all(isinstance(x, str) for x in payload):
        raise InvalidInput("images must be a list of at least one base64 string (PNG, JPEG, WebP)")
    return payload


def latents(work: Work[Any]) -> NDArray[np.float32]:
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
    check_count("latents", len(array), limit)
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


def check_count(name: str, value: int, limit: int) -> None:
    """Raises PayloadTooLarge where `value` is above `limit`."""
    if value > limit:
        raise PayloadTooLarge(f"{name}: {value} is above the limit of {limit}; ask for fewer")
