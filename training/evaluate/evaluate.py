"""Figures on a split: ELBO, importance-weighted bound, KL of each group, active units.

What depends on an image alone is computed once per image; draws of the latents are then scored in
chunks of images x draws that fit a stated memory, of which only running sums are kept. Noise is
made here, from a seed: draw k of image i is the same whatever the batch and the chunk
(see `draws`), and the first K draws are the same for every larger K.
"""

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from model.contract import DensityModel
from service.engine.hardware import available_cores
from training.data import ImageData, drawn_pixels
from training.errors import EvaluationError
from training.evaluate.draws import NOISE_BLOCK, Sums, latent_moments, nested_sums
from training.evaluate.report import Estimate, EvaluationReport
from training.evaluate.scorers import Facts, ModelScorer, Scorer

Array = NDArray[np.float64]

__all__ = [
    "ImageFigures",
    "active_units",
    "check_finite",
    "check_images",
    "evaluate_images",
    "evaluate_model",
    "image_figures",
    "mean_figures",
    "mean_variance",
    "monte_carlo_error",
    "pieces",
]

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5: a unit is active above it
MEMORY_GIB = 2.0
LIBRARY_BYTES = 2**25  # that torch's kernels take for themselves
MOMENTS = ("mean", "mean2", "noise")  # of a latent, see `draws.latent_moments`


@dataclass(frozen=True)
class ImageFigures:
    """What was found for each of N images, float64, in nats.

    `elbo`, `importance_weighted`, `log_px_z` [N]; `kl` [N, G]; `elbo_variance` and
    `importance_weighted_variance` [N], their Monte-Carlo variances, the latter by the delta method
    (both nan at K = 1); `effective_sample_size` [N] in 1..K. `posterior_mean_variance` [D]: see
    `mean_variance`; None at K = 1, and where the latents are not to be seen.
    """

    elbo: Array
    importance_weighted: Array
    log_px_z: Array
    kl: Array
    elbo_variance: Array
    importance_weighted_variance: Array
    effective_sample_size: Array
    posterior_mean_variance: Array | None = None


def evaluate_model(
    model: DensityModel | Scorer,
    data: ImageData,
    *,
    importance_samples: int = 128,
    seed: int = 0,
    **options: Any,
) -> EvaluationReport:
    """The figures of a model, or of a bundle's scorer, on `data`; `options` of `evaluate_images`.

    A binary model sees the pixels drawn to 0 and 255 by `training.data.drawn_pixels(seed)`,
    another sees them as they are. Raises `EvaluationError` where an image's bound is not finite or
    the images do not fit the model.
    """
    start = time.monotonic()
    scorer = ModelScorer(model) if isinstance(model, DensityModel) else model
    pixels = drawn_pixels(data.pixels, seed) if scorer.facts.binary else data.pixels
    figures = evaluate_images(
        scorer, pixels, importance_samples=importance_samples, seed=seed, **options
    )
    check_finite(figures.importance_weighted)
    facts, variance = scorer.facts, figures.posterior_mean_variance
    return EvaluationReport(
        dataset=data.name,
        split=data.split,
        images=len(data),
        importance_samples=importance_samples,
        seed=seed,
        likelihood=facts.likelihood,
        dims=facts.dims,
        elbo=_estimate(figures.elbo, figures.elbo_variance, facts.dims),
        importance_weighted=_estimate(
            figures.importance_weighted, figures.importance_weighted_variance, facts.dims
        ),
        log_px_z_nats=float(figures.log_px_z.mean()),
        kl_nats=dict(zip(facts.kl_groups, figures.kl.mean(axis=0).tolist(), strict=True)),
        active_units=None if variance is None else active_units(variance, facts.latents),
        latents=facts.latents,
        effective_sample_size=float(figures.effective_sample_size.mean()),
        seconds=time.monotonic() - start,
        backend=facts.backend,
    )


