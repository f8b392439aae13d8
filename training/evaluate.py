"""Figures of a model on a split: ELBO, importance-weighted bound, KL of each group, active units.

The bottom-up network runs once per image; draws of the latents are then computed in chunks of
images x draws, of which only running sums are kept. Noise is made here, from a seed: draw k of
image i is the same whatever the batch and the chunk (`_Noise`), and the first K draws are the same
for every larger K.
"""

import functools
import math
import operator
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from model.contract import DensityModel, Features
from training.data import ImageData, drawn_pixels
from training.errors import EvaluationError
from training.report import Estimate, EvaluationReport

Array = NDArray[np.float64]

__all__ = ["ImageFigures", "evaluate_images", "evaluate_model"]

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5: a unit is active above it
NOISE_BLOCK = 16  # draws made at once: torch.randn fills in sixteens


@dataclass(frozen=True)
class ImageFigures:
    """What was found for each of N images, float64, in nats.

    `elbo`, `importance_weighted`, `log_px_z` [N]; `kl` [N, G]; `elbo_variance` and
    `importance_weighted_variance` [N], their Monte-Carlo variances, the latter by the delta method
    (both nan at K = 1); `effective_sample_size` [N] in 1..K. `posterior_mean_variance` [D]: the
    variance over the images of E_q[z], free of the Monte-Carlo variance of that mean (nan at
    K = 1), so that it may come out slightly negative for a latent that is switched off.
    """

    elbo: Array
    importance_weighted: Array
    log_px_z: Array
    kl: Array
    elbo_variance: Array
    importance_weighted_variance: Array
    effective_sample_size: Array
    posterior_mean_variance: Array


def evaluate_model(
    model: DensityModel,
    data: ImageData,
    *,
    importance_samples: int = 128,
    seed: int = 0,
    batch_size: int = 32,
    chunk: int = 16,
    progress: Progress | None = None,
) -> EvaluationReport:
    """The figures of `model` on `data`.

    A Bernoulli model sees the pixels drawn to 0 and 255 by `training.data.drawn_pixels(seed)`,
    another sees them as they are. `batch_size` images times `chunk` draws are computed at once, on
    the device where the model is; they change speed and memory, not the noise. Raises
    `EvaluationError` where an image's bound is not finite or the images do not fit the model.
    """
    start = time.monotonic()
    pixels = data.pixels
    if model.likelihood.kind == "bernoulli":
        pixels = drawn_pixels(pixels, seed)
    figures = evaluate_images(
        model,
        pixels,
        importance_samples=importance_samples,
        seed=seed,
        batch_size=batch_size,
        chunk=chunk,
        progress=progress,
    )
    return _report(model, data, figures, importance_samples, seed, time.monotonic() - start)


@torch.inference_mode()
def evaluate_images(
    model: DensityModel,
    pixels: NDArray[np.uint8],
    *,
    importance_samples: int,
    seed: int = 0,
    batch_size: int = 32,
    chunk: int = 16,
    progress: Progress | None = None,
) -> ImageFigures:
    """The figures of each image of `pixels` uint8 [N, C, H, W], as the likelihood reads them."""
    if min(importance_samples, batch_size, chunk) < 1:
        raise ValueError("importance_samples, batch_size and chunk are at least 1")
    shape = tuple(model.config.image_shape)
    if len(pixels) == 0 or pixels.shape[1:] != shape:
        raise EvaluationError(f"The model is for images {shape}; there are {pixels.shape}.")
    device = next(model.parameters()).device
    folded = model.fold().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = progress.add_task("evaluating", total=len(pixels)) if progress is not None else None
    sums = []
    for first in range(0, len(pixels), batch_size):
        batch = torch.from_numpy(pixels[first : first + batch_size]).to(device)
        noise = _Noise(seed, range(first, first + len(batch)), model.layout.dim)
        sums.append(_sum_draws(folded, batch, noise, importance_samples, chunk))
        if progress is not None and task is not None:
            progress.advance(task, len(batch))
    return _figures(sums, importance_samples)


