"""The bound on log p(x) at several K, as it tightens, and what each latent is used for.

One pass over the largest K's draws gives every smaller K from its first draws. A Bernoulli model
sees each test image drawn once to 0 and 255 (`data.drawn_pixels`), the same for all K.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from model.config import require
from model.conv_vae import ConvVae
from service.engine.hardware import available_cores
from training.data import ImageData, Split, drawn_pixels
from training.evaluate.draws import Sums, latent_moments, nested_sums
from training.evaluate.evaluate import (
    MEMORY_GIB,
    active_units,
    check_finite,
    check_images,
    image_figures,
    mean_figures,
    mean_variance,
    monte_carlo_error,
    pieces,
)
from training.evaluate.report import pixels_protocol
from training.evaluate.resume import Partial, digest
from training.evaluate.scorers import Facts, ModelScorer, Scorer
from training.evaluate.subject import Subject

__all__ = ["BoundPlan", "measure_bound"]

Array = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]

PART_ROWS = 6_000  # draws after which results are kept: seconds or so ...
LARGE_LATENT, LARGE_SHARE = 1024, 10  # ... of models whose draws take no longer than a digit's
LEAST_DRAWS = 16  # of an image, for the moments of a latent
LATENT = "latent_"  # before the name of such a moment


@dataclass(frozen=True, kw_only=True)
class BoundPlan:
    """Which K's, on which images. The largest K may be measured on the first `images` alone."""

    ks: tuple[int, ...] = (1, 16, 128, 1000)
    images: int | None = None
    limit: int | None = None
    split: Split = "test"
    seed: int = 0

    def __post_init__(self) -> None:
        require(bool(self.ks) and min(self.ks) >= 1, f"--k takes numbers from 1, not {self.ks}")
        require(
            list(self.ks) == sorted(set(self.ks)),
            f"--k takes each number once, the smallest first, not {self.ks}",
        )
        require(
            self.images is None or len(self.ks) > 1,
            "--images is for the largest of several K's; take fewer images for all with --limit",
        )

    @property
    def options(self) -> str:
        """The choices made here as a command has them."""
        words = [f"--split {self.split}", f"--k {','.join(map(str, self.ks))}"]
        words += [] if self.images is None else [f"--images {self.images}"]
        words += [f"--seed {self.seed}"]
        words += [] if self.limit is None else [f"--limit {self.limit}"]
        return " ".join(words)


def measure_bound(
    subject: Subject,
    plan: BoundPlan,
    folder: Path,
    *,
    memory_gib: float = MEMORY_GIB,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Partial]:
    """Measure; give the document as JSON values, and what is to be removed once it is written.

    After an interruption the results so far lie in `folder`, and the same call goes on from them.
    Raises `EvaluationError` where a bound is not finite or the images do not fit the model.
    """
    data = subject.images(plan.split).first(plan.limit)
    facts = subject.scorer.facts
    pixels = drawn_pixels(data.pixels, plan.seed) if facts.binary else data.pixels
    check_images(facts, pixels)
    key = {
        "identity": dict(subject.identity),
        "images": digest(pixels),
        "ks": plan.ks,
        "most": plan.images,
        "seed": plan.seed,
        "backend": facts.backend,
    }
    partial = Partial(folder, "bound", key, count="iw")
    progress = progress or Progress(disable=True)
    task = progress.add_task("bound", total=len(pixels), completed=partial.done)
    # torch draws one generator's numbers with one thread.
    with partial.kept(), ThreadPoolExecutor(available_cores()) as threads:
        while partial.done < len(pixels):
            partial.add(_part(subject.scorer, pixels, partial.done, plan, memory_gib, threads))
            progress.update(task, completed=partial.done)
    return _document(subject, data, plan, partial.arrays()), partial


