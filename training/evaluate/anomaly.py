"""Can a model tell other images from its own? The area under the ROC curve of several scores.

Likelihoods are known to fail at this: images of quite another kind, simpler ones above all, may be
likelier than those that a model was trained on (Nalisnick et al. 2019, arXiv:1810.09136). So the
areas are published for each model, with the histograms of what it thinks of each set.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress, TaskID

from model.config import require
from training.data import ImageData, Split
from training.errors import EvaluationError
from training.evaluate.anomaly_document import anomaly_document
from training.evaluate.anomaly_sets import ImageSet, default_names, image_set
from training.evaluate.evaluate import MEMORY_GIB, evaluate_images
from training.evaluate.resume import Partial, digest
from training.evaluate.subject import Subject

__all__ = ["AnomalyPlan", "measure_anomaly"]

Arrays = dict[str, NDArray[Any]]

PART_ROWS = 1_000  # draws after which results are kept
CALIBRATION_LEAST = 500  # images: a two-sided p-value is at least 2 / (n + 1)


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
    data_dir: Path | None = None,
    memory_gib: float = MEMORY_GIB,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], list[Partial]]:
    """Score all sets; give the document as JSON values, and what is to be removed afterwards.

    After an interruption the scores so far lie in `folder`, and the same call goes on from them.
    """
    own = subject.images(plan.split).first(plan.images)
    if own.pixels.shape[1:] != tuple(subject.scorer.facts.image_shape):
        raise EvaluationError(
            f"The model is for images {tuple(subject.scorer.facts.image_shape)}; those of "
            f"{own.name} are {own.pixels.shape[1:]}."
        )
    names = plan.against or default_names(own.name)
    sets = [_set(name, own, plan, data_dir) for name in names]
    usual = ImageSet(own.name, f"{own.split} images of {own.name}: the model's own", own.pixels)
    reference = _calibration_images(subject, plan)
    wanted = [usual, *sets, *([reference] if reference else [])]
    partials = [_partial(subject, plan, item, folder) for item in wanted]
    task = None
    if progress is not None:
        total, done = sum(len(s.pixels) for s in wanted), sum(p.done for p in partials)
        task = progress.add_task("scoring", total=total, completed=done)
    for item, partial in zip(wanted, partials, strict=True):
        _score(subject, plan, item, partial, memory_gib, progress, task)
    scores = [_checked(item, partial.arrays()) for item, partial in zip(wanted, partials)]  # noqa: B905
    ranked = subject.calibration.get(plan.importance_samples)
    if reference is not None:
        ranked = scores.pop()["log_likelihood"].astype(np.float32)
    document = anomaly_document(subject, plan, own, usual, sets, scores, ranked)
    return document, partials


def _set(name: str, own: ImageData, plan: AnomalyPlan, data_dir: Path | None) -> ImageSet:
    return image_set(
        name, own.pixels, split=plan.split, count=plan.images, seed=plan.seed, data_dir=data_dir
    )


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


def _score(
    subject: Subject,
    plan: AnomalyPlan,
    item: ImageSet,
    partial: Partial,
    memory_gib: float,
    progress: Progress | None,
    task: TaskID | None,
) -> None:
    count = max(1, PART_ROWS // plan.importance_samples)
    with partial.kept():
        while partial.done < len(item.pixels):
            start = partial.done
            pixels = item.pixels[start : start + count]
            partial.add(_scores(subject, plan, pixels, start, memory_gib))
            if progress is not None and task is not None:
                progress.update(task, advance=len(pixels), description=f"scoring {item.name}")


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