@torch.inference_mode()
def evaluate_images(
    model: DensityModel | Scorer,
    pixels: NDArray[np.uint8],
    *,
    importance_samples: int,
    seed: int = 0,
    memory_gib: float = MEMORY_GIB,
    progress: Progress | None = None,
) -> ImageFigures:
    """The figures of each image of `pixels` uint8 [N, C, H, W], for a binary model 0 and 255.

    As many images and draws are computed at once as `memory_gib` holds (`pieces`), on the device
    where the model is: that changes the speed, not the noise.
    """
    if importance_samples < 1 or not memory_gib > 0:
        raise ValueError("importance_samples is at least 1, memory_gib is positive")
    scorer = ModelScorer(model) if isinstance(model, DensityModel) else model
    facts = scorer.facts
    check_images(facts, pixels)
    batch_size, chunk = pieces(facts, importance_samples, memory_gib)
    progress = progress or Progress(disable=True)
    task = progress.add_task("evaluating", total=len(pixels))
    kept, moments = [], []
    # torch draws one generator's numbers with one thread.
    with ThreadPoolExecutor(available_cores()) as threads:
        for first in range(0, len(pixels), batch_size):
            batch = pixels[first : first + batch_size]
            sums = nested_sums(
                scorer,
                batch,
                ks=[importance_samples],
                seed=seed,
                start=first,
                chunk=chunk,
                threads=threads,
            )[importance_samples]
            moments.append(latent_moments(sums, importance_samples))
            kept.append(
                replace(sums, z=torch.empty(0), z2=torch.empty(0))
            )  # large, and needed no more
            progress.advance(task, len(batch))
    figures = image_figures(kept, importance_samples)
    if importance_samples == 1 or not moments[0]:
        return figures
    summed = {n: np.sum([part[n].numpy() for part in moments], axis=0) for n in moments[0]}
    return replace(figures, posterior_mean_variance=mean_variance(summed))


def check_images(facts: Facts, pixels: NDArray[np.uint8]) -> None:
    """Raise `EvaluationError` where there is none, or they are not what the model is for."""
    if len(pixels) == 0 or pixels.shape[1:] != tuple(facts.image_shape):
        raise EvaluationError(
            f"The model is for images {tuple(facts.image_shape)}; there are {pixels.shape}."
        )


def check_finite(bounds: Array) -> None:
    """Raise `EvaluationError` where an image's bound is not finite."""
    bad = np.flatnonzero(~np.isfinite(bounds))
    if len(bad):
        raise EvaluationError(
            f"The bound of {len(bad)} of {len(bounds)} images is not finite (the first is image "
            f"{bad[0]}): the model's weights or its precision are at fault."
        )


def pieces(facts: Facts, draws: int, memory_gib: float) -> tuple[int, int]:
    """How many images, and how many draws of each, are scored at once in so much memory.

    At least one draw of one image, whatever that takes; the estimate is from above.
    """
    memory = memory_gib * 2**30
    memory -= min(LIBRARY_BYTES, memory / 4)
    image = facts.image_bytes + 2 * NOISE_BLOCK * 4 * facts.dim  # noise comes in blocks, twice
    chunk = max(1, min(NOISE_BLOCK, draws, int((memory - image) // facts.row_bytes)))
    images = int(memory // (image + chunk * facts.row_bytes))
    return max(1, min(images, facts.rows // chunk)), chunk


def image_figures(sums: Sequence[Sums], draws: int) -> ImageFigures:
    """What sums over so many draws say of each image, in the order of the parts."""

    def together(name: str) -> Array:
        return np.concatenate([getattr(part, name).numpy() for part in sums])

    log_w, log_w2 = together("log_w"), together("log_w2")
    elbo = together("elbo") / draws
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
        )


def mean_variance(moments: Mapping[str, Array]) -> Array:
    """The variance [D] over the images of E_q[z], from sums of `latent_moments`.

    Without its Monte-Carlo part, so that it may come out slightly negative for a latent that is
    switched off.
    """
    mean, mean2, noise = ((moments[name] / moments["images"])[0] for name in MOMENTS)
    found: Array = mean2 - np.square(mean) - noise
    return found


def _estimate(values: Array, variances: Array, dims: int) -> Estimate:
    return Estimate(
        **mean_figures(values),
        monte_carlo_error_nats=monte_carlo_error(variances),
        bits_per_dim=-float(values.mean()) / (dims * math.log(2)),
    )


def mean_figures(values: Array) -> dict[str, Any]:
    """A mean over images in nats, and its standard error; None of a single image."""
    n = len(values)
    error = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return {"value_nats": float(values.mean()), "standard_error_nats": error}


def monte_carlo_error(variances: Array) -> float | None:
    """Of a mean over images, whose draws are independent; None where one draw cannot tell."""
    finite = np.isfinite(variances).all()
    return math.sqrt(variances.mean() / len(variances)) if finite else None


def active_units(variance: Array, latents: Mapping[str, int]) -> dict[str, int]:
    """How many latents of each group have a posterior mean that varies over the images."""
    ends = np.cumsum(list(latents.values()))[:-1]
    parts = np.split(variance > ACTIVE_VARIANCE, ends)
    return {name: int(part.sum()) for name, part in zip(latents, parts, strict=True)}
