"""Images that a model was not trained on, in its shape: other data sets, and made ones.

mnist, fashion-mnist, cifar10, folder:PATH   another data set's images
draws                                        the model's own
constants                                    every grey level from 0 to 255, one image each
noise                                        every level of every pixel with the same chance

and of the model's own images:

blurred[:SIGMA]     by a Gaussian of SIGMA pixels (1), edges mirrored
noisy[:SIGMA]       plus a Gaussian of SIGMA levels (25)
inverted            255 minus each level
flipped             upside down
thresholded         255 from level 128 on, else 0
shuffled[:SIDE]     squares of SIDE pixels (7; at most half the image) in another order, each image
                    its own; what fills no square stays
defects[:SIDE]      a square of SIDE pixels (4) of one level, 128 from its mean, at a random place

What is drawn is a function of the images' number and shape, and of the seed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from model.config import ConfigError
from service.codecs.images import Fit, FitMode, fit_array
from training.data import (
    DATASETS,
    FOLDER_PREFIX,
    STATIC,
    FolderOptions,
    Split,
    folder_path,
    load_dataset,
    whole_folder,
)

__all__ = [
    "DRAWS",
    "MADE",
    "ImageSet",
    "default_names",
    "image_set",
    "made_anomalies",
    "planted_defects",
]

Pixels = NDArray[np.uint8]
Masks = NDArray[np.bool_]

DRAWS = "draws"  # of a model: who has it draws them
CONTRAST = 128  # levels between a planted defect and the mean of what it hides


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [N, C, H, W] under a short name, and in words how they came about."""

    name: str
    description: str
    pixels: Pixels


def default_names(own: str) -> tuple[str, ...]:
    """What a model of the data set `own` is compared with unless something else is asked for."""
    known = (own, "mnist" if own == STATIC else STATIC)  # the same digits
    return (*(name for name in DATASETS if name not in known), *MADE, DRAWS)


def image_set(
    name: str,
    own: Pixels,
    *,
    split: Split,
    count: int | None,
    seed: int,
    data_dir: Path | None,
    fit: FitMode = "crop",
    download: bool = True,
) -> ImageSet:
    """The set called `name`, of the shape of the model's `own` images [N, C, H, W].

    At most the first `count` of another data set's `split`, or of all images of a folder, fitted
    as the service does it when it is asked to resize and convert. Raises `ConfigError` for a name
    that there is not, `DataError` where its images are not at hand.
    """
    shape: tuple[int, int, int] = (own.shape[1], own.shape[2], own.shape[3])
    if name.partition(":")[0] in MADE:
        pixels, words = made_anomalies(own, name, seed)
        return ImageSet(name, words, pixels)
    if name.startswith(FOLDER_PREFIX):
        options = FolderOptions(size=shape[1:], channels=shape[0], fit=fit)
        data = whole_folder(name, split, data_dir, options)
    elif name in DATASETS:
        data = load_dataset(name, split, data_dir, download=download)
    else:
        raise ConfigError(
            f"--against {name!r} is none of {', '.join(DATASETS)}, folder:PATH, "
            f"{', '.join(MADE)}, {DRAWS}"
        )
    pixels, words = data.first(count).pixels, f"{data.split} images of {data.name}"
    if pixels.shape[1:] != shape:
        source, target = ("x".join(map(str, s)) for s in (pixels.shape[1:], shape))
        words += f", made {target} of {source}"
        pixels = fit_array(pixels, shape, Fit(resize=True, convert=True, how=fit)).images
    if name.startswith(FOLDER_PREFIX):  # of several by its own name, which is no path
        return ImageSet(f"{data.name} {folder_path(name, data_dir).resolve().name}", words, pixels)
    return ImageSet(data.name, words, pixels)


def blurred(pixels: Pixels, sigma: float) -> Pixels:
    """Images uint8 [N, C, H, W] convolved with a Gaussian of `sigma` pixels, edges mirrored."""
    reach = max(1, int(np.ceil(4 * sigma)))
    weights = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / sigma))
    rows, columns = (_mirrored(np.eye(size), weights / weights.sum()) for size in pixels.shape[2:])
    smooth = np.einsum("ih,nchw,jw->ncij", rows, pixels, columns, optimize=True)
    return _pixels(smooth)


def _mirrored(image: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """[H, W] convolved along its first axis."""
    reach = len(weights) // 2
    padded = np.pad(image, ((reach, reach), (0, 0)), mode="symmetric")
    return sliding_window_view(padded, len(weights), axis=0) @ weights


def noisy(pixels: Pixels, sigma: float, seed: int) -> Pixels:
    """Images uint8 [N, C, H, W] plus Gaussian noise of `sigma` levels, cut off at 0 and 255."""
    return _pixels(pixels + _generator(seed).normal(0.0, sigma, pixels.shape))


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, 2**64 - 2], np.uint64)))


def _pixels(values: NDArray[np.float64]) -> Pixels:
    found: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return found