class _Noise:
    """Standard normal noise for some images: draw k of image i is a function of (seed, i, k).

    Each image has a generator of its own, read in blocks of `NOISE_BLOCK` draws. On the CPU
    whatever the device, so that every device gets the same.
    """

    def __init__(self, seed: int, images: range, dim: int) -> None:
        states = (np.random.SeedSequence((seed, i)).generate_state(1)[0] for i in images)
        self._generators = [torch.Generator().manual_seed(int(state)) for state in states]
        self._dim = dim

    def chunks(self, draws: int, chunk: int) -> Iterator[Tensor]:
        """Noise [k, N, D] of the first `draws` draws, k about `chunk` at a time."""
        blocks = max(1, chunk // NOISE_BLOCK)
        for first in range(0, draws, blocks * NOISE_BLOCK):
            wanted = min(draws - first, blocks * NOISE_BLOCK)
            made = [self._block() for _ in range(math.ceil(wanted / NOISE_BLOCK))]
            yield from torch.split(torch.cat(made)[:wanted], chunk)

    def _block(self) -> Tensor:
        shape = (NOISE_BLOCK, self._dim)
        images = [torch.randn(shape, generator=generator) for generator in self._generators]
        return torch.stack(images, dim=1)  # [16, N, D]


@dataclass
class _Sums:
    """Running sums over the draws for N images, float64 on the CPU; `log_w` are logarithms."""

    log_w: Tensor  # [N] log sum_k w_k
    log_w2: Tensor  # [N] log sum_k w_k^2
    elbo: Tensor  # [N]
    elbo2: Tensor  # [N]
    log_px_z: Tensor  # [N]
    kl: Tensor  # [N, G]
    z: Tensor  # [N, D]
    z2: Tensor  # [N, D]

    @classmethod
    def of(cls, log_px_z: Tensor, kl: Tensor, z: Tensor, group_kl: Tensor) -> Self:
        """The sums of one chunk: log_px_z [k, N], kl [k, N, F], z [k, N, D]."""
        log_px_z, kl, z = log_px_z.double(), kl.double(), z.double()
        log_w = log_px_z - kl.sum(dim=2)
        return cls(
            log_w.logsumexp(dim=0),
            (2 * log_w).logsumexp(dim=0),
            log_w.sum(dim=0),
            log_w.square().sum(dim=0),
            log_px_z.sum(dim=0),
            group_kl.double().sum(dim=0),
            z.sum(dim=0),
            z.square().sum(dim=0),
        )

    def __add__(self, other: Self) -> Self:
        """The sums over both sets of draws."""
        theirs = vars(other)
        logarithms = {"log_w", "log_w2"}
        return type(self)(
            **{
                name: (torch.logaddexp if name in logarithms else torch.add)(mine, theirs[name])
                for name, mine in vars(self).items()
            }
        )


def _sum_draws(model: DensityModel, pixels: Tensor, noise: _Noise, draws: int, chunk: int) -> _Sums:
    x = model.likelihood.from_pixels(pixels)
    features = model.bottom_up(x)
    chunks = (_sum_chunk(model, x, features, eps) for eps in noise.chunks(draws, chunk))
    return functools.reduce(operator.add, chunks)


def _sum_chunk(model: DensityModel, x: Tensor, features: Features, eps: Tensor) -> _Sums:
    k, n, _ = eps.shape
    rows = tuple(_repeat(feature, k) for feature in features)  # [k N, ...]
    inference = model.infer(rows, eps.flatten(0, 1).to(x.device))
    log_px_z = model.likelihood.log_prob(inference.params, _repeat(x, k))
    parts = (log_px_z, inference.kl, inference.z, model.group_kl(inference.kl))
    return _Sums.of(*(part.cpu().reshape(k, n, *part.shape[1:]) for part in parts))


def _repeat(t: Tensor, k: int) -> Tensor:
    """[N, ...] -> [k N, ...], all images k times over."""
    return t.expand(k, *t.shape).flatten(0, 1)


def _figures(sums: list[_Sums], draws: int) -> ImageFigures:
    def together(name: str) -> Array:
        return np.concatenate([getattr(part, name).numpy() for part in sums])

    log_w, log_w2 = together("log_w"), together("log_w2")
    elbo = together("elbo") / draws
    posterior_mean = together("z") / draws
    within = together("z2") / draws - np.square(posterior_mean)  # [N, D], times (K-1)/K
    with np.errstate(divide="ignore", invalid="ignore"):
        shares2 = np.exp(log_w2 - 2 * log_w)  # [N] sum_k w_k^2 / (sum_k w_k)^2, in 1/K .. 1
        return ImageFigures(
            elbo=elbo,
            importance_weighted=log_w - math.log(draws),
            log_px_z=together("log_px_z") / draws,
            kl=together("kl") / draws,
            elbo_variance=(together("elbo2") / draws - np.square(elbo)) / np.float64(draws - 1),
            importance_weighted_variance=(draws * shares2 - 1) / np.float64(draws - 1),
            effective_sample_size=1 / shares2,
            posterior_mean_variance=posterior_mean.var(axis=0)
            - (within / np.float64(draws - 1)).mean(axis=0),
        )


def _report(
    model: DensityModel,
    data: ImageData,
    figures: ImageFigures,
    draws: int,
    seed: int,
    seconds: float,
) -> EvaluationReport:
    bad = np.flatnonzero(~np.isfinite(figures.importance_weighted))
    if len(bad):
        raise EvaluationError(
            f"The bound of {len(bad)} of {len(data)} images is not finite (the first is image "
            f"{bad[0]}): the model's weights or its precision are at fault."
        )
    latents = {group.name: group.size for group in model.layout.groups}
    return EvaluationReport(
        dataset=data.name,
        split=data.split,
        images=len(data),
        importance_samples=draws,
        seed=seed,
        likelihood=model.likelihood.kind,
        dims=model.dims,
        elbo=_estimate(figures.elbo, figures.elbo_variance, model.dims),
        importance_weighted=_estimate(
            figures.importance_weighted, figures.importance_weighted_variance, model.dims
        ),
        log_px_z_nats=float(figures.log_px_z.mean()),
        kl_nats=dict(zip(model.kl_groups, figures.kl.mean(axis=0).tolist(), strict=True)),
        active_units=_active_units(figures.posterior_mean_variance, latents) if draws > 1 else None,
        latents=latents,
        effective_sample_size=float(figures.effective_sample_size.mean()),
        seconds=seconds,
    )


def _estimate(values: Array, variances: Array, dims: int) -> Estimate:
    """The mean over images; the draws of different images are independent."""
    n = len(values)
    draws_error = math.sqrt(variances.mean() / n) if np.isfinite(variances).all() else None
    mean = float(values.mean())
    return Estimate(
        value_nats=mean,
        standard_error_nats=float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
        monte_carlo_error_nats=draws_error,
        bits_per_dim=-mean / (dims * math.log(2)),
    )


def _active_units(variance: Array, latents: dict[str, int]) -> dict[str, int]:
    ends = np.cumsum(list(latents.values()))[:-1]
    parts = np.split(variance > ACTIVE_VARIANCE, ends)
    return {name: int(part.sum()) for name, part in zip(latents, parts, strict=True)}
