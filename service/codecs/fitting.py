"""Pixels in a model's colour and size: the one implementation, for training and for serving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import WrongShape

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "Fit",
    "FitMode",
    "Fitted",
    "Shape",
    "channels_first",
    "check_size",
    "fit_array",
    "fit_images",
    "resize",
    "wrong_colour",
]

Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]  # channels, height, width
FitMode = Literal["crop", "pad", "none"]
MAX_ASPECT = 100  # longer side over shorter one, of what is resized


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What may be done to a picture that is not as the model needs it, and how it is resized.

    how: as in training. "crop" scales until the picture covers the size and cuts to its middle,
    "pad" scales it into the size, in the middle of black, "none" refuses every other size.
    """

    resize: bool = False
    convert: bool = False
    how: FitMode = "crop"


@dataclass(frozen=True)
class Fitted:
    """`images` uint8 [n, C, H, W]; `altered` bool [n] marks those resized or converted.

    notes: what else was done that changes what is seen. decoded: pixels of the files.
    """

    images: Pixels
    altered: NDArray[np.bool_]
    notes: tuple[str, ...] = ()
    decoded: int = 0


def fit_array(array: Pixels, shape: Shape, fit: Fit) -> Fitted:
    """Bring uint8 `array` of [n, H, W], [n, C, H, W] or [n, H, W, C], in any memory order, to
    `shape`.

    Where both readings of four dimensions are possible, channels come first. Three dimensions are
    one image, [C, H, W] or [H, W, C], where C is the model's, or where it comes last and is 1 or 3.
    Raises WrongShape.
    """
    return fit_images(channels_first(array, shape), shape, fit)


def fit_images(images: Pixels, shape: Shape, fit: Fit) -> Fitted:
    """As `fit_array`, of what `channels_first` gives. Raises WrongShape."""
    if 0 in images.shape:
        raise WrongShape(f"the array has shape {list(images.shape)}: it holds no pixels")
    fits = images.shape[2:] == shape[1:]
    if not fits:  # asked before any copy is made
        check_size(images.shape[2:], shape, fit, "the array")
    fitted, altered = _fit_colours(images, shape, fit)
    if fits:
        return Fitted(np.ascontiguousarray(fitted), altered)
    from PIL import Image

    planes = (Image.fromarray(plane) for image in fitted for plane in image)
    resized = [np.asarray(resize(plane, shape, fit)) for plane in planes]
    pixels = np.stack(resized).reshape(len(images), *shape)
    return Fitted(pixels, np.ones(len(images), np.bool_))


def resize(image: Image.Image, shape: Shape, fit: Fit) -> Image.Image:
    """`image`, which passed `check_size`, in the size of `shape`."""
    from PIL import Image, ImageOps

    fitted = ImageOps.fit if fit.how == "crop" else ImageOps.pad
    return fitted(image, (shape[2], shape[1]), Image.Resampling.LANCZOS)


def channels_first(array: Pixels, shape: Shape) -> Pixels:
    """A view of `array`, [n, C, H, W]. Raises WrongShape."""
    channels, height, width = shape
    counts = (channels, 1, 3)
    if array.ndim == 3 and (
        channels in (array.shape[0], array.shape[2])
        or (array.shape[2] in counts and array.shape[2] != width)
    ):
        array = array[None]
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] in counts:
        return array
    if array.ndim == 4 and array.shape[3] in counts:
        return array.transpose(0, 3, 1, 2)
    raise WrongShape(
        f"the array has shape {list(array.shape)}; images are [n, H, W], [n, C, H, W] or "
        f"[n, H, W, C], of {height}x{width} pixels and {channels} channels"
        + ("; one image alone is array[None]" if array.ndim == 2 else "")
    )


def _fit_colours(images: Pixels, shape: Shape, fit: Fit) -> tuple[Pixels, NDArray[np.bool_]]:
    """Channels of `images` [n, c, H, W]: equal ones serve a grey model, a grey one serves RGB."""
    n, channels = images.shape[:2]
    same = np.zeros(n, np.bool_)
    if channels == shape[0]:
        return images, same
    if channels == 1:
        return np.repeat(images, shape[0], axis=1), same
    coloured = (images != images[:, :1]).reshape(n, -1).any(axis=1)
    if shape[0] == 1 and not coloured.any():
        return images[:, :1], same
    if shape[0] == 1 and fit.convert:
        return _luma(images), coloured
    raise wrong_colour("the array", channels, shape)


def _luma(images: Pixels) -> Pixels:
    """[n, 3, H, W] -> [n, 1, H, W] by ITU-R BT.601; equal channels stay what they are."""
    weights = np.array([19595, 38470, 7471], np.uint32)[:, None, None]  # sum 65536
    grey = np.empty((len(images), 1, *images.shape[2:]), np.uint8)
    for image, plane in zip(images, grey, strict=True):  # one by one: numbers of 32 bits are many
        plane[0] = ((image * weights).sum(axis=0, dtype=np.uint32) + 32768) >> 16
    return grey


def check_size(size: Sequence[int], shape: Shape, fit: Fit, what: str) -> None:
    """Raises WrongShape where a picture of `size` may not, or can not, be resized to `shape`."""
    if not fit.resize or fit.how == "none":
        message = (
            f"{what} has {size[0]}x{size[1]} pixels (height x width), the model takes "
            f"{shape[1]}x{shape[2]}: resize it"
        )
        if fit.how != "none":
            message += (
                ", or set resize=true or --resize (its p-value is then that of an altered image)"
            )
        raise WrongShape(message)
    if max(size) > MAX_ASPECT * min(size):
        raise WrongShape(
            f"{what} has {size[0]}x{size[1]} pixels (height x width), and is resized only where "
            f"one side is at most {MAX_ASPECT} times the other: cut it"
        )


def wrong_colour(what: str, channels: int, shape: Shape) -> WrongShape:
    """The error of colours that a model does not take."""
    return WrongShape(
        f"{what} has {channels} different channels, the model takes {shape[0]}: save it in "
        "grey, or set convert=true or --convert (its p-value is then that of an altered image)"
    )
