"""Images that a model was not trained on, in its shape: other data sets, constants, its own spoilt.

mnist, fashion-mnist, cifar10, folder:PATH   another data set's images
constants                                    every grey level from 0 to 255, one image each
blurred, blurred:SIGMA                       the model's own images, by a Gaussian of SIGMA pixels
noisy, noisy:SIGMA                           the model's own images, plus a Gaussian of SIGMA levels
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.config import ConfigError
from training.data import CIFAR10, DATASETS, FOLDER_PREFIX, Split, load_dataset, public_name

__all__ = ["ImageSet", "blurred", "default_names", "fitted", "image_set", "noisy"]

Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]

BLUR_PIXELS, NOISE_LEVELS = 1.0, 25.0
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's mode "L"


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [N, C, H, W] under a short name, and in words how they came about."""

    name: str
    description: str
    pixels: Pixels


def default_names(own: str) -> tuple[str, ...]:
    """What a model of the data set `own` is compared with unless something else is asked for."""
    others = tuple(name for name in DATASETS if name not in (own, CIFAR10))
    return (*others, "constants", "blurred", "noisy")


def image_set(
    name: str,
    own: Pixels,
    *,
    split: Split,
    count: int | None,
    seed: int,
    data_dir: Path | None,
) -> ImageSet:
    """The set called `name`, of the shape of the model's `own` images [N, C, H, W].

    At most the first `count` of another data set's `split`. Raises `ConfigError` for a name that
    there is not, `DataError` where its images are not at hand.
    """
    shape: Shape = (own.shape[1], own.shape[2], own.shape[3])
    kind, _, level = name.partition(":")
    if kind == "constants" and not level:
        levels = np.arange(256, dtype=np.uint8)[:, None, None, None]
        pixels = np.broadcast_to(levels, (256, *shape)).copy()
        return ImageSet(name, "every grey level, one image each", pixels)
    if kind == "blurred":
        sigma = _sigma(name, level, BLUR_PIXELS)
        words = f"the model's own images, blurred by a Gaussian (deviation {sigma:g} pixels)"
        return ImageSet(name, words, blurred(own, sigma))
    if kind == "noisy":
        sigma = _sigma(name, level, NOISE_LEVELS)
        words = f"the model's own images, plus Gaussian noise (deviation {sigma:g} of 255)"
        return ImageSet(name, words, noisy(own, sigma, seed))
    if name not in DATASETS and not name.startswith(FOLDER_PREFIX):
        raise ConfigError(
            f"--against {name!r} is none of {', '.join(DATASETS)}, folder:PATH, constants, "
            "blurred[:PIXELS], noisy[:LEVELS]"
        )
    return _data_set(name, shape, split, count, data_dir)


def _sigma(name: str, level: str, default: float) -> float:
    try:
        sigma = float(level) if level else default
    except ValueError:
        sigma = float("nan")
    if not 0 < sigma < 1000:
        raise ConfigError(f"--against {name!r}: what follows the colon is a number above 0")
    return sigma


def _data_set(
    name: str, shape: Shape, split: Split, count: int | None, data_dir: Path | None
) -> ImageSet:
    if name.startswith(FOLDER_PREFIX):
        data = load_dataset(name, split, data_dir, size=shape[1:], channels=shape[0])
        shown = public_name(name)
    else:
        data, shown = load_dataset(name, split, data_dir), name
    images = data.first(count)
    words = f"{split} images of {shown}"
    if images.pixels.shape[1:] != shape:
        source, target = ("x".join(map(str, s)) for s in (images.pixels.shape[1:], shape))
        words += f", made {target} of {source}"
    return ImageSet(shown, words, fitted(images.pixels, shape))


def fitted(pixels: Pixels, shape: Shape) -> Pixels:
    """Images uint8 [N, c, h, w] in another `shape`.

    Grey becomes three equal colours, colours their luma. A side that is too long is reduced by
    averaging, one that is too short gets black margins: digits then look as digits do.
    """
    channels, height, width = shape
    if pixels.shape[1] == 3 and channels == 1:
        luma = np.einsum("nchw,c->nhw", pixels, LUMA)[:, None]
        pixels = np.rint(luma).astype(np.uint8)
    smaller = (min(height, pixels.shape[2]), min(width, pixels.shape[3]))
    if smaller != pixels.shape[2:]:
        pixels = _reduced(pixels, smaller)
    above, left = (height - smaller[0]) // 2, (width - smaller[1]) // 2
    below, right = height - smaller[0] - above, width - smaller[1] - left
    pixels = np.pad(pixels, ((0, 0), (0, 0), (above, below), (left, right)))
    return pixels.repeat(channels // pixels.shape[1], axis=1)


def _reduced(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    height, width = size
    maps = pixels.reshape(-1, *pixels.shape[2:])
    box = Image.Resampling.BOX
    small = [np.asarray(Image.fromarray(m).resize((width, height), box)) for m in maps]
    return np.stack(small).reshape(*pixels.shape[:2], height, width)


def blurred(pixels: Pixels, sigma: float) -> Pixels:
    """Images uint8 [N, C, H, W] convolved with a Gaussian of `sigma` pixels, edges mirrored."""
    rows, columns = (_blur_matrix(size, sigma) for size in pixels.shape[2:])
    smooth = np.einsum("ih,nchw,jw->ncij", rows, pixels, columns, optimize=True)
    return _pixels(smooth)


def _blur_matrix(size: int, sigma: float) -> NDArray[np.float64]:
    """[size, size]: what a pixel takes of each; every row sums to one."""
    reach = max(1, int(np.ceil(4 * sigma)))
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * np.square(offsets / sigma))
    places = np.arange(size)[:, None] + offsets  # [size, taps]
    folded = places % (2 * size)
    mirrored = np.where(folded < size, folded, 2 * size - 1 - folded)
    matrix = np.zeros((size, size))
    for row, targets in enumerate(mirrored):
        np.add.at(matrix[row], targets, weights / weights.sum())
    return matrix


def noisy(pixels: Pixels, sigma: float, seed: int) -> Pixels:
    """Images uint8 [N, C, H, W] plus Gaussian noise of `sigma` levels, cut off at 0 and 255."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, 2**64 - 2], np.uint64)))
    noise = generator.normal(0.0, sigma, pixels.shape)
    return _pixels(pixels + noise)


def _pixels(values: NDArray[np.float64]) -> Pixels:
    found: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return found
