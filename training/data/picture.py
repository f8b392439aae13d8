"""One image file, as `service.codecs` reads it: its header, and its pixels in a wanted shape."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.codecs.images import Fit, PixelLimits, fit_files
from service.errors import UndecodableImage, WrongDtype

__all__ = ["MAX_PIXELS", "Header", "read_header", "read_image"]

MAX_PIXELS = 64_000_000  # of one file: what is larger is refused before it is decoded
GREY_MODES = frozenset({"1", "L", "LA", "La"})
COLOUR_MODES = frozenset({"RGB", "RGBA", "RGBa", "RGBX", "P", "PA"})


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of itself before it is decoded; `size` as it is after EXIF orientation."""

    width: int
    height: int
    channels: int
    size: tuple[int, int]

    @property
    def pixels(self) -> int:
        """How many there are."""
        return self.width * self.height


@dataclass(frozen=True, kw_only=True)
class _Shape:
    channels: int
    height: int
    width: int


def read_header(data: bytes, what: str) -> Header:
    """The header of image file `data`; raises `IafvaeError` where it is none."""
    try:
        with warnings.catch_warnings():  # of sizes that are refused elsewhere
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UndecodableImage(f"{what}: {error}") from None
    if image.mode not in GREY_MODES | COLOUR_MODES:
        raise WrongDtype(f"{what}: pixels of type {image.mode} are not 8-bit")
    width, height = image.size
    return Header(
        width=width,
        height=height,
        channels=1 if image.mode in GREY_MODES else 3,
        size=(width, height) if turned else (height, width),
    )


def read_image(
    data: bytes, *, channels: int, height: int, width: int, what: str, max_pixels: int
) -> NDArray[np.uint8]:
    """The picture in image file `data` as uint8 [channels, height, width]."""
    shape = _Shape(channels=channels, height=height, width=width)
    limits = PixelLimits(image=max_pixels, total=max_pixels)
    rules = Fit(resize=True, convert=True)
    return np.asarray(fit_files([data], shape, rules, limits, [what]).images[0])
