"""Image files and arrays to the uint8 pixels of a model: colour, orientation, size.

The one implementation of these rules, for training and for serving. What decoding will cost is
known from the header and refused before it begins. Pillow is imported when the first file comes: a
service that is sent arrays never loads it.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.codecs.headers import Header, broken, read_header
from service.errors import PayloadTooLarge, UndecodableImage, WrongShape

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "Fit",
    "FitMode",
    "Fitted",
    "ImageSize",
    "PixelLimits",
    "decode_base64",
    "fit_array",
    "fit_files",
    "fit_image",
    "read_image",
    "read_picture",
]

Pixels = NDArray[np.uint8]
FitMode = Literal["crop", "pad", "none"]
MAX_ASPECT = 100  # longer side over shorter one, of what is resized
MAX_WORK = 2**29  # pixels times passes: progressive JPEGs go over all pixels in every scan
TURNS = (  # names of Pillow's transpositions, by EXIF orientation less 2
    "FLIP_LEFT_RIGHT",
    "ROTATE_180",
    "FLIP_TOP_BOTTOM",
    "TRANSPOSE",
    "ROTATE_270",
    "TRANSVERSE",
    "ROTATE_90",
)


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

    image: int = 2**25
    total: int = 2**26


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


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """An `ImageShape` that is nothing else."""

    channels: int
    height: int
    width: int


def read_image(
    data: bytes,
    *,
    channels: int,
    height: int,
    width: int,
    fit: FitMode = "crop",
    what: str = "the image",
    max_pixels: int = PixelLimits.image,
) -> Pixels:
    """The picture in image file `data` as uint8 [channels, height, width].

    Colour becomes grey where `channels` is 1; another size is fitted as `fit` says. Raises as
    `fit_files` does.
    """
    shape = ImageSize(channels=channels, height=height, width=width)
    limits = PixelLimits(image=max_pixels, total=max_pixels)
    rules = Fit(resize=True, convert=True, how=fit)
    return np.asarray(fit_files([data], shape, rules, limits, [what]).images[0])


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
        WrongDtype: more than 8 bits a channel, or CMYK.
        WrongShape: another size or colour, where `fit` does not allow a change.
        PayloadTooLarge: too many pixels, or passes over them; known before they are decoded.
    """
    left = limits.total
    images = np.empty((len(files), shape.channels, shape.height, shape.width), np.uint8)
    altered = np.zeros(len(files), np.bool_)
    notes: list[str] = []
    for index, data in enumerate(files):
        what = names[index] if names else f"image {index}"
        header = read_header(data, what)
        _check_work(header, what, min(limits.image, left))
        left -= header.pixels
        images[index], altered[index], note = _fit_file(header, shape, fit, what)
        notes += [note] if note else []
    return Fitted(images, altered, tuple(notes), limits.total - left)


def read_picture(data: bytes, what: str, *, max_pixels: int) -> Pixels:
    """The picture in a PNG, JPEG or WebP file: uint8 [1, H, W] if grey, else [3, H, W].

    EXIF orientation is applied, palettes are expanded and alpha is composited over black.
    """
    header = read_header(data, what)
    _check_work(header, what, max_pixels)
    return _planes(_decode(header, what)[0])


def fit_array(array: Pixels, shape: ImageShape, fit: Fit) -> Fitted:
    """Bring uint8 `array` of [n, H, W], [n, C, H, W] or [n, H, W, C] to `shape`.

    Where both readings of four dimensions are possible, channels come first. Three dimensions are
    one image, [C, H, W] or [H, W, C], where C is the model's. Raises WrongShape.
    """
    images = _channels_first(array, shape)
    if 0 in images.shape:
        raise WrongShape(f"the array has shape {list(array.shape)}: it holds no pixels")
    fitted, altered = _fit_colours(images, shape, fit)
    if images.shape[2:] == (shape.height, shape.width):
        return Fitted(fitted, altered)
    _check_size(images.shape[2:], shape, fit, "the array")
    resized = [fit_image(image, shape.height, shape.width, fit.how) for image in fitted]
    return Fitted(np.stack(resized), np.ones(len(images), np.bool_))


