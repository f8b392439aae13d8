"""What the scores of an anomaly measurement say, as JSON values: areas, histograms, shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.data import ImageData
from training.evaluate.anomaly_sets import ImageSet
from training.evaluate.ranks import auroc, two_sided
from training.evaluate.subject import Subject

if TYPE_CHECKING:
    from training.evaluate.anomaly import AnomalyPlan

__all__ = ["ALPHA", "SCORES", "anomaly_document"]

Array = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]

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


def anomaly_document(
    subject: Subject,
    plan: AnomalyPlan,
    own: ImageData,
    usual: ImageSet,
    sets: Sequence[ImageSet],
    scores: Sequence[Arrays],
    reference: NDArray[np.float32] | None,
) -> dict[str, Any]:
    """The document: `scores` are those of the `usual` set, then of each of the `sets`.

    `reference`: scores that p-values rank among, in any order (None: no p-values).
    """
    facts = subject.scorer.facts
    ranked = None if reference is None else reference.astype(np.float64)
    values = [_ranked(found, facts.kl_groups, ranked) for found in scores]
    shown = [subject.shown(found["log_likelihood"]) for found in scores]
    edges, scale = _bins(shown)
    described = [
        _described(item, value, show, edges, ranked)
        for item, value, show in zip([usual, *sets], values, shown, strict=True)
    ]
    for entry, value in zip(described[1:], values[1:], strict=True):
        entry["auroc"] = _areas(value, values[0])
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
        "own": described[0],
        "sets": described[1:],
        "histogram_edges": edges.tolist(),
        "histogram_scale": scale,
        "protocol": _protocol(own, plan, facts.likelihood, facts.backend, reference),
        "command": f"iafvae-train anomaly {subject.words} {plan.options}",
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


def _areas(values: Mapping[str, Array], usual: Mapping[str, Array]) -> dict[str, Any]:
    areas = {}
    for name, found in values.items():
        sign = -1.0 if _direction(name)[0] == "low" else 1.0
        area = auroc(sign * found, sign * usual[name])
        areas[name] = {"value": area.value, "standard_error": area.standard_error}
    return areas


def _protocol(
    own: ImageData,
    plan: AnomalyPlan,
    likelihood: str,
    backend: str,
    reference: NDArray[np.float32] | None,
) -> str:
    pixels = (
        "Pixels from 128 up count as white, the others as black, as the service reads them."
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
        "± is the standard error of DeLong et al. 1988, which takes the two sets for independent "
        "(wide, where one is the other spoilt; 0 where they do not overlap)."
    )
