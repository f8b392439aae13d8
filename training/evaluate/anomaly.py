"""Can a model tell other images from its own? AUROC, AUPR and FPR95 of several scores.

Likelihoods are known to fail at this: images of quite another kind, simpler ones above all, may be
likelier than those that a model was trained on (Nalisnick et al. 2019, arXiv:1810.09136). So the
figures are published for each model, with the histograms of what it thinks of each set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from model.config import require
from service.verdicts.ranks import FIGURES, detection, two_sided
from training.data import ImageData, Split
from training.errors import EvaluationError
from training.evaluate.anomaly_sets import ImageSet, default_names, image_set, other_images
from training.evaluate.evaluate import MEMORY_GIB, check_images, evaluate_images
from training.evaluate.resume import Partial, digest
from training.evaluate.subject import Subject

__all__ = ["AnomalyPlan", "measure_anomaly"]

Array = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]

PART_ROWS = 1_000  # draws after which results are kept
CALIBRATION_LEAST = 500  # images: a two-sided p-value is at least 2 / (n + 1)
ALPHA = 0.01
BINS = 60
WIDE = 3.0  # deviations of the model's own images on either side of which bins are about equal
FAR = 20.0  # so many widths apart, sets do not fit a linear axis
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

# A score -> which side of it is taken for anomalous, and what it is.
SCORES: Mapping[str, tuple[str, str]] = {
    "log_likelihood": ("low", "the bound on log p(x) from all draws (IW-K)"),
    "elbo": ("low", "the evidence lower bound, the mean over the draws"),
    "reconstruction": ("low", "log p(x|z), the mean over the draws"),
    "kl": ("high", "the divergence of the posterior from the prior, all groups"),
    "norm": ("high", "the length of prior_eps at eps = 0: how far out the posterior's centre lies"),
    "typicality": (
        "low",
        "a two-sided p-value of the log-likelihood among calibration images: too low or too high",
    ),
}
GROUP = "kl/"


@dataclass(frozen=True, kw_only=True)
class AnomalyPlan:
    """Which sets, how many images of each (None: all), and how they are scored."""

    against: tuple[str, ...] = ()
    images: int | None = 1000
    importance_samples: int = 16
    seed: int = 0
    split: Split = "test"

    def __post_init__(self) -> None:
        require(
            self.images is None or self.images >= 2,
            f"--images is 0 (all) or at least 2, not {self.images}",
        )
        require(len(set(self.against)) == len(self.against), "--against names a set more than once")

    @property
    def options(self) -> str:
        """The choices made here as a command has them, without the place of a folder."""
        names = ["folder:PATH" if n.startswith("folder:") else n for n in self.against]
        words = [f"--against {','.join(names)}"] if names else []
        words += [f"--split {self.split}", f"--importance-samples {self.importance_samples}"]
        words += [f"--images {self.images or 0}"]
        return " ".join([*words, f"--seed {self.seed}"])


def measure_anomaly(
    subject: Subject,
    plan: AnomalyPlan,
    folder: Path,
    *,
    pair: Subject | None = None,
    data_dir: Path | None = None,
    memory_gib: float = MEMORY_GIB,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], list[Partial]]:
    """Score all sets; give the document as JSON values, and what is to be removed afterwards.

    `pair` is another model, whose images are a set too. After an interruption the scores so far lie
    in `folder`, and the same call goes on from them.
    """
    own = subject.images(plan.split).first(plan.images)
    sets = [
        ImageSet(own.name, f"{own.split} images of {own.name}: the model's own", own.pixels),
        *_other_sets(subject, plan, own, pair, data_dir),
    ]
    reference = _calibration_images(subject, plan)
    wanted = [*sets, *([] if reference is None else [reference])]
    partials = [_partial(subject, plan, item, folder) for item in wanted]
    progress = progress or Progress(disable=True)
    total, done = sum(len(item.pixels) for item in wanted), sum(p.done for p in partials)
    task = progress.add_task("scoring", total=total, completed=done)
    count = max(1, PART_ROWS // plan.importance_samples)
    for item, partial in zip(wanted, partials, strict=True):
        progress.update(task, description=f"scoring {item.name}")
        with partial.kept():
            while (start := partial.done) < len(item.pixels):
                pixels = item.pixels[start : start + count]
                partial.add(_scores(subject, plan, pixels, start, memory_gib))
                progress.advance(task, len(pixels))
    scores = [
        _checked(item, partial.arrays()) for item, partial in zip(wanted, partials, strict=True)
    ]
    ranked = subject.calibration.get(plan.importance_samples)
    if reference is not None:
        ranked = scores.pop()["log_likelihood"].astype(np.float32)
    return _document(subject, plan, own, sets, scores, ranked, pair), partials


def _other_sets(
    subject: Subject,
    plan: AnomalyPlan,
    own: ImageData,
    pair: Subject | None,
    data_dir: Path | None,
) -> list[ImageSet]:
    shape = subject.scorer.facts.image_shape
    check_images(subject.scorer.facts, own.pixels)
    theirs = [] if pair is None else [pair.images(plan.split).first(plan.images)]
    names = plan.against or (() if theirs else default_names(own.name))
    taken = {data.name for data in theirs}
    return [other_images(data, shape) for data in theirs] + [
        image_set(
            name, own.pixels, split=plan.split, count=plan.images, seed=plan.seed, data_dir=data_dir
        )
        for name in names
        if name not in taken
    ]


def _calibration_images(subject: Subject, plan: AnomalyPlan) -> ImageSet | None:
    """Images to rank a run's scores among; a bundle brings its scores along."""
    if subject.home is None:
        return None
    count = None if plan.images is None else max(plan.images, CALIBRATION_LEAST)
    images = subject.images("calibration").first(count)
    return ImageSet("calibration", "calibration images", images.pixels)