def fit_image(image: Pixels, height: int, width: int, fit: FitMode = "crop") -> Pixels:
    """`image` uint8 [C, H, W] in another size, as `Fit.how` says. Raises WrongShape."""
    from PIL import Image

    planes = [_resize(Image.fromarray(plane), height, width, fit) for plane in image]
    return np.stack([np.asarray(plane) for plane in planes])


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of base64 `text`; a ``data:...;base64,`` prefix, as browsers write it, is dropped.

    `what` names the value in errors. Raises UndecodableImage.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if "\n" in text:  # as `base64` and MIME wrap it
        text = "".join(text.split())
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UndecodableImage(
            f"{what} is not base64 ({str(error).lower()}): encode the bytes of a PNG, JPEG or "
            "WebP file"
        ) from None


# ------------------------------------------------------------------ files


def _check_work(header: Header, what: str, max_pixels: int) -> None:
    size = f"{header.width}x{header.height}"
    if header.pixels > max_pixels:
        raise PayloadTooLarge(
            f"{what} has {size} pixels, which exceeds the {max_pixels} pixels that may still be "
            "decoded in this request: make it smaller, or send fewer"
        )
    if header.pixels * header.passes > MAX_WORK:
        raise PayloadTooLarge(
            f"{what} has {header.passes} scans of {size} pixels, too many to decode: save it as a "
            "baseline JPEG"
        )


def _fit_file(
    header: Header, shape: ImageShape, fit: Fit, what: str
) -> tuple[Pixels, bool, str | None]:
    """Pixels [C, H, W], whether they were altered, and a note."""
    same_size = header.size == (shape.height, shape.width)
    if not same_size:
        _check_size(header.size, shape, fit, what)
    image, note = _decode(header, what, None if same_size else shape)
    image, converted = _in_colour(image, shape, fit, what)
    if not same_size:
        image = _resize(image, shape.height, shape.width, fit.how)
    return _planes(image), converted or not same_size, note


