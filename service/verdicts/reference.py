"""The usual images of a model: what a verdict compares with.

Two disjoint sets of images that the model was not trained on: *fit*, of which the density of the
statistics is made, and *calibration*, among whose distances from that density those of other images
are ranked. All of it is arrays of a bundle's `calibration.npz`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.verdicts.conformal import TwoSided, upper
from service.verdicts.density import Neighbours
from service.verdicts.statistics import BOX, boxes, compressed_bytes

__all__ = ["Box", "Judgement", "Measured", "Reference", "map_notes", "measured_of"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]

# Of the largest squared deviation beside the distance over S statistics, for each of them; chosen
# on made anomalies of validation images: more loses what is a little odd in many statistics.
TAIL = 1 / 12
LIKELIHOOD = "log_likelihood_nats_k"
DISTANCE = "distance_k"
ONE_LATENT = (
    "this model has one latent group, so the map shows what its reconstruction misses: something "
    "odd that the reconstruction repeats does not show"
)
PLACES = ("place_mean", "place_deviation", "box_mean", "box_deviation")


@dataclass(frozen=True, eq=False)
class Measured:
    """What was computed of n images before they are judged.

    log_likelihood: K -> nats ``[n]``; statistics: the graph's ``[n, S]``; residual ``[n, H, W]``;
    images: uint8 ``[n, C, H, W]``, None where a model sees a draw of them.
    """

    log_likelihood: Mapping[int, F64]
    statistics: F32
    residual: F32
    images: NDArray[np.uint8] | None

    @classmethod
    def joined(cls, some: Sequence[Measured]) -> Measured:
        """Of all images together, in order; measured alike."""
        first, grey = some[0], [each.images for each in some if each.images is not None]
        return cls(
            {k: np.concatenate([e.log_likelihood[k] for e in some]) for k in first.log_likelihood},
            np.concatenate([each.statistics for each in some]),
            np.concatenate([each.residual for each in some]),
            np.concatenate(grey) if grey else None,
        )

    def take(self, chosen: NDArray[np.integer]) -> Measured:
        """The same for the images at places `chosen` alone."""
        return Measured(
            {k: nats[chosen] for k, nats in self.log_likelihood.items()},
            self.statistics[chosen],
            self.residual[chosen],
            None if self.images is None else self.images[chosen],
        )


@dataclass(frozen=True, eq=False)
class Judgement:
    """p-values ``[n]``: of the whole, and two-sided ones of each statistic alone."""

    p_value: F64
    parts: dict[str, F64]

    def take(self, chosen: slice) -> Judgement:
        """The same of some images."""
        return Judgement(self.p_value[chosen], {n: p[chosen] for n, p in self.parts.items()})


@dataclass(frozen=True)
class Box:
    """A square of an image that stands out, in pixels from the top left; deviations, signed, of
    what is usual there (positive: brighter than expected); p_value of the largest of an image."""

    left: int
    top: int
    side: int
    deviations: float
    p_value: float


@dataclass(frozen=True, eq=False)
class Reference:
    """See the module. S + H statistics: the graph's and the host's, by `names`.

    fit ``[m, S + H]`` with its `fit_scores` (K -> ``[m]``); usual ``[n, S + H]``, `scores` and
    `distances` (K -> ``[n]``) are the calibration images', each column ascending; places: mean and
    deviation over the fit set of the residual at each pixel ``[H, W]`` and of `boxes`; tail_weight:
    the distances', see `service.verdicts.density`.
    """

    names: tuple[str, ...]
    fit: F32
    fit_scores: dict[int, F32]
    usual: F32
    scores: dict[int, F32]
    distances: dict[int, F32]
    places: dict[str, F32]
    tail_weight: float

    @classmethod
    def made(cls, names: Sequence[str], fit: Measured, calibration: Measured) -> Reference:
        """Of two disjoint sets of usual images, measured alike."""
        boxed = boxes(fit.residual)
        places = {
            "place_mean": fit.residual.mean(axis=0, dtype=np.float64),
            "place_deviation": fit.residual.std(axis=0, dtype=np.float64),
            "box_mean": boxed.mean(axis=0),
            "box_deviation": boxed.std(axis=0),
        }
        places = {name: array.astype(np.float32) for name, array in places.items()}
        tables = [_table(each, places) for each in (fit, calibration)]
        scores, usual = calibration.log_likelihood, tables[1]
        draft = cls(
            names=tuple(names),
            fit=tables[0].astype(np.float32),
            fit_scores={k: v.astype(np.float32) for k, v in fit.log_likelihood.items()},
            usual=np.sort(usual.astype(np.float32), axis=0),
            scores={k: np.sort(v.astype(np.float32)) for k, v in scores.items()},
            distances={},
            places=places,
            tail_weight=TAIL * (1 + len(names)),
        )
        distances = {k: draft.distance(k, scores[k], usual) for k in scores}
        draft.distances.update({k: np.sort(v.astype(np.float32)) for k, v in distances.items()})
        return draft

    @classmethod
    def crossed(cls, names: Sequence[str], usual: Measured, folds: int) -> Reference:
        """Of one set of usual images that serves as both, where images are few.

        Each is ranked by what the other folds make, as if it were new; new images are judged by
        what all make, which is a little more, so that they look, if anything, too usual (Vovk 2015,
        *Cross-conformal predictors*): P(p <= a) is about a, without a proof that it is no more.
        """
        whole, n = cls.made(names, usual, usual), len(usual.residual)
        places = np.arange(n)
        parts = [
            cls.made(names, usual.take(places[places % folds != i]), usual.take(places[i::folds]))
            for i in range(folds)
        ]
        return replace(
            whole,
            usual=np.sort(np.concatenate([part.usual for part in parts]), axis=0),
            distances={
                k: np.sort(np.concatenate([part.distances[k] for part in parts]))
                for k in whole.distances
            },
        )

    @classmethod
    def of(
        cls,
        arrays: Arrays,
        names: Sequence[str],
        samples: Sequence[int],
        size: tuple[int, int],
        tail_weight: float,
    ) -> Reference:
        """As `arrays` gave it, for images of `size` (H, W). Raises ValueError where `arrays` holds
        anything else."""
        m, n = (len(np.atleast_1d(arrays.get(name, ()))) for name in ("fit", "usual"))
        side = min(BOX, *size)
        boxed = (size[0] - side + 1, size[1] - side + 1)
        shapes: dict[str, tuple[int, ...]] = {"fit": (m, len(names)), "usual": (n, len(names))}
        shapes |= dict(zip(PLACES, (size, size, boxed, boxed), strict=True))
        for k in samples:
            shapes |= {f"{LIKELIHOOD}{k}": (n,), f"{DISTANCE}{k}": (n,)}
            shapes[f"fit_{LIKELIHOOD}{k}"] = (m,)
        if set(arrays) != set(shapes):
            raise ValueError(f"holds {sorted(arrays)}, the manifest demands {sorted(shapes)}")
        for name, array in arrays.items():
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite float32")
            if array.shape != shapes[name]:
                raise ValueError(f"{name} must be float32 {list(shapes[name])}")
            ranked = not name.startswith(("fit", *PLACES))
            if ranked and (np.diff(array, axis=0) < 0).any():
                raise ValueError(f"{name} must be finite and sorted")
        return cls(
            names=tuple(names),
            fit=arrays["fit"],
            fit_scores={k: arrays[f"fit_{LIKELIHOOD}{k}"] for k in samples},
            usual=arrays["usual"],
            scores={k: arrays[f"{LIKELIHOOD}{k}"] for k in samples},
            distances={k: arrays[f"{DISTANCE}{k}"] for k in samples},
            places={name: arrays[name] for name in PLACES},
            tail_weight=tail_weight,
        )

    @property
    def images(self) -> int:
        """How many calibration images there are."""
        return len(self.usual)

    def arrays(self) -> dict[str, F32]:
        """The arrays of `calibration.npz` by name, as `of` reads them."""
        found = {"fit": self.fit, "usual": self.usual, **self.places}
        for k in self.scores:
            found[f"{LIKELIHOOD}{k}"] = self.scores[k]
            found[f"{DISTANCE}{k}"] = self.distances[k]
            found[f"fit_{LIKELIHOOD}{k}"] = self.fit_scores[k]
        return found

    @cached_property
    def _ranks(self) -> dict[int, TwoSided]:
        """K -> ranks among the calibration images' statistics, likelihood first."""
        return {k: TwoSided(np.vstack([scores, self.usual.T])) for k, scores in self.scores.items()}

    @cached_property
    def _densities(self) -> dict[int, Neighbours]:
        joined = {k: _joined(scores, self.fit) for k, scores in self.fit_scores.items()}
        return {k: Neighbours(values, self.tail_weight) for k, values in joined.items()}

    def warm(self) -> None:
        """Make the lookup tables now (tenths of a second), so that no request waits for them."""
        _ = self._ranks, self._densities

    def distance(self, k: int, log_likelihood: F64, table: F64) -> F64:
        """How far images lie from usual ones, ``[n]``, at `k` importance samples."""
        return self._densities[k](_joined(log_likelihood, table))

    def judge(self, k: int, measured: Measured) -> Judgement:
        """p-values of images at `k` importance samples, one of those in `scores`."""
        scores = measured.log_likelihood[k]
        table = _table(measured, self.places)
        distance = self.distance(k, np.where(scores == np.inf, np.nan, scores), table)
        ranked = self._ranks[k](np.vstack([scores, table.T]))
        parts = dict(zip(("log_likelihood", *self.names), ranked, strict=True))
        return Judgement(upper(distance, self.distances[k]), parts)

    def map(self, residual: F32) -> F32:
        """Residuals ``[n, H, W]`` in deviations of what is usual at each pixel: one scale for all
        images, positive where a pixel is brighter than expected."""
        deviation = _softened(self.places["place_deviation"])
        standard = (residual - self.places["place_mean"]) / deviation
        return standard.astype(np.float32)

    def largest_boxes(self, residual: F32, count: int) -> list[list[Box]]:
        """Of each image ``[n, H, W]`` the boxes that stand out most, which do not overlap."""
        usual = self.usual[:, self.names.index("largest_box")]
        standard = _standard_boxes(residual, self.places)
        side = residual.shape[1] - standard.shape[1] + 1
        return [_largest(each, side, count, usual) for each in standard]


