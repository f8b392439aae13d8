"""Does a served model tell other images from its own? AUROC, AUPR and FPR95 of its verdict.

Images go through `Model.score` and `Model.anomaly_map`, as the service answers them. Beside the
verdict stand each of its statistics alone and the plain likelihood, which is known to fail at this:
images of quite another kind, simpler ones above all, may be likelier than those that a model was
trained on (Nalisnick et al. 2019, arXiv:1810.09136).
"""

import asyncio
import math
import re
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from model.config import require
from service.bundle import BundleError
from service.operations.model import Model
from service.verdicts.decisions import alpha_reachable
from service.verdicts.ranks import FIGURES, detection
from training.data import FOLDER_PREFIX, Split
from training.errors import DataError, EvaluationError
from training.evaluate.anomaly_sets import DRAWS, ImageSet, default_names, image_set
from training.evaluate.resume import Partial, digest
from training.evaluate.subject import bundle_images, data_words
from training.runs.provenance import processor

__all__ = ["PART", "AnomalyPlan", "measure_anomaly"]

T = TypeVar("T")
Pixels = NDArray[np.uint8]
Array = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]

PART_IMAGES = 64  # after which results are kept
ALPHAS = (0.01, 0.05)
BINS = 60
WIDE = 3.0  # deviations of the model's own images on either side of which bins are about equal
FAR = 20.0  # so many widths apart, sets do not fit a linear axis
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

# A score -> which side of it is taken for anomalous, and what it is.
SCORES: Mapping[str, tuple[str, str]] = {
    "verdict": ("low", "the p-value of all statistics together"),
    "log_likelihood": ("low", "the plain likelihood: the bound on log p(x) from all draws (IW-K)"),
    "largest_box": ("high", "the largest box of the anomaly map, in deviations"),
}
PART = "p/"  # before the name of a statistic whose own two-sided p-value is the score


@dataclass(frozen=True, kw_only=True)
class AnomalyPlan:
    """Which sets, how many images of each (None: all), and how they are scored.

    data: the bundle's own images (None: those that it was trained on); importance_samples: None is
    the bundle's default.
    """

    data: str | None = None
    against: tuple[str, ...] = ()
    limit: int | None = 300
    importance_samples: int | None = None
    seed: int = 0
    split: Split = "test"

    def __post_init__(self) -> None:
        require(
            self.limit is None or self.limit >= 2,
            f"--limit is 0 (all) or at least 2, not {self.limit}",
        )
        require(len(set(self.against)) == len(self.against), "--against names a set more than once")

    @property
    def command(self) -> str:
        """What measures the same again, paths left to the reader."""
        names = ["folder:PATH" if n.startswith(FOLDER_PREFIX) else n for n in self.against]
        k = self.importance_samples
        words = [
            f"iafvae-train evaluate-anomaly --bundle BUNDLE{data_words(self.data)}",
            *([f"--against {','.join(names)}"] if names else []),
            f"--split {self.split}",
            *([] if k is None else [f"--importance-samples {k}"]),
            f"--limit {self.limit or 0} --seed {self.seed}",
        ]
        return " ".join(words)


def measure_anomaly(
    bundle: Path,
    plan: AnomalyPlan,
    folder: Path,
    *,
    data_dir: Path | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], list[Partial]]:
    """Score all sets; give the document as JSON values, and what is to be removed afterwards.

    After an interruption the scores so far lie in `folder`, and the same call goes on from them.
    Raises `EvaluationError` where the bundle is none, or nothing says what is usual for it.
    """
    try:
        model = Model.load(bundle)
        model.drift = None  # sets of other images are no stream
    except BundleError as error:
        raise EvaluationError(str(error)) from error
    k = plan.importance_samples or model.manifest.scoring.default_importance_samples
    _check_calibrated(model, k)
    progress = progress or Progress(disable=True)
    with asyncio.Runner() as runner:
        runner.run(model.start())
        try:
            sets = _sets(runner, model, plan, data_dir)
            partials = [_partial(model, k, plan.seed, item, folder) for item in sets]
            total, done = sum(len(s.pixels) for s in sets), sum(p.done for p in partials)
            task = progress.add_task("scoring", total=total, completed=done)
            for item, partial in zip(sets, partials, strict=True):
                progress.update(task, description=f"scoring {item.name}")
                with partial.kept():
                    while (start := partial.done) < len(item.pixels):
                        pixels = item.pixels[start : start + PART_IMAGES]
                        partial.add(_scores(runner, model, pixels, k, plan.seed))
                        progress.advance(task, len(pixels))
        finally:
            runner.run(model.stop())
    values = [_checked(item, p.arrays()) for item, p in zip(sets, partials, strict=True)]
    return _document(model, plan, k, sets, values), partials