def _partial(subject: Subject, plan: AnomalyPlan, item: ImageSet, folder: Path) -> Partial:
    key = {
        "identity": dict(subject.identity),
        "images": digest(item.pixels),
        "draws": plan.importance_samples,
        "seed": plan.seed,
        "backend": subject.scorer.facts.backend,
    }
    return Partial(folder, "anomaly", key, count="log_likelihood")


def _scores(
    subject: Subject, plan: AnomalyPlan, pixels: NDArray[np.uint8], start: int, memory_gib: float
) -> Arrays:
    """The scores of a few images; each has noise of its own, by its place in its set."""
    figures = evaluate_images(
        subject.scorer,
        pixels,
        importance_samples=plan.importance_samples,
        seed=plan.seed,
        memory_gib=memory_gib,
        start=start,
    )
    return {
        "log_likelihood": figures.importance_weighted,
        "elbo": figures.elbo,
        "reconstruction": figures.log_px_z,
        "kl": figures.kl,  # [n, G]
        "norm": np.linalg.norm(subject.centre(pixels), axis=1),
    }


def _checked(item: ImageSet, scores: Arrays) -> Arrays:
    for name, values in scores.items():
        if bad := int(np.isnan(values).sum()):
            raise EvaluationError(
                f"{bad} values of {name} are no numbers for {item.description}: the model's "
                "weights or its precision are at fault."
            )
    return scores


def _ranked(scores: Arrays, groups: Sequence[str], ranked: Array | None) -> dict[str, Array]:
    """Every score [N] by its name, as it is measured."""
    found = {name: scores[name] for name in ("log_likelihood", "elbo", "reconstruction")}
    found |= {"kl": scores["kl"].sum(axis=1), "norm": scores["norm"]}
    if ranked is not None:
        found["typicality"] = two_sided(scores["log_likelihood"].astype(np.float32), ranked)
    if len(groups) > 1:
        found |= {f"{GROUP}{name}": scores["kl"][:, i] for i, name in enumerate(groups)}
    return found


def _direction(name: str) -> tuple[str, str]:
    if name.startswith(GROUP):
        return "high", f"the divergence of the group {name.removeprefix(GROUP)} alone"
    return SCORES[name]


def _document(
    subject: Subject,
    plan: AnomalyPlan,
    own: ImageData,
    sets: Sequence[ImageSet],
    scores: Sequence[Arrays],
    reference: NDArray[np.float32] | None,
    pair: Subject | None,
) -> dict[str, Any]:
    """What the scores of the `sets`, the model's own first, say, as JSON values.

    `reference`: scores that p-values rank among, in any order (None: no p-values).
    """
    facts = subject.scorer.facts
    ranked = None if reference is None else reference.astype(np.float64)
    values = [_ranked(found, facts.kl_groups, ranked) for found in scores]
    shown = [subject.shown(found["log_likelihood"]) for found in scores]
    edges, scale = _bins(shown)
    entries = [
        _described(item, value, show, edges, ranked)
        for item, value, show in zip(sets, values, shown, strict=True)
    ]
    for entry, value in zip(entries[1:], values[1:], strict=True):
        entry |= _detection(value, values[0])
    other = "" if pair is None else f" --pair {pair.words.split()[-1]}"
    return {
        "kind": "anomaly",
        "model": subject.name,
        "dataset": own.name,
        "split": own.split,
        "images": len(own),
        "importance_samples": plan.importance_samples,
        "seed": plan.seed,
        "likelihood": facts.likelihood,
        "dims": facts.dims,
        "unit": "bits/dim" if subject.per_dim else "nats",
        "alpha": ALPHA,
        "calibration_images": None if ranked is None else len(ranked),
        "scores": {
            name: dict(zip(("anomalous", "meaning"), _direction(name), strict=True))
            for name in values[0]
        },
        "own": entries[0],
        "sets": entries[1:],
        "histogram_edges": edges.tolist(),
        "histogram_scale": scale,
        "protocol": _protocol(own, plan, facts.likelihood, facts.backend, reference),
        "command": f"iafvae-train evaluate-anomaly {subject.words}{other} {plan.options}",
        **subject.identity,
    }