def _decode(
    header: Header, what: str, wanted: ImageShape | None = None
) -> tuple[Image.Image, str | None]:
    """The picture, upright, of mode L or RGB, and a note on transparency.

    wanted: a size that it will be reduced to; JPEGs are decoded smaller where that is enough.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(header.body), formats=[header.kind]) as image:
            if image.size != (header.width, header.height):
                raise broken(what, "its header and its picture have different sizes")
            if wanted is not None:
                side = 2 * max(wanted.height, wanted.width)  # twice: what is left is resampled
                image.draft(None, (side, side))
            plain, note = _without_alpha(image, what)
    except (UndecodableImage, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - on hostile bytes a decoder may raise anything
        raise broken(what, str(error)) from None
    if header.orientation > 1:
        plain = plain.transpose(Image.Transpose[TURNS[header.orientation - 2]])
    return plain, note


def _without_alpha(image: Image.Image, what: str) -> tuple[Image.Image, str | None]:
    """As L or RGB; what is transparent is over black, and a note says so where anything is."""
    from PIL import Image

    if "transparency" not in image.info and image.mode not in ("LA", "La", "PA", "RGBA", "RGBa"):
        return image.convert("L" if image.mode in ("1", "L") else "RGB"), None
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    flat = Image.new("RGB", rgba.size)
    flat.paste(rgba.convert("RGB"), mask=alpha)  # colour times alpha / 255, rounded
    lowest, highest = alpha.getextrema()
    if lowest == 255:
        return flat, None
    if highest and not flat.getbbox():
        return flat, (
            f"{what} is black on transparency and was put on black, so that nothing of it is left: "
            "put it on white before you send it"
        )
    return flat, f"{what} is partly transparent and was put on black"


def _in_colour(
    image: Image.Image, shape: ImageShape, fit: Fit, what: str
) -> tuple[Image.Image, bool]:
    """`image` with as many channels as `shape`, and whether its colours are lost by that."""
    from PIL import ImageChops

    if image.mode == "L":
        return image if shape.channels == 1 else image.convert("RGB"), False
    if shape.channels == 3:
        return image, False
    red, green, blue = image.split()
    others = (green, blue)
    if shape.channels == 1 and not any(
        ImageChops.difference(red, other).getbbox() for other in others
    ):
        return red, False
    if shape.channels != 1 or not fit.convert:
        raise _wrong_colour(what, 3, shape)
    return image.convert("L"), True


def _resize(image: Image.Image, height: int, width: int, fit: FitMode) -> Image.Image:
    from PIL import Image, ImageOps

    how = Image.Resampling.LANCZOS
    if image.size == (width, height):
        return image
    if fit == "crop":
        return ImageOps.fit(image, (width, height), how)
    if fit == "pad":
        return ImageOps.pad(image, (width, height), how)
    raise WrongShape(_size_message("the image", (image.height, image.width), height, width))


def _planes(image: Image.Image) -> Pixels:
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


# ------------------------------------------------------------------ arrays


def _channels_first(array: Pixels, shape: ImageShape) -> Pixels:
    if array.ndim == 3 and shape.channels in (array.shape[0], array.shape[2]):
        array = array[None]
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
        + ("; one image alone is array[None]" if array.ndim == 2 else "")
    )


def _fit_colours(images: Pixels, shape: ImageShape, fit: Fit) -> tuple[Pixels, NDArray[np.bool_]]:
    """Channels of `images` [n, c, H, W]: equal ones serve a grey model, a grey one serves RGB."""
    n, channels = images.shape[:2]
    same = np.zeros(n, np.bool_)
    if channels == shape.channels:
        return images, same
    if channels == 1:
        return np.repeat(images, shape.channels, axis=1), same
    coloured = (images != images[:, :1]).reshape(n, -1).any(axis=1)
    if shape.channels == 1 and not coloured.any():
        return np.ascontiguousarray(images[:, :1]), same
    if shape.channels == 1 and fit.convert:
        return _luma(images), coloured
    raise _wrong_colour("the array", channels, shape)


def _luma(images: Pixels) -> Pixels:
    """[n, 3, H, W] -> [n, 1, H, W] by ITU-R BT.601; equal channels stay what they are."""
    weights = np.array([19595, 38470, 7471], np.uint32)[:, None, None]  # sum 65536
    grey = np.empty((len(images), 1, *images.shape[2:]), np.uint8)
    for image, plane in zip(images, grey, strict=True):  # one by one: numbers of 32 bits are many
        plane[0] = ((image * weights).sum(axis=0, dtype=np.uint32) + 32768) >> 16
    return grey


# ------------------------------------------------------------------ refusals


def _check_size(size: Sequence[int], shape: ImageShape, fit: Fit, what: str) -> None:
    """Raises WrongShape where a picture of `size` may not, or can not, be resized to `shape`."""
    if not fit.resize or fit.how == "none":
        message = _size_message(what, size, shape.height, shape.width)
        if fit.how != "none":
            message += ", or set resize=true (its p-value is then that of an altered image)"
        raise WrongShape(message)
    if max(size) > MAX_ASPECT * min(size):
        raise WrongShape(
            f"{what} has {size[0]}x{size[1]} pixels (height x width), and is resized only where "
            f"one side is at most {MAX_ASPECT} times the other: cut it"
        )


def _size_message(what: str, size: Sequence[int], height: int, width: int) -> str:
    return (
        f"{what} has {size[0]}x{size[1]} pixels (height x width), the model takes "
        f"{height}x{width}: resize it"
    )


def _wrong_colour(what: str, channels: int, shape: ImageShape) -> WrongShape:
    return WrongShape(
        f"{what} has {channels} different channels, the model takes {shape.channels}: send it in "
        "grey, or set convert=true (its p-value is then that of an altered image)"
    )