def _check_calibrated(model: Model, k: int) -> None:
    samples = model.manifest.scoring.calibrated_importance_samples
    if not samples:
        raise EvaluationError(
            f"{model.name} has no calibration, and so no verdicts: run iafvae-train calibrate."
        )
    if k not in samples:
        raise EvaluationError(
            f"{model.name} is calibrated for K = {', '.join(map(str, samples))}: give one of these "
            f"as --importance-samples, not {k}."
        )


def _sets(
    runner: asyncio.Runner, model: Model, plan: AnomalyPlan, data_dir: Path | None
) -> list[ImageSet]:
    """The model's own images, then the others, made ones from images that are not among the
    former where there are enough."""
    whole = bundle_images(model.bundle, plan.data, plan.split, data_dir)
    own, limit = whole.first(plan.limit), plan.limit or len(whole)
    spoilt = whole.pixels[limit : 2 * limit]
    if len(spoilt) < len(own):
        spoilt = own.pixels
    sets = [ImageSet(own.name, f"{own.split} images of {own.name}: the model's own", own.pixels)]
    for name in plan.against or default_names(own.name):
        if name == DRAWS:
            drawn = _awaited(runner, model.sample(len(own), seed=plan.seed, output="draw"))
            sets.append(ImageSet(name, "drawn by the model itself", drawn.images))
            continue
        try:
            found = image_set(
                name,
                spoilt,
                split=plan.split,
                count=plan.limit,
                seed=plan.seed,
                data_dir=data_dir,
                fit="pad" if model.manifest.fit == "pad" else "crop",
                download=bool(plan.against),
            )
        except DataError:
            if plan.against:
                raise
            continue  # of what nobody asked for, what is at hand is taken
        same = sum(found.name == re.sub(r" \(\d+\)$", "", each.name) for each in sets)
        sets.append(replace(found, name=f"{found.name} ({same + 1})") if same else found)
    return sets


def _partial(model: Model, k: int, seed: int, item: ImageSet, folder: Path) -> Partial:
    key = {
        "bundle": model.bundle.hash,
        "images": digest(item.pixels),
        "importance_samples": k,
        "seed": seed,
        "provider": model.provider,
    }
    return Partial(folder, "verdicts", key, count="verdict")


def _awaited(runner: asyncio.Runner, coroutine: Coroutine[Any, Any, T]) -> T:
    """As `runner.run`; the KeyboardInterrupt of a signal (`stoppable`) ends the task, too."""
    loop = runner.get_loop()
    task = loop.create_task(coroutine)
    try:
        return loop.run_until_complete(task)
    except KeyboardInterrupt:
        task.cancel()
        raise


def _scores(runner: asyncio.Runner, model: Model, pixels: Pixels, k: int, seed: int) -> Arrays:
    found = _awaited(runner, model.score(pixels, importance_samples=k, seed=seed))
    maps = _awaited(runner, model.anomaly_map(pixels, seed=seed, boxes=1))
    return {
        "verdict": found.p_value,
        "log_likelihood": found.log_likelihood_nats,
        "largest_box": np.array([abs(box.deviations) for (box,) in maps.boxes]),
        **{f"{PART}{name}": p for name, p in found.evidence.items()},
    }


