"""The reference is what the service itself would answer, sorted, and makes p-values uniform."""

import asyncio
import math
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import special, stats

from service.bundle import load_bundle
from service.engine.onnxruntime_engine import Engine
from service.noise import Purpose, image_keys, normal
from service.operations.model import Model
from service.verdicts.conformal import upper
from training.errors import ExportError
from training.export import calibrate
from training.export.calibrate import SEED, halves, measure, reference_of

D = 3
MANIFEST = SimpleNamespace(
    latent=SimpleNamespace(dim=D),
    likelihood=SimpleNamespace(binary=False),
    image=SimpleNamespace(shape=(1, 4, 4), dims=16),
    statistics=("a", "b"),
)


class NoiseEngine:
    """log w = the sum of the noise: every weight is log-normal, whatever the image; the evidence
    are an image's own pixels."""

    def __init__(self, max_rows=32):
        self.max_rows = max_rows
        self.rows = 0

    def run(self, operation, arrays):
        assert operation == "evidence"
        assert len(arrays["owner"]) <= self.max_rows
        self.rows += len(arrays["owner"])
        levels = arrays["image"][:, 0].astype(np.float32) / 255
        found = {"residual": levels - 0.5, "statistics": levels[:, 0, :2]}
        return {"log_weight": arrays["eps"].sum(axis=1), **found}


def scored(*args, **options):
    """K -> log-likelihoods."""
    return measure(*args, **options).log_likelihood


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 4, 4), np.uint8)


def test_every_k_uses_the_first_draws_of_the_images_own_noise():
    pixels, counted = images(5), []
    scores = scored(
        NoiseEngine(),
        MANIFEST,
        pixels,
        importance_samples=(1, 16, 64),
        advance=lambda: counted.append(1),
    )
    for i, key in enumerate(image_keys(pixels)):
        noise = normal(SEED, np.full(64, key, np.uint64), np.arange(64), D, Purpose.IMAGE).sum(1)
        for k in (1, 16, 64):
            expected = special.logsumexp(noise[:k].astype(np.float64)) - math.log(k)
            assert scores[k][i] == pytest.approx(expected, abs=1e-5)
    assert len(counted) == 5


def test_the_engines_largest_batch_changes_nothing():
    pixels = images(3)
    few, many = NoiseEngine(max_rows=5), NoiseEngine(max_rows=1000)
    one = scored(few, MANIFEST, pixels)
    other = scored(many, MANIFEST, pixels)
    assert few.rows == many.rows == 3 * 64
    assert all(np.array_equal(one[k], other[k]) for k in (1, 16, 64))


def test_p_values_of_further_images_are_uniform():
    reference = reference_of(NoiseEngine(), MANIFEST, images(300, seed=2), images(1500))
    further = measure(NoiseEngine(), MANIFEST, images(1500, seed=1))
    for k in (1, 16, 64):
        judged = reference.judge(k, further)
        table = np.sort(judged.p_value)
        # Both are samples: their distances are compared, not their ranks with the uniform law.
        calibration = upper(reference.distances[k].astype(np.float64), reference.distances[k])
        assert stats.ks_2samp(table, calibration).pvalue > 1e-3
        assert stats.kstest(judged.parts["a"], "uniform").statistic < 0.06


def test_an_image_that_is_unlike_in_one_way_or_the_other_is_found():
    reference = reference_of(NoiseEngine(), MANIFEST, images(300, seed=2), images(700))
    strange = np.zeros((3, 1, 4, 4), np.uint8)
    strange[1] = 255
    strange[2] = 128
    assert (reference.judge(16, measure(NoiseEngine(), MANIFEST, strange)).p_value <= 0.01).all()


def test_what_ranks_nothing_is_refused():
    few, wrong = images(4), np.zeros((9, 3, 4, 4), np.uint8)
    same, enough = np.zeros((9, 1, 4, 4), np.uint8), images(9)
    for pixels, words in ((few, "10 images are needed"), (wrong, "is for"), (same, "all the same")):
        with pytest.raises(ExportError, match=words):
            reference_of(NoiseEngine(), MANIFEST, pixels, enough)
        with pytest.raises(ExportError, match=words):
            reference_of(NoiseEngine(), MANIFEST, enough, pixels)
    engine = NoiseEngine()
    engine.run = lambda operation, arrays: (
        NoiseEngine().run(operation, arrays) | {"log_weight": np.full(len(arrays["eps"]), np.nan)}
    )
    with pytest.raises(ExportError, match="9 of 9 calibration images have no finite score"):
        reference_of(engine, MANIFEST, enough, enough)


def test_as_many_images_are_measured_at_once_as_there_are_cores_for_it(monkeypatch):
    """Of a container's two cores, not the host's ninety-six."""
    at_once, most, lock = 0, 0, threading.Lock()

    class Counted(NoiseEngine):
        def run(self, operation, arrays):
            nonlocal at_once, most
            with lock:
                at_once += 1
                most = max(most, at_once)
            time.sleep(0.002)
            with lock:
                at_once -= 1
            return super().run(operation, arrays)

    monkeypatch.setattr(calibrate, "available_cores", lambda: 2)
    scored(Counted(), MANIFEST, images(40))
    assert most <= 2


def test_halves_are_disjoint_and_all():
    pixels = images(11)
    fit, calibration = halves(pixels)
    assert (len(fit), len(calibration)) == (5, 6)
    both = np.concatenate([image_keys(fit), image_keys(calibration)])
    assert sorted(both) == sorted(image_keys(pixels))


def test_scores_are_those_that_the_service_answers(tiny_bundle):
    """Through scheduler, batching and noise, as a caller gets them."""
    bundle = load_bundle(tiny_bundle)
    engine = Engine(bundle, provider="cpu")
    engine.warm()
    image = bundle.manifest.image
    pixels = np.random.default_rng(3).integers(0, 256, (6, *image.shape), np.uint8)
    scores = scored(engine, bundle.manifest, pixels, importance_samples=(1, 16))

    async def answers(k):
        runtime = Model.load(tiny_bundle, provider="cpu")
        await runtime.start()
        try:
            return await runtime.score(pixels, importance_samples=k, seed=0, alpha=0.01)
        finally:
            await runtime.stop(drain_seconds=1)

    for k in (1, 16):
        answered = asyncio.run(answers(k)).log_likelihood_nats
        assert np.array_equal(scores[k], answered)