def _bins(shown: Sequence[Array]) -> tuple[Array, dict[str, float] | None]:
    """Edges of bins that hold all but the farthest hundredth of each set, and their scale.

    What is outside is put in the outermost ones. The first set is the model's own. Where others
    lie far from it, bins grow with the distance: equal in asinh((x - centre) / width).
    """
    finite = [values[np.isfinite(values)] for values in shown]
    ends = [np.quantile(values, (0.01, 0.99)) for values in finite if len(values)]
    if not ends:
        return np.linspace(0.0, 1.0, BINS + 1), None
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    margin = 0.02 * (high - low) or 0.5
    own = finite[0] if len(finite[0]) else np.array([low, high])
    width = WIDE * float(np.subtract(*np.quantile(own, (0.84, 0.16)))) / 2
    if not 0 < FAR * width < high - low:
        return np.linspace(low - margin, high + margin, BINS + 1), None
    centre = float(np.median(own))
    start, end = (np.arcsinh((x - centre) / width) for x in (low, high))
    margin = 0.02 * (end - start)
    places = np.linspace(start - margin, end + margin, BINS + 1)
    return centre + width * np.sinh(places), {"centre": centre, "width": width}


def _described(
    item: ImageSet, values: Mapping[str, Array], shown: Array, edges: Array, ranked: Array | None
) -> dict[str, Any]:
    nats = values["log_likelihood"]
    inside = np.clip(shown, edges[0], edges[-1])
    flagged: dict[str, float] = {}
    if ranked is not None:
        as_low = np.searchsorted(np.sort(ranked), nats.astype(np.float32), side="right")
        flagged["p_value"] = float(((1 + as_low) / (1 + len(ranked)) <= ALPHA).mean())
        flagged["typicality"] = float((values["typicality"] <= ALPHA).mean())
    return {
        "name": item.name,
        "description": item.description,
        "images": len(nats),
        "log_likelihood_nats": _summary(nats),
        "shown": _summary(shown),
        "flagged": flagged,
        "histogram": np.histogram(inside, edges)[0].tolist(),
    }


def _summary(values: Array) -> dict[str, float | None]:
    n = len(values)
    with np.errstate(invalid="ignore"):  # infinite ones have no mean
        error = values.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
        found = {"mean": values.mean(), "standard_error": error}
        found |= {f"q{round(100 * q):02d}": np.quantile(values, q) for q in QUANTILES}
    return {name: float(value) if np.isfinite(value) else None for name, value in found.items()}


def _detection(values: Mapping[str, Array], usual: Mapping[str, Array]) -> dict[str, Any]:
    """Figure -> score -> its value and interval."""
    found: dict[str, dict[str, Any]] = {figure: {} for figure in FIGURES}
    for name, scores in values.items():
        sign = -1.0 if _direction(name)[0] == "low" else 1.0
        for figure, measured in detection(sign * scores, sign * usual[name]).items():
            found[figure][name] = asdict(measured)
    return found


def _protocol(
    own: ImageData,
    plan: AnomalyPlan,
    likelihood: str,
    backend: str,
    reference: NDArray[np.float32] | None,
) -> str:
    pixels = (
        "A grey pixel is drawn to white with its level as the chance, as the service draws it."
        if likelihood == "bernoulli"
        else "The 8-bit pixels as they are."
    )
    ranks = (
        "" if reference is None else f" p-values rank among {len(reference)} calibration images."
    )
    return (
        f"{len(own)} images of the {own.split} split of {own.name} against the sets named. {pixels}"
        f" K = {plan.importance_samples} draws of the latents for each image, seed {plan.seed}, "
        f"{backend}.{ranks} AUROC: how often an image of the set looks more anomalous than one of "
        "the model's own, ties counting half; 0.5 is chance, below it the score has it backwards. "
        "AUPR: average precision with the set's images as positives; chance is their share. FPR95: "
        "the share of the model's own images that is flagged where 95% of the set's are. In "
        "brackets 95% bootstrap intervals over the images of both sets, drawn independently (wide, "
        "where one is the other altered; without width where they do not overlap)."
    )