def _checked(item: ImageSet, scores: Arrays) -> Arrays:
    for name, values in scores.items():
        if bad := int(np.isnan(values).sum()):
            raise EvaluationError(
                f"{bad} values of {name} are no numbers for {item.description}: the model's "
                "weights or its precision are at fault."
            )
    return scores


def _direction(name: str) -> tuple[str, str]:
    if name.startswith(PART):
        return "low", f"the two-sided p-value of {name.removeprefix(PART)} alone"
    return SCORES[name]


def _document(
    model: Model, plan: AnomalyPlan, k: int, sets: Sequence[ImageSet], values: Sequence[Arrays]
) -> dict[str, Any]:
    """What the scores of the `sets`, the model's own first, say, as JSON values."""
    manifest, own = model.manifest, sets[0]
    calibration = manifest.calibration
    usual = 0 if calibration is None else calibration.images
    # As people read them: nats of binary images, bits/dim of 8-bit ones.
    scale = 1.0 if manifest.likelihood.binary else -1.0 / (manifest.image.dims * math.log(2))
    shown = [scale * scores["log_likelihood"] for scores in values]
    edges, bent = _bins(shown)
    entries = [
        _described(item, scores, show, edges, usual)
        for item, scores, show in zip(sets, values, shown, strict=True)
    ]
    for entry, scores in zip(entries[1:], values[1:], strict=True):
        entry |= _detection(scores, values[0])
    made_of = {name: manifest.training.get(name) for name in ("step", "weights", "weights_sha256")}
    return {
        "kind": "verdicts",
        "model": f"{model.name} {model.version}",
        "dataset": own.name,
        "split": plan.split,
        "images": len(own.pixels),
        "importance_samples": k,
        "seed": plan.seed,
        "unit": "nats" if manifest.likelihood.binary else "bits/dim",
        "calibration_images": usual,
        "calibration": calibration and manifest.files[calibration.file].sha256,
        "scores": {
            name: dict(zip(("anomalous", "meaning"), _direction(name), strict=True))
            for name in values[0]
        },
        "own": entries[0],
        "sets": entries[1:],
        "histogram_edges": edges.tolist(),
        "histogram_scale": bent,
        "machine": f"{processor()}; {manifest.precision}, ONNX Runtime on {model.provider}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": plan.command,
        "sha256": model.bundle.hash,
        **{name: value for name, value in made_of.items() if value is not None},
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
    item: ImageSet, scores: Arrays, shown: Array, edges: Array, usual: int
) -> dict[str, Any]:
    """usual: how many calibration images there are; a level that they cannot reach decides
    nothing."""
    inside = np.clip(shown, edges[0], edges[-1])
    return {
        "name": item.name,
        "description": item.description,
        "images": len(shown),
        "log_likelihood_nats": _summary(scores["log_likelihood"]),
        "shown": _summary(shown),
        "called_anomalous": {
            f"{alpha:g}": float((scores["verdict"] <= alpha).mean())
            if alpha_reachable(alpha, usual)
            else None
            for alpha in ALPHAS
        },
        "histogram": np.histogram(inside, edges)[0].tolist(),
    }


def _summary(values: Array) -> dict[str, float | None]:
    n = len(values)
    with np.errstate(invalid="ignore"):  # infinite ones have no mean
        error = values.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
        found = {"mean": values.mean(), "standard_error": error}
        found |= {f"q{round(100 * q):02d}": np.quantile(values, q) for q in QUANTILES}
    return {name: float(value) if np.isfinite(value) else None for name, value in found.items()}


def _detection(values: Arrays, usual: Arrays) -> dict[str, Any]:
    """Figure -> score -> its value and interval."""
    signs = {name: -1.0 if _direction(name)[0] == "low" else 1.0 for name in values}
    found = {n: detection(sign * values[n], sign * usual[n]) for n, sign in signs.items()}
    return {figure: {n: asdict(found[n][figure]) for n in found} for figure in FIGURES}
