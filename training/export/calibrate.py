"""The reference for p-values: scores of images that the model was neither trained nor tested on.

They are computed by the service's engine from the service's noise, a function of (seed, the
image's pixels, draw), so a test image and a reference image of the same distribution have
exchangeable scores, and the rank of one among the others is uniform. Pixels go in as they are:
preprocessing is the graph's.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.bundle import Manifest
from service.estimators import estimate
from service.noise import Purpose, image_keys, normal
from training.errors import ExportError

__all__ = [
    "IMPORTANCE_SAMPLES",
    "ScoringEngine",
    "calibration_arrays",
    "importance_weighted_scores",
]

IMPORTANCE_SAMPLES = (1, 16, 64)


class ScoringEngine(Protocol):
    """What is needed of `service.engine.Engine`."""

    max_rows: int

    def run(self, operation: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs of an operation by name."""
        ...


def importance_weighted_scores(
    engine: ScoringEngine,
    manifest: Manifest,
    pixels: NDArray[np.uint8],
    *,
    importance_samples: Sequence[int] = IMPORTANCE_SAMPLES,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> dict[int, NDArray[np.float32]]:
    """K -> log-likelihood estimates in nats, float32 [N], of images uint8 [N, C, H, W].

    log (1/K) sum_k w_k (Burda et al. 2016, arXiv:1509.00519) from draws 0 .. K-1, so all K share
    their first draws, as the service's answers do. `advance` is called after every image.
    """
    draws = max(importance_samples)
    keys = image_keys(pixels)

    def log_weights(index: int) -> NDArray[np.float64]:
        streams = np.full(draws, keys[index], np.uint64)
        eps = normal(seed, streams, np.arange(draws), manifest.latent.dim, Purpose.IMAGE)
        parts = []
        for first in range(0, draws, engine.max_rows):
            rows = eps[first : first + engine.max_rows]
            owner = np.zeros(len(rows), np.int64)
            image = pixels[index : index + 1]
            outputs = engine.run("score", {"image": image, "owner": owner, "eps": rows})
            parts.append(outputs["log_weight"].astype(np.float64))
        advance()
        return np.concatenate(parts)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # a run of the engine uses one core
        rows = np.stack(list(pool.map(log_weights, range(len(pixels)))))  # [N, K]
    bounds = {k: estimate(rows[:, :k]).log_likelihood_nats for k in importance_samples}
    return {k: bound.astype(np.float32) for k, bound in bounds.items()}


def calibration_arrays(scores: Mapping[int, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The arrays of `calibration.npz`: each K's scores, ascending.

    Raises `ExportError` where a score is not finite: such a reference ranks nothing.
    """
    for k, values in scores.items():
        if bad := int((~np.isfinite(values)).sum()):
            raise ExportError(
                f"{bad} of {len(values)} calibration images have no finite score at K = {k}: "
                "the model cannot be calibrated. Train it further, or export without calibration."
            )
    return {f"log_likelihood_nats_k{k}": np.sort(values) for k, values in scores.items()}
