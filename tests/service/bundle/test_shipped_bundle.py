"""The bundle that ships, on real digits: good enough, calibrated, and what its card says it is.

`tests/data/mnist_sample.npz` holds the first 512 images of MNIST's official test set.
"""

import asyncio
from pathlib import Path

import numpy as np
import pytest

import service
from service.bundle import load_bundle
from service.operations.model import Model
from training.data import drawn_pixels

BUNDLE = Path(service.__file__).parent / "bundles" / "mnist"
DIGITS = Path(__file__).parents[2] / "data" / "mnist_sample.npz"


@pytest.fixture(scope="module")
def manifest():
    return load_bundle(BUNDLE).manifest


@pytest.fixture(scope="module")
def digits():
    with np.load(DIGITS, allow_pickle=False) as sample:
        return sample["images"]  # uint8 [512, 1, 28, 28]


def score(images, importance_samples=16):
    async def answer():
        runtime = Model.load(BUNDLE, provider="cpu")
        await runtime.start()
        try:
            return await runtime.score(
                images, importance_samples=importance_samples, seed=0, alpha=0.01
            )
        finally:
            await runtime.stop(drain_seconds=1)

    return asyncio.run(answer())


def test_digits_score_far_above_noise_and_above_their_own_pixels_shuffled(digits):
    real = digits[:64]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, real.shape, np.uint8)
    order = rng.permuted(np.tile(np.arange(784), (64, 1)), axis=1)
    shuffled = np.take_along_axis(real.reshape(64, 784), order, axis=1).reshape(real.shape)
    answered = score(np.concatenate([real, noise, shuffled]))
    digit, static, mixed = answered.log_likelihood_nats.reshape(3, 64)
    assert digit.min() > static.max() + 100
    assert digit.min() > mixed.max()
    assert np.median(digit) > np.median(mixed) + 100
    anomalous = np.array(answered.anomalous, bool).reshape(3, 64)
    assert anomalous[1:].all()
    assert anomalous[0].sum() <= 5  # at alpha = 0.01 more than 5 of 64 has a probability of 4e-5


def test_the_bound_on_the_whole_test_set_is_what_was_promised(manifest, digits):
    figures = {figure.estimator: figure for figure in manifest.evaluation}
    bound = figures["importance_weighted"]
    assert (bound.split, bound.images, bound.importance_samples) == ("test", 10_000, 128)
    assert bound.value_nats > -82.5
    assert bound.value_nats > figures["elbo"].value_nats
    assert bound.bits_per_dim == pytest.approx(-bound.value_nats / (784 * np.log(2)))
    # Measured anew through the service, on the first 512 of these digits, drawn alike.
    again = score(drawn_pixels(digits, seed=0), importance_samples=64).log_likelihood_nats
    assert abs(again.mean() - bound.value_nats) < 4 * again.std() / np.sqrt(len(again))


def test_the_bundle_is_small_calibrated_and_has_a_card(manifest):
    files = {str(f.relative_to(BUNDLE)): f.stat().st_size for f in BUNDLE.rglob("*.*")}
    assert sum(files.values()) < 10_000_000
    assert {"MODEL_CARD.md", "samples.png", "reconstructions.png"} <= files.keys()
    assert manifest.calibration.images == 2_500
    assert manifest.scoring.calibrated_importance_samples == (1, 16, 64)
    assert manifest.scoring.default_importance_samples == 16
    card = (BUNDLE / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "iafvae-train fit" in card
    assert "IW-128" in card
