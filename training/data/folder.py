"""A folder of a user's own images (PNG, JPEG, WebP) as one array, split by file name.

A file's split is a function of its path relative to the folder: SHA-256 of the path (UTF-8, NFC,
"/" between its parts), its first eight bytes as a fraction of 2^64: below 0.80 `train`, below 0.85
`validation`, below 0.90 `calibration`, else `test`. Files that are added later move no other file.
Pixels are read as the service reads them: EXIF orientation applied, palettes expanded, alpha
composited over black, 16-bit images refused.
"""

import hashlib
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from training.errors import DataError

__all__ = ["FolderOptions", "read_folder", "split_of"]

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp"})
MAX_PIXELS = 64_000_000  # of one file: what is larger is refused before it is decoded
UPPER_BOUNDS = {"train": 0.80, "validation": 0.85, "calibration": 0.90, "test": 1.0}
GREY_MODES = frozenset({"1", "L", "LA", "La"})
COLOUR_MODES = frozenset({"RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB"})


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """What to make of the images.

    `size` (height, width; one number: a square): each image is scaled until it covers the size and
    cut to it around its middle. None: all must have one size already. `channels` 1 (grey) or 3
    (RGB). None: grey if all files are grey, RGB if all are coloured.
    """

    size: int | tuple[int, int] | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3):
            raise DataError(f"channels is 1 (grey) or 3 (RGB), not {self.channels}.")
        if self.height_width is not None and min(self.height_width) < 1:
            raise DataError(f"size must be at least 1, not {self.size}.")

    @property
    def height_width(self) -> tuple[int, int] | None:
        """The size asked for, if any."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass(frozen=True)
class _Header:
    """What a file says of itself before it is decoded; the size as it is after EXIF orientation."""

    path: Path
    height_width: tuple[int, int]
    channels: int


def split_of(relative_path: str) -> str:
    """The split of the file at `relative_path` ("cats/one.png")."""
    name = unicodedata.normalize("NFC", relative_path).encode()
    fraction = int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2**64
    return next(
        split for split, bound in UPPER_BOUNDS.items() if fraction < bound or split == "test"
    )


def read_folder(folder: Path, split: str, options: FolderOptions) -> NDArray[np.uint8]:
    """The images of one split, uint8 [N, C, H, W], in order of their relative paths, all in memory.

    Size and channels are inferred over the whole folder, so that every split has the same. Raises
    `DataError`: no folder, no images, unreadable files (named), several sizes or both grey and
    colour while none was asked for.
    """
    files = _image_files(folder)
    headers = _headers(list(files.values()))
    height_width = options.height_width or _one_size(headers)
    channels = options.channels or _one_colour(headers)
    chosen = [path for relative, path in files.items() if split_of(relative) == split]
    if not chosen:
        raise DataError(
            f"None of the {len(files)} images in {folder} falls into {split!r} (their names "
            "decide: 80 of 100 train, 5 validation, 5 calibration, 10 test): add images."
        )
    images = np.empty((len(chosen), channels, *height_width), np.uint8)
    for row, path in enumerate(chosen):
        images[row] = _pixels(path, height_width, channels)
    return images


def _image_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    found = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    }
    if not found:
        raise DataError(
            f"There are no images in {folder}: PNG, JPEG and WebP files are read, at any depth."
        )
    return dict(sorted(found.items()))


def _headers(paths: Sequence[Path]) -> list[_Header]:
    """Every file's header; all that cannot be read are named together, not one for each attempt."""
    headers, faults = [], []
    for path in paths:
        try:
            headers.append(_header(path))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            faults.append(f"{path}: {error}")
    if faults:
        shown = "; ".join(faults[:5])
        raise DataError(
            f"{len(faults)} of {len(paths)} images cannot be used, repair or remove them: {shown}"
        )
    return headers


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():  # of sizes that are refused here anyway
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path)


def _header(path: Path) -> _Header:
    with _open(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels are more than {MAX_PIXELS}")
        if image.mode not in GREY_MODES | COLOUR_MODES:
            raise ValueError(f"pixels of type {image.mode} are not 8-bit")
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # orientations that swap the sides
        channels = 1 if image.mode in GREY_MODES else 3
    return _Header(path, (width, height) if turned else (height, width), channels)


def _one_size(headers: Sequence[_Header]) -> tuple[int, int]:
    first = headers[0]
    for other in headers:
        if other.height_width != first.height_width:
            raise DataError(
                f"The images have several sizes: {first.path} is {_by(first)}, "
                f"{other.path} is {_by(other)}. Say which size they shall have (--size)."
            )
    return first.height_width


def _one_colour(headers: Sequence[_Header]) -> int:
    first = headers[0]
    for other in headers:
        if other.channels != first.channels:
            grey, coloured = sorted((first, other), key=lambda header: header.channels)
            raise DataError(
                f"Some images are grey ({grey.path}), some coloured ({coloured.path}). "
                "Say what they shall be (--channels 1 or 3)."
            )
    return first.channels


def _by(header: _Header) -> str:
    height, width = header.height_width
    return f"{height}x{width} (height x width)"


def _pixels(path: Path, height_width: tuple[int, int], channels: int) -> NDArray[np.uint8]:
    height, width = height_width
    try:
        with _open(path) as file:
            image = _plain(ImageOps.exif_transpose(file), channels)
    except (OSError, ValueError, SyntaxError) as error:  # SyntaxError: of Pillow's PNG reader
        raise DataError(f"{path} cannot be decoded ({error}): remove it or repair it.") from error
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    array = np.asarray(image, np.uint8)
    return array.reshape(height, width, channels).transpose(2, 0, 1)


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """Grey or RGB without palette or alpha; what is transparent is black."""
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return image.convert("L" if channels == 1 else "RGB")
