"""Image files to the uint8 pixels of a model: decoding, orientation, transparency, colour, size.

The one implementation of it, for training and for serving. What decoding will cost is
known from the header and refused before it begins. Pillow is imported when the first file comes: a
service that is sent arrays never loads it.
"""

from __future__ import annotations

import base64
import io
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.codecs.fitting import (
    Fit,
    FitMode,
    Fitted,
    Shape,
    check_size,
    fit_array,
    resize,
    wrong_colour,
)
from service.codecs.headers import MAX_PARTS, Header, TooManyParts, broken, check_kind, read_header
from service.errors import PayloadTooLarge, UndecodableImage

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "Fit",
    "FitMode",
    "Fitted",
    "PixelLimits",
    "Shape",
    "decode_base64",
    "decoding_work",
    "fit_array",
    "fit_files",
    "read_image",
]

Pixels = NDArray[np.uint8]
# Bytes, and chunks or segments, of all files whose headers are read on an event loop: 1 ms.
SOON_BYTES, SOON_PARTS = 2**17, 2**9
MAX_WORK = 2**30  # pixels times passes, about a second: each scan of a JPEG goes over all pixels
TURNS = (  # names of Pillow's transpositions, by EXIF orientation less 2
    "FLIP_LEFT_RIGHT",
    "ROTATE_180",
    "FLIP_TOP_BOTTOM",
    "TRANSPOSE",
    "ROTATE_270",
    "TRANSVERSE",
    "ROTATE_90",
)


PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type
ADAM7 = (  # first column and row of each pass, and the steps from there
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # fmt: skip
# Of a JPEG's blocks, more than one unit of them takes, and each restart that may be waited for.
MORE_DATA = b"\x5a" * 2**10 + b"".join(b"\xff%c" % n + b"\x5a" * 64 for n in range(0xD0, 0xD8))
INFLATED_BYTES = 2**18  # at a time
# By how much the channels of grey pixels may differ: a lossy WebP has no grey of its own, and the
# green that libwebp makes of it is one level less here and there.
ROUNDING = {"WEBP": 1}


@dataclass(frozen=True, kw_only=True)
class PixelLimits:
    """Bounds on what is decoded: of one picture, and of all of a request together."""

    image: int = 2**25
    total: int = 2**26


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
    """The picture in image file `data` as uint8 [channels, height, width], for users' programs.

    Colour becomes grey where `channels` is 1; another size is fitted as `fit` says. Raises as
    `fit_files` does.
    """
    shape = (channels, height, width)
    limits = PixelLimits(image=max_pixels, total=max_pixels)
    rules = Fit(resize=True, convert=True, how=fit)
    return np.asarray(fit_files([data], shape, rules, limits, [what]).images[0])


def fit_files(
    files: Sequence[bytes | memoryview],
    shape: Shape,
    fit: Fit,
    limits: PixelLimits,
    names: Sequence[str] | None = None,
    headers: Sequence[Header] | None = None,
) -> Fitted:
    """Decode image `files` and bring each to `shape`. An error names the file by place or name.

    headers: of `decoding_work`, which read them already.

    Raises:
        UndecodableImage: not an image, a broken one, or of more than one frame.
        WrongDtype: more than 8 bits a channel, or CMYK.
        WrongShape: another size or colour, where `fit` does not allow a change.
        PayloadTooLarge: too many pixels, or passes over them; known before they are decoded.
    """
    if not headers:
        headers = _headers(files, shape, fit, limits, names)
    images = np.empty((len(files), *shape), np.uint8)
    altered = np.zeros(len(files), np.bool_)
    notes: list[str] = []
    decoded = 0
    for index, header in enumerate(headers):
        what = names[index] if names else f"image {index}"
        images[index], altered[index], note = _fit_file(header, shape, fit, what)
        notes += [note] if note else []
        decoded += header.pixels
    return Fitted(images, altered, tuple(notes), decoded)


def decoding_work(
    files: Sequence[bytes | memoryview],
    shape: Shape,
    fit: Fit,
    limits: PixelLimits,
    names: Sequence[str] | None = None,
) -> tuple[float, list[Header]]:
    """Pixels times passes of image `files`, and their headers; infinite where that is not known
    soon. Raises as `fit_files` what can be told before anything is decoded.
    """
    if sum(map(len, files)) > SOON_BYTES:
        for index, data in enumerate(files):
            check_kind(data, names[index] if names else f"image {index}")
        return math.inf, []
    try:
        headers = _headers(files, shape, fit, limits, names, SOON_PARTS)
    except TooManyParts:
        return math.inf, []
    work = 0
    for header in headers:
        work += header.pixels * header.passes
    return work, headers


def _headers(
    files: Sequence[bytes | memoryview],
    shape: Shape,
    fit: Fit,
    limits: PixelLimits,
    names: Sequence[str] | None,
    parts: float = math.inf,
) -> list[Header]:
    """Headers of pictures that may be decoded; parts: chunks or segments of all of them."""
    headers: list[Header] = []
    left = limits.total
    for index, data in enumerate(files):
        what = names[index] if names else f"image {index}"
        header = read_header(data, what, int(min(MAX_PARTS, parts)))
        _check_work(header, what, min(limits.image, left))
        if header.size != shape[1:]:
            check_size(header.size, shape, fit, what)
        headers.append(header)
        left -= header.pixels
        parts -= header.parts
    return headers


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
    except ValueError as error:
        raise UndecodableImage(
            f"{what} is not base64 ({str(error).lower()}): encode the bytes of a PNG, JPEG or "
            "WebP file"
        ) from None


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


def _fit_file(header: Header, shape: Shape, fit: Fit, what: str) -> tuple[Pixels, bool, str | None]:
    """Pixels [C, H, W], whether they were altered, and a note."""
    same_size = header.size == shape[1:]
    image, note = _decode(header, what, None if same_size else shape)
    image, converted = _in_colour(image, shape, fit, what, ROUNDING.get(header.kind, 0))
    if not same_size:
        image = resize(image, shape, fit)
    array = np.asarray(image)
    planes = array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
    return planes, converted or not same_size, note


def _decode(
    header: Header, what: str, wanted: Shape | None = None
) -> tuple[Image.Image, str | None]:
    """The picture, upright, of mode L or RGB, and a note on transparency.

    wanted: a size that it will be reduced to; JPEGs are decoded smaller where that is enough.
    """
    from PIL import Image, WebPImagePlugin  # noqa: F401 - else Pillow loads all of its plugins

    Image.MAX_IMAGE_PIXELS = None  # `_check_work` has bounded them, as the settings say
    try:
        with Image.open(io.BytesIO(header.body), formats=[header.kind]) as image:
            if image.size != (header.width, header.height):
                raise broken(what, "its header and its picture have different sizes")
            # Twice the size: what is left is resampled.
            least = None if wanted is None else (2 * max(wanted[1:]),) * 2
            if least is not None:
                image.draft(None, least)
            if header.kind == "PNG" and not _has_all_rows(image, header.body):
                raise broken(what, "its data end before its last row")
            if header.kind == "JPEG" and not _has_all_blocks(image, header, least):
                raise broken(what, "its data end before its last block")
            plain, note = _without_alpha(image, what)
    except (UndecodableImage, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - on hostile bytes a decoder may raise anything
        # Pillow says where in memory the file was that it cannot read.
        raise broken(what, str(error).partition(" <")[0]) from None
    if header.orientation > 1:
        plain = plain.transpose(Image.Transpose[TURNS[header.orientation - 2]])
    return plain, note


def _has_all_rows(image: Image.Image, body: bytes) -> bool:
    """Whether a PNG has data for all of its rows: where they end well, Pillow leaves those that are
    missing at 0. They are counted only where the last row is 0, or rows do not come in order."""
    last = image.crop((0, image.height - 1, image.width, image.height))
    depth, colour, _, _, interlaced = body[24:29]
    if not interlaced and any(last.tobytes()):
        return True
    bits = depth * PNG_SAMPLES[colour]
    left = 0
    for x, y, dx, dy in ADAM7 if interlaced else ((0, 0, 1, 1),):
        width, height = -((x - image.width) // dx), -((y - image.height) // dy)
        left += height * (1 + (width * bits + 7) // 8) if width else 0
    inflate, at = zlib.decompressobj(), 33
    while at < len(body) and left > 0:
        length, kind = struct.unpack_from(">I4s", body, at)
        data = body[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
        while data and left > 0:
            left -= len(inflate.decompress(data, INFLATED_BYTES))
            data = inflate.unconsumed_tail
    return left <= 0


def _has_all_blocks(image: Image.Image, header: Header, least: tuple[int, int] | None) -> bool:
    """Whether a JPEG, decoded no smaller than `least`, has data for all of its blocks.

    libjpeg takes those that are missing for grey, or for known well enough from earlier scans.
    Where that may be, it is decoded once more with further data, which matter only then.
    """
    from PIL import Image, ImageChops

    last, body = image.getpixel((image.width - 1, image.height - 1)), header.body
    if header.passes == 1 and last not in (128, (128, 128, 128)):
        return True
    with Image.open(io.BytesIO(body[:-2] + MORE_DATA + body[-2:]), formats=["JPEG"]) as more:
        if least is not None:
            more.draft(None, least)
        return ImageChops.difference(image, more).getbbox() is None


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
            "put it on white"
        )
    return flat, f"{what} is partly transparent and was put on black"


def _in_colour(
    image: Image.Image, shape: Shape, fit: Fit, what: str, rounding: int
) -> tuple[Image.Image, bool]:
    """`image` with as many channels as `shape`, and whether its colours are lost by that."""
    from PIL import ImageChops

    if image.mode == "L":
        return image if shape[0] == 1 else image.convert("RGB"), False
    if shape[0] == 3:
        return image, False
    red, green, blue = image.split()
    apart = (np.asarray(ImageChops.difference(red, other)).max() for other in (green, blue))
    if shape[0] == 1 and max(apart) <= rounding:
        return red, False
    if shape[0] != 1 or not fit.convert:
        raise wrong_colour(what, 3, shape)
    return image.convert("L"), True
