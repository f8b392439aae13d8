"""What a pass at eps = 0 says of images: statistics by name, and where they are unlike.

log_px_z          log p(x|z) in nats
kl/GROUP          log q(z|x) - log p(z) of a latent group, in nats
prior_eps/GROUP   sum over the group of prior_eps^2: how far out in the prior z lies
z/GROUP           sum over the group of z^2
residual/top      mean of (x - m)^2 over subpixels, x in [0, 1] and m the mean image given the top
                  group, all lower ones at their prior's mean (of a ladder alone)
residual/all      the same, given all groups
level, contrast   mean and standard deviation of x
variation         mean of |x - neighbour|, to the right and below
sharpness         the same of second differences, |x - 2 neighbour + the next|, over `variation`
                  (both with 1/2550 added: 1 where nothing changes); less of blur, more of noise

The map `residual` is x less the mean of both images m, over the colours: given all groups, what
the latents cannot say; given the top one, what they say for this image alone.
"""

import torch
from torch import Tensor
from torch.nn import functional

from model.contract import DensityModel, Inference
from training.export.passes.widths import VECTOR

__all__ = ["evidence", "statistic_names"]

TINY = 0.1 / 255  # of a level of grey


def statistic_names(model: DensityModel) -> tuple[str, ...]:
    """The columns of `evidence`'s statistics."""
    groups = model.layout.names
    kinds = [f"{kind}/{name}" for kind in ("kl", "prior_eps", "z") for name in groups]
    residuals = ["residual/top", "residual/all"] if len(groups) > 1 else ["residual/all"]
    return ("log_px_z", *kinds, *residuals, "level", "contrast", "variation", "sharpness")


def evidence(
    model: DensityModel, found: Inference, log_px_z: Tensor, shown: Tensor
) -> tuple[Tensor, Tensor]:
    """Give `residual [B, H, W]` and `statistics [B, S]` of what was `found` at eps = 0, with
    `log_px_z [B]` at its latents, of images that are `shown [B, C, H, W]` in [0, 1]."""
    likelihood, sizes = model.likelihood, [group.size for group in model.layout.groups]
    means = [likelihood.mean(found.params)]
    if len(sizes) > 1:
        top = found.prior_eps[:, : sizes[0]]
        rest = torch.zeros_like(found.prior_eps[:, sizes[0] :])
        warm = torch.ones_like(found.prior_eps[:, : len(sizes)])
        means.insert(0, likelihood.mean(model.generate(torch.cat([top, rest], dim=1), warm)))
    residuals = [shown - mean for mean in means]
    columns = [
        log_px_z[:, None],
        model.group_kl(found.kl),
        _squares(found.prior_eps, sizes),
        _squares(found.z, sizes),
        *(_mean(residual.square()) for residual in residuals),
        *_pixels(shown),
    ]
    maps = [residual[:, channel] for residual in residuals for channel in range(shown.shape[1])]
    return sum(maps[1:], maps[0]) / len(maps), torch.cat(columns, dim=1)


def _squares(latents: Tensor, sizes: list[int]) -> Tensor:
    """Sums of squares by group, `[B, G]`."""
    parts = torch.split(latents.square(), sizes, dim=1)
    return torch.cat([part.sum(dim=1, keepdim=True) for part in parts], dim=1)


def _mean(maps: Tensor) -> Tensor:
    """Over all subpixels, `[B, 1]`."""
    flat = maps.flatten(1)
    return flat.sum(dim=1, keepdim=True) / flat.shape[1]


def _pixels(shown: Tensor) -> list[Tensor]:
    """Functions and sums that a processor may round by an element's place stand on rows of whole
    vectors (see `passes.widths`): a bundle would else pad every batch of every operation."""
    level = _mean(shown)
    variance = (_mean(shown.square()) - level * level).clamp_min(0)
    contrast = torch.cat([variance] * VECTOR, dim=1).sqrt()[:, :1]
    variation, bend = (_change(shown, -1, n) + _change(shown, -2, n) for n in (1, 2))
    return [level, contrast, variation, (bend + TINY) / (variation + TINY)]


def _change(shown: Tensor, axis: int, order: int) -> Tensor:
    """Mean size of the `order`-th differences along `axis`, `[B, 1]`; 0 of too few pixels."""
    size, found = shown.shape[axis], shown
    if size <= order:
        return torch.zeros_like(_mean(shown))
    for left in range(size - 1, size - 1 - order, -1):
        found = found.narrow(axis, 1, left) - found.narrow(axis, 0, left)
    padding = (0, order) if axis == -1 else (0, 0, 0, order)
    return _mean(functional.pad(found.abs(), padding)) * (size / (size - order))
