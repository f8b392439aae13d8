"""The reference for verdicts: what the model says of images that it was not trained on.

Everything is computed by the service's engine from the service's noise, a function of (seed, the
image's pixels, draw), so a test image and a reference image of the same distribution are
exchangeable, and the rank of one among the others is uniform. Pixels go in as they are:
preprocessing is the graph's.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import Manifest
from service.engine.base import EngineBase
from service.engine.hardware import available_cores
from service.estimators import log_likelihoods
from service.noise import Purpose, image_keys, normal, uniform
from service.verdicts.reference import Measured, Reference, measured_of
from service.verdicts.statistics import host_names
from training.errors import ExportError

__all__ = [
    "FOLDS",
    "IMPORTANCE_SAMPLES",
    "LEAST",
    "SEED",
    "halves",
    "measure",
    "reference_of",
]

IMPORTANCE_SAMPLES = (1, 16, 64)
# Of the fit set, at most: a bound at more samples lies so near that its density will do, and a
# p-value is valid whatever the density.
FIT_SAMPLES = 16
LEAST = 5  # images of either set: fewer have no density and no smallest p-value worth the name
HALVING_KEY = 13
FOLDS = 10
SEED = 0


def measure(
    engine: EngineBase,
    manifest: Manifest,
    pixels: NDArray[np.uint8],
    *,
    importance_samples: Sequence[int] = IMPORTANCE_SAMPLES,
    advance: Callable[[], None] = lambda: None,
) -> Measured:
    """Log-likelihoods and evidence of images uint8 [N, C, H, W], as the service computes them.

    log (1/K) sum_k w_k (Burda et al. 2016, arXiv:1509.00519) from draws 0 .. K-1, so all K share
    their first draws, as the service's answers do. `advance` is called after every image.
    """
    keys = image_keys(pixels)
    draws = np.arange(max(importance_samples))
    binary = manifest.likelihood.binary

    def one(index: int) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
        given: dict[str, NDArray[Any]] = {"image": pixels[index : index + 1]}
        if binary:
            key, dims = keys[index : index + 1], manifest.image.dims
            given["u_image"] = uniform(SEED, key, 0, dims, Purpose.PIXELS)
        streams = np.full(len(draws), keys[index], np.uint64)
        eps = normal(SEED, streams, draws, manifest.latent.dim, Purpose.IMAGE)
        parts = []
        for first in range(0, len(draws), engine.max_rows):
            rows = eps[first : first + engine.max_rows]
            owner = np.zeros(len(rows), np.int64)
            outputs = engine.run("evidence", {**given, "owner": owner, "eps": rows})
            parts.append(outputs["log_weight"].astype(np.float64))
        advance()
        return np.concatenate(parts), {name: outputs[name] for name in ("residual", "statistics")}

    with ThreadPoolExecutor(available_cores()) as pool:  # a run of the engine uses one core
        results = list(pool.map(one, range(len(pixels))))
    weights = np.stack([log_weight for log_weight, _ in results])  # [N, K]
    evidence = {
        name: np.concatenate([found[name] for _, found in results]) for name in results[0][1]
    }
    bounds = {k: log_likelihoods(weights[:, :k]) for k in importance_samples}
    return measured_of(bounds, evidence, pixels, binary=binary)


def halves(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two disjoint sets of images, of which the first is no larger, by a fixed rule."""
    raw = np.random.Philox(key=np.array([HALVING_KEY, 0], np.uint64)).random_raw(len(pixels))
    order = np.argsort(raw, kind="stable")
    middle = len(pixels) // 2
    return pixels[np.sort(order[:middle])], pixels[np.sort(order[middle:])]


def reference_of(
    engine: EngineBase,
    manifest: Manifest,
    fit: NDArray[np.uint8] | None,
    calibration: NDArray[np.uint8],
    *,
    advance: Callable[[], None] = lambda: None,
) -> Reference:
    """What verdicts compare with, of two disjoint sets of images uint8 [N, C, H, W]; without one
    to `fit`, of the other alone, crossed in `FOLDS`.

    Raises `ExportError` where they are too few, all the same, of another shape, or where the model
    has no finite score for one: such a reference ranks nothing.
    """
    names = (*manifest.statistics, *host_names(binary=manifest.likelihood.binary))
    for pixels in (calibration,) if fit is None else (fit, calibration):
        _check(pixels, manifest)
    if fit is None:
        measured = measure(engine, manifest, calibration, advance=advance)
        _check_finite(measured)
        return Reference.crossed(names, measured, FOLDS)
    few = [k for k in IMPORTANCE_SAMPLES if k <= FIT_SAMPLES]
    sets = [
        measure(engine, manifest, pixels, importance_samples=ks, advance=advance)
        for pixels, ks in ((fit, few), (calibration, IMPORTANCE_SAMPLES))
    ]
    for each in sets:
        _check_finite(each)
    known = sets[0].log_likelihood
    scores = {k: known[max(j for j in few if j <= k)] for k in IMPORTANCE_SAMPLES}
    return Reference.made(names, replace(sets[0], log_likelihood=scores), sets[1])


def _check(pixels: NDArray[np.uint8], manifest: Manifest) -> None:
    if pixels.shape[1:] != manifest.image.shape:
        raise ExportError(
            f"The model is for images {list(manifest.image.shape)}, these are "
            f"{list(pixels.shape[1:])}: calibrate on images of its own kind."
        )
    if len(pixels) < LEAST:
        raise ExportError(
            f"{2 * LEAST} images are needed to calibrate at the least, half of them for the "
            "density of the statistics: thousands make a good reference."
        )
    if len(np.unique(image_keys(pixels))) < LEAST:
        raise ExportError("The calibration images are all the same, or nearly: they rank nothing.")


def _check_finite(measured: Measured) -> None:
    for k, values in measured.log_likelihood.items():
        if bad := int((~np.isfinite(values)).sum()):
            raise ExportError(
                f"{bad} of {len(values)} calibration images have no finite score at K = {k}: "
                "the model cannot be calibrated. Train it further, or export without calibration."
            )
    if not (np.isfinite(measured.statistics).all() and np.isfinite(measured.residual).all()):
        raise ExportError("The calibration images' statistics are not finite: train it further.")
