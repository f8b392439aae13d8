"""Contact sheets: many small images in one, for the eye, for TensorBoard and for the model card.

A sheet is uint8 [H', W', C], as `SummaryWriter.add_image(tag, sheet, step, dataformats="HWC")`
takes it.
"""

import io
import math
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model.contract import DensityModel

__all__ = [
    "contact_sheet",
    "mean_pixels",
    "pair_sheet",
    "png_bytes",
    "reconstruction_sheet",
    "sample_sheet",
    "save_sheet",
]

Pixels = NDArray[np.uint8]

BORDER = 2  # pixels between images, after magnification
BACKGROUND = 64  # a dark grey, so that black and white images both have an edge


def contact_sheet(images: Pixels, *, columns: int | None = None, scale: int = 1) -> Pixels:
    """Lay images uint8 [N, C, H, W] out in rows of `columns` (as square as can be where None).

    Each pixel becomes a square of `scale` by `scale`. Returns uint8 [H', W', C].
    """
    count, channels, height, width = images.shape
    if count == 0:
        raise ValueError("A sheet of no images has no size.")
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    step_y, step_x = height * scale + BORDER, width * scale + BORDER
    shape = (rows * step_y + BORDER, columns * step_x + BORDER, channels)
    sheet = np.full(shape, BACKGROUND, np.uint8)
    magnified = images.repeat(scale, axis=2).repeat(scale, axis=3).transpose(0, 2, 3, 1)
    for index, image in enumerate(magnified):
        y = BORDER + index // columns * step_y
        x = BORDER + index % columns * step_x
        sheet[y : y + height * scale, x : x + width * scale] = image
    return sheet


def mean_pixels(mean: torch.Tensor) -> Pixels:
    """A likelihood's mean in [0, 1] as the nearest of 256 levels, uint8 of the same shape."""
    return (mean.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


@torch.inference_mode()
def sample_sheet(
    model: DensityModel,
    *,
    count: int = 64,
    seed: int = 0,
    temperature: float = 1.0,
    columns: int | None = None,
    scale: int = 1,
) -> Pixels:
    """Means of `count` draws from the model; the same `seed` shows the same latents every time."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(count, model.layout.dim, generator=generator).to(device)
    scales = torch.full((count, len(model.layout.groups)), temperature, device=device)
    mean = model.likelihood.mean(model.generate(eps, scales))
    return contact_sheet(mean_pixels(mean), columns=columns, scale=scale)


@torch.inference_mode()
def reconstruction_sheet(
    model: DensityModel, pixels: Pixels, *, columns: int | None = None, scale: int = 1
) -> Pixels:
    """Rows of originals, each row above the row of their reconstructions at eps = 0.

    `pixels` uint8 [N, C, H, W]; the originals are shown as they are, the model sees what its
    likelihood makes of them.
    """
    device = next(model.parameters()).device
    x = model.likelihood.from_pixels(torch.from_numpy(pixels).to(device))
    eps = torch.zeros(len(pixels), model.layout.dim, device=device)
    mean = model.likelihood.mean(model.infer(model.bottom_up(x), eps).params)
    return pair_sheet(pixels, mean_pixels(mean), columns=columns, scale=scale)


def pair_sheet(
    above: Pixels, below: Pixels, *, columns: int | None = None, scale: int = 1
) -> Pixels:
    """Rows of `above` alternating with the rows of `below`, both uint8 [N, C, H, W]."""
    columns = min(columns or math.ceil(math.sqrt(2 * len(above))), len(above))
    starts = range(0, len(above), columns)
    empty = np.full_like(above[:1], BACKGROUND)  # the last row of each kind may be short

    def row(images: Pixels, start: int) -> Pixels:
        part = images[start : start + columns]
        return np.concatenate([part, empty.repeat(columns - len(part), axis=0)])

    rows = [row(images, start) for start in starts for images in (above, below)]
    return contact_sheet(np.concatenate(rows), columns=columns, scale=scale)


def png_bytes(sheet: Pixels) -> bytes:
    """The sheet as a PNG file: grey for one channel, RGB for three."""
    image = Image.fromarray(sheet[:, :, 0] if sheet.shape[2] == 1 else sheet)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_sheet(path: Path, sheet: Pixels) -> None:
    """Write the sheet as a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(png_bytes(sheet))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