def shuffled(pixels: Pixels, side: int, seed: int) -> Pixels:
    """Images uint8 [N, C, H, W] whose squares of `side` pixels change places within each."""
    count, channels, height, width = pixels.shape
    side = min(side, height // 2, width // 2)
    rows, columns = height // side, width // side
    whole = pixels[:, :, : rows * side, : columns * side]
    squares = whole.reshape(count, channels, rows, side, columns, side).transpose(0, 2, 4, 1, 3, 5)
    squares = squares.reshape(count, rows * columns, channels, side, side)
    order = _generator(seed).permuted(np.tile(np.arange(rows * columns), (count, 1)), axis=1)
    mixed = np.take_along_axis(squares, order[:, :, None, None, None], axis=1)
    mixed = mixed.reshape(count, rows, columns, channels, side, side).transpose(0, 3, 1, 4, 2, 5)
    found = pixels.copy()
    found[:, :, : rows * side, : columns * side] = mixed.reshape(whole.shape)
    return found


def planted_defects(images: Pixels, seed: int, side: int = 4) -> tuple[Pixels, Masks]:
    """`images` uint8 [N, C, H, W] with one defect each, and where it lies, bool [N, H, W].

    A defect is a square of `side` by `side` pixels, anywhere with the same chance, of one level:
    128 above the mean of the pixels that it hides, or below it where that is in the upper half. So
    each is equally strong.
    """
    count, _, height, width = images.shape
    side = min(side, height, width)
    generator = _generator(seed)
    top = generator.integers(0, height - side + 1, count)[:, None, None]
    left = generator.integers(0, width - side + 1, count)[:, None, None]
    y, x = np.arange(height)[:, None], np.arange(width)
    masks = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)  # [N, H, W]
    inside = masks[:, None]
    means = images.mean(axis=(1, 2, 3), where=inside)
    levels = np.where(means < 127.5, means + CONTRAST, means - CONTRAST)
    return np.where(inside, _pixels(levels)[:, None, None, None], images), masks


@dataclass(frozen=True)
class _Kind:
    """`make(images, strength, seed)`; `strength` by default, None where there is only one.

    Of a square, which is cut down until it `fits` so often into an image's shorter side.
    """

    words: str
    make: Callable[[Pixels, Any, int], Pixels]
    strength: float | None = None
    fits: int = 0


MADE: Mapping[str, _Kind] = {
    "constants": _Kind(
        "every grey level, one image each",
        lambda images, *_: (
            np.ones((256, *images.shape[1:]), np.uint8)
            * np.arange(256, dtype=np.uint8)[:, None, None, None]
        ),
    ),
    "noise": _Kind(
        "every pixel of any level",
        lambda images, _, seed: _generator(seed).integers(0, 256, images.shape, np.uint8),
    ),
    "blurred": _Kind(
        "the model's own images, blurred by a Gaussian (deviation {:g} pixels)",
        lambda images, sigma, _: blurred(images, sigma),
        1.0,
    ),
    "noisy": _Kind(
        "the model's own images, plus Gaussian noise (deviation {:g} of 255)", noisy, 25.0
    ),
    "inverted": _Kind("the model's own images, 255 minus each level", lambda x, *_: 255 - x),
    "flipped": _Kind("the model's own images, upside down", lambda x, *_: x[:, :, ::-1].copy()),
    "thresholded": _Kind(
        "the model's own images, 255 from level 128 on, else 0",
        lambda x, *_: np.where(x < 128, 0, 255).astype(np.uint8),
    ),
    "shuffled": _Kind("the model's own images, squares of {} pixels shuffled", shuffled, 7, 2),
    "defects": _Kind(
        "the model's own images, each with a square of {} pixels of one level, 128 off its mean",
        lambda images, side, seed: planted_defects(images, seed, side)[0],
        4,
        1,
    ),
}


def made_anomalies(images: Pixels, name: str, seed: int) -> tuple[Pixels, str]:
    """Anomalies made of `images` uint8 [N, C, H, W], as many and of their shape; what they are.

    `name` is one of `MADE`, with its strength after a colon where it has one ("blurred:2"); only
    "constants" gives 256 images whatever there are. Raises `ConfigError` for another strength.
    """
    kind, _, given = name.partition(":")
    made = MADE[kind]
    strength = _strength(name, given, made.strength) if given else made.strength
    if made.fits and strength is not None:
        strength = min(strength, min(images.shape[2:]) // made.fits)
    return made.make(images, strength, seed), made.words.format(strength)


def _strength(name: str, given: str, default: float | None) -> float:
    """What follows the colon; a whole number where the default is one."""
    try:
        strength = int(given) if isinstance(default, int) else float(given)
    except ValueError:
        strength = 0
    if default is None or not 0 < strength < 1000:
        raise ConfigError(
            f"--against {name!r}: what follows the colon is a number above 0, for kinds with one"
        )
    return strength
