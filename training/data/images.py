"""Images of one split in memory, and their pixels drawn to black and white."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

FOLDER_NAME = "a folder of images"

__all__ = ["FOLDER_NAME", "ImageData", "drawn_pixels", "identity"]


@dataclass(frozen=True)
class ImageData:
    """One split of a data set: pixels uint8 [N, C, H, W] in 0..255; `name` is for people.

    `fitted`: whether any was of another size or colour; `joined`: how many of them, the last, are
    the validation split's.
    """

    pixels: NDArray[np.uint8]
    name: str
    split: str
    fitted: bool = False
    joined: int = 0

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4:
            raise DataError(
                f"Images are uint8 [N, C, H, W], not {self.pixels.dtype} {self.pixels.shape}."
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def first(self, count: int | None) -> "ImageData":
        """The first `count` images (all of them where it is None), for quick looks."""
        return self if count is None else replace(self, pixels=self.pixels[:count])


def identity(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """What tells these images from others."""
    return {"count": len(pixels), "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}


def drawn_pixels(pixels: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Images uint8 [N, C, H, W] binarised once and for all, as 0 and 255.

    This is the protocol by which binarised likelihoods are compared: one Bernoulli draw of each
    pixel, white where u < its level / 255, fixed by `seed`. The uniforms are the upper 24 bits of
    `Philox4x64(key=(seed, 2^64 - 1))`, pixel after pixel, so the first images of a set are drawn
    alike whatever follows them.
    """
    generator = np.random.Philox(key=np.array([seed, 2**64 - 1], np.uint64))
    drawn = np.empty_like(pixels)
    for row, image in enumerate(pixels):  # one image at a time: raw output is eight bytes a pixel
        bits = generator.random_raw(image.size).reshape(image.shape) >> np.uint64(40)
        u = bits.astype(np.float32) * np.float32(2**-24)
        drawn[row] = (u < image.astype(np.float32) / np.float32(255)).astype(np.uint8) * 255
    return drawn