def map_notes(groups: int) -> tuple[str, ...]:
    """What a reader must know of the maps of a model with so many latent groups."""
    return (ONE_LATENT,) if groups == 1 else ()


def measured_of(
    log_likelihood: Mapping[int, F64], evidence: Arrays, images: NDArray[np.uint8], *, binary: bool
) -> Measured:
    """The record of log-likelihoods and of the graph `evidence`'s outputs for `images`."""
    return Measured(
        log_likelihood, evidence["statistics"], evidence["residual"], None if binary else images
    )


def _table(measured: Measured, places: Mapping[str, F32]) -> F64:
    """All statistics but the likelihood, ``[n, S + H]``."""
    columns = [measured.statistics.astype(np.float64)]
    if measured.images is not None:
        columns.append(compressed_bytes(measured.images)[:, None])
    standard = np.abs(_standard_boxes(measured.residual, places))
    columns.append(standard.max(axis=(1, 2))[:, None])
    return np.concatenate(columns, axis=1)


def _joined(log_likelihood: NDArray[np.floating], table: NDArray[np.floating]) -> F64:
    return np.column_stack([log_likelihood.astype(np.float64), table.astype(np.float64)])


def _softened(deviation: F32) -> F64:
    """`deviation` plus its mean: a pixel that never varies is no reason for huge deviations."""
    return deviation.astype(np.float64) + max(float(deviation.mean()), 1e-6)


def _standard_boxes(residual: F32, places: Mapping[str, F32]) -> F64:
    return (boxes(residual) - places["box_mean"]) / _softened(places["box_deviation"])


def _largest(standard: F64, side: int, count: int, usual: F32) -> list[Box]:
    left = np.abs(standard)
    found: list[Box] = []
    for _ in range(count):
        top, start = (int(i) for i in np.unravel_index(int(left.argmax()), left.shape))
        if left[top, start] < 0:
            break
        value = float(standard[top, start])
        p = float(upper(np.array([abs(value)]), usual)[0])
        found.append(Box(start, top, side, value, p))
        rows = slice(max(0, top - side + 1), top + side)
        left[rows, max(0, start - side + 1) : start + side] = -1.0
    return found
