"""Anomaly maps as pictures: deviations over the images, on one scale for all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.codecs.png import contact_sheet

__all__ = ["FULL", "coloured", "overlay"]

F32 = NDArray[np.float32]
Pixels = NDArray[np.uint8]

FULL = 8.0  # deviations at which a colour covers the picture
LEAST = 112  # pixels: smaller pictures are enlarged, by whole factors
BRIGHTER, DARKER = np.array([230, 50, 30]), np.array([30, 110, 240])  # than expected
BAR, LABELS, GAP = 12, 22, 6  # widths in pixels
WHITE = 255


def overlay(images: Pixels, maps: F32) -> Pixels:
    """`images` uint8 [n, C, H, W] in grey under their `maps` [n, H, W], uint8 [3, H', W'].

    Red is brighter than expected, blue darker; the colour covers a pixel from `FULL` deviations up,
    whatever the other images are. The bar at the right says which colour is how many.
    """
    factor = max(1, LEAST // max(images.shape[2:]))
    grey = images.mean(axis=1, dtype=np.float32)
    small = coloured(grey, maps)
    n, channels, height, width = small.shape
    cells = np.empty((n, channels, height, factor, width, factor), np.uint8)
    cells[:] = small[:, :, :, None, :, None]  # `repeat` would hold the interpreter
    sheet = contact_sheet(cells.reshape(n, channels, height * factor, width * factor))
    return np.concatenate([sheet, _bar(sheet.shape[1])], axis=2)


def coloured(grey: F32, maps: F32) -> Pixels:
    """Each grey image under the colours of its map, uint8 [n, 3, H, W]."""
    share = np.clip(np.nan_to_num(np.abs(maps), nan=FULL) / FULL, 0.0, 1.0)[:, None]
    colour = np.where(maps[:, None] > 0, BRIGHTER[:, None, None], DARKER[:, None, None])
    mixed = (1.0 - share) * grey[:, None] + share * colour
    return np.rint(mixed).astype(np.uint8)


def _bar(height: int) -> Pixels:
    """The scale from `FULL` at the top to its negative, with labels."""
    from PIL import Image, ImageDraw  # here alone: whoever asks for numbers needs no pictures

    bar = np.full((3, height, BAR + LABELS + 2 * GAP), WHITE, np.uint8)
    levels = np.linspace(FULL, -FULL, height, dtype=np.float32)[None, :, None]
    bar[:, :, GAP : GAP + BAR] = coloured(np.full((1, height, BAR), 128, np.float32), levels)[0]
    picture = Image.fromarray(np.ascontiguousarray(bar.transpose(1, 2, 0)))
    draw = ImageDraw.Draw(picture)
    for share, label in ((0.0, f"+{FULL:g}"), (0.5, "0"), (1.0, f"-{FULL:g}")):
        top = min(max(share * height - 5, 0), height - 11)
        draw.text((2 * GAP + BAR, top), label, fill=(0, 0, 0))
    return np.asarray(picture).transpose(2, 0, 1)
