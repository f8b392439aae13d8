"""The reference is what the service itself would answer, sorted, and makes p-values uniform."""

import asyncio
import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import special, stats

from service.bundle import load_bundle
from service.engine.onnxruntime_engine import Engine
from service.estimators import p_values
from service.noise import Purpose, image_keys, normal
from service.operations.model import Model
from training.errors import ExportError
from training.export.calibrate import calibration_arrays, importance_weighted_scores

D = 3
MANIFEST = SimpleNamespace(latent=SimpleNamespace(dim=D))


class NoiseEngine:
    """log w = the sum of the noise: every weight is log-normal, whatever the image."""

    def __init__(self, max_rows=32):
        self.max_rows = max_rows
        self.rows = 0

    def run(self, operation, arrays):
        assert operation == "score"
        assert len(arrays["owner"]) <= self.max_rows
        self.rows += len(arrays["owner"])
        return {"log_weight": arrays["eps"].sum(axis=1)}


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 4, 4), np.uint8)


def test_every_k_uses_the_first_draws_of_the_images_own_noise():
    pixels, counted = images(5), []
    scores = importance_weighted_scores(
        NoiseEngine(),
        MANIFEST,
        pixels,
        importance_samples=(1, 16, 64),
        seed=7,
        advance=lambda: counted.append(1),
    )
    for i, key in enumerate(image_keys(pixels)):
        noise = normal(7, np.full(64, key, np.uint64), np.arange(64), D, Purpose.IMAGE).sum(1)
        for k in (1, 16, 64):
            expected = special.logsumexp(noise[:k].astype(np.float64)) - math.log(k)
            assert scores[k][i] == pytest.approx(expected, abs=1e-5)
    assert len(counted) == 5


def test_the_engines_largest_batch_changes_nothing():
    pixels = images(3)
    few, many = NoiseEngine(max_rows=5), NoiseEngine(max_rows=1000)
    one = importance_weighted_scores(few, MANIFEST, pixels)
    other = importance_weighted_scores(many, MANIFEST, pixels)
    assert few.rows == many.rows == 3 * 64
    assert all(np.array_equal(one[k], other[k]) for k in (1, 16, 64))


def test_p_values_of_further_images_are_uniform():
    reference = importance_weighted_scores(NoiseEngine(), MANIFEST, images(1500))
    further = importance_weighted_scores(NoiseEngine(), MANIFEST, images(1500, seed=1))
    arrays = calibration_arrays(reference)
    for k in (1, 16, 64):
        p = p_values(further[k].astype(np.float64), arrays[f"log_likelihood_nats_k{k}"])
        assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_arrays_are_sorted_float32_and_finite():
    arrays = calibration_arrays({4: np.array([3.0, 1.0, 2.0], np.float32)})
    assert arrays["log_likelihood_nats_k4"].tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ExportError, match=r"1 of 2 calibration images .* K = 4"):
        calibration_arrays({4: np.array([np.nan, 1.0], np.float32)})


def test_scores_are_those_that_the_service_answers(tiny_bundle):
    """Through scheduler, batching and noise, as a caller gets them."""
    bundle = load_bundle(tiny_bundle)
    engine = Engine(bundle, provider="cpu")
    engine.warm()
    image = bundle.manifest.image
    pixels = np.random.default_rng(3).integers(0, 256, (6, *image.shape), np.uint8)
    scores = importance_weighted_scores(engine, bundle.manifest, pixels, importance_samples=(1, 16))

    async def answers(k):
        runtime = Model.load(tiny_bundle, provider="cpu")
        await runtime.start()
        try:
            return await runtime.score(pixels, importance_samples=k, seed=0, alpha=0.01)
        finally:
            await runtime.stop(drain_seconds=1)

    for k in (1, 16):
        answered = asyncio.run(answers(k)).log_likelihood_nats
        assert np.array_equal(scores[k], answered.astype(np.float32))
