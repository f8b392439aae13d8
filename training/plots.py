"""Pictures: the common style of what matplotlib draws, and sheets of small images.

A sheet is uint8 [H, W, C], as `SummaryWriter.add_image(tag, sheet, step, dataformats="HWC")` takes
it: images in rows, for the eye, for TensorBoard and for the model card.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model.contract import DensityModel
from service.codecs.png import SHEET_GREY, contact_sheet, encode_png
from training.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "INK",
    "PALETTE",
    "mean_pixels",
    "pair_sheet",
    "png_bytes",
    "reconstruction_sheet",
    "rendered",
    "sample_sheet",
    "save_sheet",
]

Pixels = NDArray[np.uint8]

# Okabe & Ito's palette: told apart by colour-blind readers too.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
INK = "#222222"
DPI = 150
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#eeeeee",
    "axes.titlesize": 10,
}


def rendered(draw: Callable[[], Figure]) -> bytes:
    """What `draw` draws, in the pictures' common style, as PNG."""
    import matplotlib as mpl  # takes long to import, and sheets do without

    drawn = io.BytesIO()
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        draw().savefig(drawn, format="png", dpi=DPI)
    # A palette of 256 colours is all that these pictures need, and a third of the size. What is
    # written anew carries no date and no program's version: the same document, the same bytes.
    image = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    written = io.BytesIO()
    image.save(written, format="png", optimize=True)
    return written.getvalue()


def mean_pixels(mean: torch.Tensor) -> Pixels:
    """A likelihood's mean in [0, 1] as the nearest of 256 levels, uint8 of the same shape."""
    return (mean.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


@torch.inference_mode()
def sample_sheet(model: DensityModel, *, count: int = 64, seed: int = 0, scale: int = 1) -> Pixels:
    """Means of `count` draws from the model; the same `seed` shows the same latents every time."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(count, model.layout.dim, generator=generator).to(device)
    scales = torch.ones(count, len(model.layout.groups), device=device)
    mean = model.likelihood.mean(model.generate(eps, scales))
    return _sheet(mean_pixels(mean), None, scale)


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
    empty = np.full_like(above[:1], SHEET_GREY)  # the last row of each kind may be short

    def row(images: Pixels, start: int) -> Pixels:
        part = images[start : start + columns]
        return np.concatenate([part, empty.repeat(columns - len(part), axis=0)])

    rows = [row(images, start) for start in starts for images in (above, below)]
    return _sheet(np.concatenate(rows), columns, scale)


def _sheet(images: Pixels, columns: int | None, scale: int) -> Pixels:
    """Images [N, C, H, W] in rows of `columns`; each pixel is a square of `scale` by `scale`."""
    magnified = images.repeat(scale, axis=2).repeat(scale, axis=3)
    return contact_sheet(magnified, columns=columns).transpose(1, 2, 0)


def png_bytes(sheet: Pixels) -> bytes:
    """The sheet as a PNG file: grey for one channel, RGB for three."""
    return encode_png(sheet.transpose(2, 0, 1), level=9)


def save_sheet(path: Path, sheet: Pixels) -> None:
    """Write the sheet as a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, png_bytes(sheet))
