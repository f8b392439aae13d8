"""What a model is shown at a step: which images, mirrored or not, binarised anew, and the noise.

Every number is a function of (seed, step) and of a row's place in the step's whole batch, never of
how many processes or micro-batches the batch is divided into: every process draws the numbers of
the whole batch, and takes those of its own rows.
"""

import torch
from torch import Tensor
from torch.nn import functional

from model.config import BINARY_LIKELIHOODS
from model.contract import DensityModel
from model.densities import binarised
from training.data import epoch_order

__all__ = [
    "STREAM_INIT",
    "STREAM_PRIOR",
    "STREAM_TRAIN",
    "STREAM_VALIDATION",
    "Batches",
    "noise",
    "presented",
    "step_generator",
]

# Generators are seeded per step; the stream keeps training, initialisation and so on apart.
STREAM_TRAIN, STREAM_INIT, STREAM_VALIDATION, STREAM_PRIOR = 0, 1, 2, 3

# The most that a distorted image is turned (radians), stretched either way, and slanted.
DISTORTIONS = (0.15, 0.08, 0.08, 0.12)
# Interpolated strokes have more grey, and a binary model would learn edges that are uncertain:
# with this contrast MNIST's digits keep their mean entropy of a draw.
BINARY_CONTRAST = 1.15


def step_generator(device: torch.device, seed: int, stream: int, step: int) -> torch.Generator:
    """A generator for one step's noise, determined by its arguments (splitmix64's mixing)."""
    x = (seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03 + step + 1) & (2**64 - 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ (x >> shift)) * factor) & (2**64 - 1)
    generator = torch.Generator(device)
    generator.manual_seed((x ^ (x >> 31)) & (2**63 - 1))
    return generator


class Batches:
    """Which of `pixels` uint8 `[N, C, H, W]` each step is shown: a function of (seed, step).

    Every epoch has an order of its own, and leaves out what fills no whole batch.
    """

    def __init__(self, pixels: Tensor, size: int, seed: int) -> None:
        self.pixels, self.size, self.seed = pixels, size, seed
        self.steps_per_epoch = max(1, len(pixels) // size)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> Tensor:
        """The pixels of a step's whole batch, `[size, C, H, W]`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.order(epoch)
        start = place * self.size
        return self.pixels[self._order[start : start + self.size]]

    def order(self, epoch: int) -> Tensor:
        """The order of all images in an epoch, `[N]`."""
        order = epoch_order(len(self.pixels), self.seed, epoch)
        return torch.from_numpy(order).to(self.pixels.device)


def presented(
    model: DensityModel,
    pixels: Tensor,
    generator: torch.Generator,
    *,
    flips: bool = False,
    distorted: float = 0.0,
) -> Tensor:
    """One presentation of uint8 pixels `[B, C, H, W]`, in the likelihood's units.

    With `flips` each image is mirrored with probability 1/2, and with probability `distorted`
    turned, stretched and slanted. For a binary model each pixel is drawn anew (`binarised`).
    """
    binary = model.likelihood.kind in BINARY_LIKELIHOODS
    if distorted:
        contrast = BINARY_CONTRAST if binary else 1.0
        pixels = _distorted(pixels, distorted, contrast, generator)
    if flips:
        mirrored = torch.rand(len(pixels), generator=generator, device=pixels.device) < 0.5
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
    if not binary:
        return model.likelihood.from_pixels(pixels)
    u = torch.rand(pixels.shape, generator=generator, device=pixels.device)
    return binarised(pixels, u)


def _distorted(pixels: Tensor, share: float, contrast: float, generator: torch.Generator) -> Tensor:
    """`pixels` with a share of them mapped about their middles: whole images, of every colour."""
    count, channels, height, width = pixels.shape
    u = torch.rand((count, 5), generator=generator, device=pixels.device)
    chosen = (u[:, 0] < share)[:, None, None, None]
    turn, wide, high, slant = ((2 * u[:, 1:] - 1) * u.new_tensor(DISTORTIONS)).unbind(1)
    cos, sin = turn.cos(), turn.sin()
    rows = [(1 + wide) * cos, slant - sin * height / width, sin * width / height, (1 + high) * cos]
    maps = torch.zeros(count, 2, 3, device=pixels.device)
    maps[:, :, :2] = torch.stack(rows, dim=1).view(count, 2, 2)
    grid = functional.affine_grid(maps, [count, channels, height, width], align_corners=False)
    # Cubic, since a linear one would blur the strokes, and teach the model that strokes are so.
    found = functional.grid_sample(
        pixels.float(), grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    found = (found - 127.5) * contrast + 127.5
    return torch.where(chosen, found.round().clamp(0, 255).to(torch.uint8), pixels)


def noise(model: DensityModel, count: int, generator: torch.Generator) -> Tensor:
    """Standard normal noise `[count, D]` for the latents of so many images."""
    shape = (count, model.layout.dim)
    return torch.randn(shape, generator=generator, device=generator.device)