def _part(
    scorer: Scorer,
    pixels: NDArray[np.uint8],
    start: int,
    plan: BoundPlan,
    memory_gib: float,
    threads: ThreadPoolExecutor,
) -> Arrays:
    """The arrays of the next images: n of them, with a column for each K (nan: not measured)."""
    most = len(pixels) if plan.images is None else min(plan.images, len(pixels))
    ks = plan.ks if start < most else plan.ks[:-1]
    end = most if start < most else len(pixels)
    fitting, chunk = pieces(scorer.facts, ks[-1], memory_gib)
    rows = PART_ROWS if scorer.facts.dim <= LARGE_LATENT else PART_ROWS // LARGE_SHARE
    count = max(1, min(fitting, rows // ks[-1], end - start))
    chunk *= max(1, fitting // count)  # fewer images at once, more draws of each
    batch = pixels[start : start + count]
    found = nested_sums(
        scorer, batch, ks=ks, seed=plan.seed, start=start, chunk=chunk, threads=threads
    )
    return _arrays(found, plan.ks)


def _arrays(found: Mapping[int, Sums], ks: Sequence[int]) -> Arrays:
    draws = max(found)
    largest = found[draws]
    n = len(largest.elbo)
    iw, variance = np.full((n, len(ks)), np.nan), np.full((n, len(ks)), np.nan)
    whole = image_figures([largest], draws)
    for column, k in enumerate(ks):
        if k not in found:
            continue
        figures = image_figures([found[k]], k)
        iw[:, column] = figures.importance_weighted
        # A single draw has no spread of its own: all draws tell it.
        single = whole.elbo_variance * draws
        variance[:, column] = single if k == 1 else figures.importance_weighted_variance
    told = float(draws >= LEAST_DRAWS)  # fewer tell nothing: they count as no images
    moments = latent_moments(largest, draws)
    return {
        "iw": iw,
        "variance": variance,
        "elbo": whole.elbo,
        "elbo_variance": whole.elbo_variance,
        "kl": whole.kl,
        "log_px_z": whole.log_px_z,
        "effective": whole.effective_sample_size / draws,
        **{f"{LATENT}{name}": told * part.numpy() for name, part in moments.items()},
    }


def _document(subject: Subject, data: ImageData, plan: BoundPlan, found: Arrays) -> dict[str, Any]:
    facts, iw = subject.scorer.facts, found["iw"]
    check_finite(iw[:, 0])
    n = len(iw)
    return {
        "kind": "bound",
        "model": subject.name,
        "dataset": data.name,
        "split": data.split,
        "images": n,
        "seed": plan.seed,
        "likelihood": facts.likelihood,
        "dims": facts.dims,
        "rows": [_row(found, plan.ks, column, facts.dims) for column in range(len(plan.ks))],
        "elbo": {
            **mean_figures(found["elbo"]),
            "monte_carlo_error": monte_carlo_error(found["elbo_variance"]),
        },
        "log_px_z_nats": float(found["log_px_z"].mean()),
        "kl_nats": dict(zip(facts.kl_groups, found["kl"].mean(axis=0).tolist(), strict=True)),
        "latents": facts.latents,
        # Of those that have the largest K.
        "effective_share": float(found["effective"][np.isfinite(iw[:, -1])].mean()),
        **_latents(subject.scorer, found),
        "protocol": _protocol(data, plan, facts),
        "command": f"iafvae-train bound {subject.words} {plan.options}",
        **subject.identity,
    }


def _row(found: Arrays, ks: Sequence[int], column: int, dims: int) -> dict[str, Any]:
    """What is known at one K; the gain over the K before is of the same images."""
    iw = found["iw"]
    measured = np.isfinite(iw[:, column])
    common = np.isfinite(iw[:, -1])
    values = iw[measured, column]
    row: dict[str, Any] = {
        "importance_samples": ks[column],
        "images": int(measured.sum()),
        **mean_figures(values),
        "monte_carlo_error": monte_carlo_error(found["variance"][measured, column]),
        "bits_per_dim": -float(values.mean()) / (dims * math.log(2)),
        "value_on_common_nats": float(iw[common, column].mean()),
        "common_images": int(common.sum()),
    }
    if column:
        row["gain"] = {**mean_figures(values - iw[measured, column - 1]), "over": ks[column - 1]}
    return row


def _latents(scorer: Scorer, found: Arrays) -> dict[str, Any]:
    """Active units of each group and, of a single Gaussian layer, the nats of each latent."""
    moments = {
        name.removeprefix(LATENT): array.sum(axis=0, keepdims=True)
        for name, array in found.items()
        if name.startswith(LATENT)
    }
    if not moments or not moments["images"]:
        return {"active_units": None, "latent_kl_nats": None}
    alone = isinstance(scorer, ModelScorer) and isinstance(scorer.model, ConvVae)
    return {
        "active_units": active_units(mean_variance(moments), scorer.facts.latents),
        "latent_kl_nats": (moments["kl"] / moments["images"])[0].tolist() if alone else None,
    }


def _protocol(data: ImageData, plan: BoundPlan, facts: Facts) -> str:
    fewer = ""
    if plan.images is not None and plan.images < len(data):
        fewer = f" K = {plan.ks[-1]} on the first {plan.images} of them alone."
    return (
        f"{len(data)} images of the {data.split} split of {data.name}.{fewer} "
        f"{pixels_protocol(facts.likelihood)} The images are the same for all K, and their "
        "draws are nested: the first K of the largest K's, so that the gain from K to K is of the "
        f"same noise. Seed {plan.seed} for pixels and latents, {facts.backend}."
    )
