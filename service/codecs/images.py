"""Image files to the uint8 arrays of a model: decoding, orientation, colour, size.

Dimensions are read from the header and checked before pixels are decoded. Pillow is imported when
the first file comes: a service that is sent arrays never loads it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import PayloadTooLarge, UndecodableImage, WrongDtype, WrongShape

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Fit", "Fitted", "PixelLimits", "fit_array", "fit_files", "read_picture"]

Pixels = NDArray[np.uint8]
FORMATS = ("PNG", "JPEG", "WEBP")
WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
FOREIGN_MODES = ("CMYK", "YCbCr", "LAB", "HSV")


class ImageShape(Protocol):
    """The part of a bundle's image specification that is needed here."""

    @property
    def channels(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class PixelLimits:
    """Bounds on what is decoded: of one picture, and of all of a request together."""

    image: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What may be done to a picture that is not as the model needs it."""

    resize: bool = False
    convert: bool = False


@dataclass(frozen=True)
class Fitted:
    """`images` uint8 [n, C, H, W]; `altered` bool [n] marks those resized or converted."""

    images: Pixels
    altered: NDArray[np.bool_]


def fit_files(
    files: Sequence[bytes],
    shape: ImageShape,
    fit: Fit,
    limits: PixelLimits,
    names: Sequence[str] | None = None,
) -> Fitted:
    """Decode image `files` and bring each to `shape`. An error names the file by place or name.

    Raises:
        UndecodableImage: not an image, a broken one, or of more than one frame.
        WrongDtype: more than 8 bits a channel.
        WrongShape: another size or colour, where `fit` does not allow a change.
        PayloadTooLarge: too many pixels; known from the header, before they are decoded.
    """
    left = limits.total
    images: list[Pixels] = []
    altered = np.zeros(len(files), np.bool_)
    for index, data in enumerate(files):
        what = names[index] if names else f"image {index}"
        picture = read_picture(data, what, max_pixels=min(limits.image, left))
        left -= picture.shape[-2] * picture.shape[-1]
        one = _fit(picture[None], shape, fit, what)
        images.append(one.images[0])
        altered[index] = one.altered[0]
    return Fitted(np.stack(images), altered)


def fit_array(array: Pixels, shape: ImageShape, fit: Fit) -> Fitted:
    """Bring uint8 `array` of [n, H, W], [n, C, H, W] or [n, H, W, C] to `shape`.

    Where both readings of four dimensions are possible, channels come first. Raises WrongShape.
    """
    return _fit(_channels_first(array, shape), shape, fit, "the array")


def _channels_first(array: Pixels, shape: ImageShape) -> Pixels:
    if array.ndim == 3:
        return array[:, None]
    counts = (shape.channels, 1, 3)
    if array.ndim == 4 and array.shape[1] in counts:
        return array
    if array.ndim == 4 and array.shape[3] in counts:
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    raise WrongShape(
        f"the array has shape {list(array.shape)}; images are [n, H, W], [n, C, H, W] or "
        f"[n, H, W, C], of {shape.height}x{shape.width} pixels and {shape.channels} channels"
    )


def read_picture(data: bytes, what: str, *, max_pixels: int) -> Pixels:
    """The picture in a PNG, JPEG or WebP file: uint8 [1, H, W] if grey, else [3, H, W].

    EXIF orientation is applied, palettes are expanded and alpha is composited over black.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    _refuse_sixteen_bits(data, what)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _refuse_by_header(image, what, max_pixels)
            return _as_array(ImageOps.exif_transpose(image))
    except (PayloadTooLarge, UndecodableImage, WrongDtype):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PayloadTooLarge(_bomb_message(what, max_pixels)) from None
    except UnidentifiedImageError:
        raise UndecodableImage(
            f"{what} is not a PNG, JPEG or WebP file ({len(data)} bytes): send one of these, or "
            "uint8 arrays as application/x-npy"
        ) from None
    except Exception as error:  # noqa: BLE001 - on hostile bytes a decoder may raise anything
        raise UndecodableImage(
            f"{what} is broken and cannot be decoded ({error}): is the file complete?"
        ) from None


def _refuse_sixteen_bits(data: bytes, what: str) -> None:
    """Pillow cuts 16-bit colour PNGs to 8 bits without a word; their header tells (IHDR)."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and data[24:25] == b"\x10":
        raise WrongDtype(_depth_message(what))


def _refuse_by_header(image: Image.Image, what: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        raise PayloadTooLarge(_bomb_message(what, max_pixels, f" has {size} pixels,"))
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) != 1:
        raise UndecodableImage(f"{what} has several frames; send each frame as an image")
    if image.mode in WIDE_MODES:
        raise WrongDtype(_depth_message(what))
    if image.mode in FOREIGN_MODES:
        raise WrongDtype(f"{what} has colour space {image.mode}: save it as RGB or grey")


def _bomb_message(what: str, max_pixels: int, size: str = "") -> str:
    return (
        f"{what}{size} exceeds the {max_pixels} pixels that may still be decoded in this request: "
        "make it smaller, or send fewer"
    )


def _depth_message(what: str) -> str:
    return f"{what} has more than 8 bits a channel: save it with 8, scaled as you want it"


def _as_array(image: Image.Image) -> Pixels:
    transparent = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    if transparent:
        return _over_black(np.asarray(image.convert("RGBA")))
    mode = "L" if image.mode in ("1", "L") else "RGB"
    array = np.asarray(image.convert(mode))
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _over_black(rgba: Pixels) -> Pixels:
    """[H, W, 4] -> [3, H, W]: colour times alpha / 255, rounded."""
    colour = rgba[..., :3].astype(np.uint16) * rgba[..., 3:].astype(np.uint16)
    return np.ascontiguousarray(((colour + 127) // 255).astype(np.uint8).transpose(2, 0, 1))


def _fit(images: Pixels, shape: ImageShape, fit: Fit, what: str) -> Fitted:
    """`images` [n, c, H, W] in the model's colour, then in its size."""
    fitted = _fit_colour(images, shape, fit, what)
    if images.shape[2:] == (shape.height, shape.width):
        return fitted
    if not fit.resize:
        raise WrongShape(_size_message(what, images.shape[2:], shape))
    resized = np.stack([_resize(image, shape) for image in fitted.images])
    return Fitted(resized, np.ones(len(images), np.bool_))


def _fit_colour(images: Pixels, shape: ImageShape, fit: Fit, what: str) -> Fitted:
    """Channels of `images` [n, c, H, W]: equal ones serve a grey model, a grey one serves RGB."""
    n, channels = images.shape[:2]
    same = np.zeros(n, np.bool_)
    if channels == shape.channels:
        return Fitted(images, same)
    if channels == 1:
        return Fitted(np.repeat(images, shape.channels, axis=1), same)
    coloured = (images != images[:, :1]).reshape(n, -1).any(axis=1)
    if shape.channels == 1 and not coloured.any():
        return Fitted(np.ascontiguousarray(images[:, :1]), same)
    if shape.channels == 1 and fit.convert:
        return Fitted(_luma(images), coloured)
    raise WrongShape(
        f"{what} has {channels} different channels, the model takes {shape.channels}: send it in "
        "grey, or set convert=true (its p-value is then that of an altered image)"
    )


def _luma(images: Pixels) -> Pixels:
    """[n, 3, H, W] -> [n, 1, H, W] by ITU-R BT.601; equal channels stay what they are."""
    weights = np.array([19595, 38470, 7471], np.uint32)[:, None, None]  # sum 65536
    total = (images.astype(np.uint32) * weights).sum(axis=1, keepdims=True) + 32768
    return np.asarray(total >> 16, np.uint8)


def _resize(image: Pixels, shape: ImageShape) -> Pixels:
    from PIL import Image

    size, how = (shape.width, shape.height), Image.Resampling.LANCZOS
    planes = [np.asarray(Image.fromarray(plane).resize(size, how)) for plane in image]
    return np.stack(planes)


def _size_message(what: str, size: Sequence[int], shape: ImageShape) -> str:
    return (
        f"{what} has {size[0]}x{size[1]} pixels (height x width), the model takes "
        f"{shape.height}x{shape.width}: resize it, or set resize=true (its p-value is then that "
        "of an altered image)"
    )
