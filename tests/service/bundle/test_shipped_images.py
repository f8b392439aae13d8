"""The bundles of 8-bit images that ship: served beside the digits, on real images.

`tests/data` holds the first images of the official test sets of Fashion-MNIST and CIFAR-10.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from service.bundle import load_bundle
from service.operations.model import Model
from service.settings import SHIPPED_MODELS

SAMPLES = Path(__file__).parents[2] / "data"
SIZES = {"fashion-mnist": 10_000_000, "cifar10": 40_000_000}  # bytes that a bundle may have


@dataclass(frozen=True)
class Shipped:
    """A bundle, and images of the set that it was not trained on."""

    name: str
    images: np.ndarray  # uint8 [N, C, H, W]

    @property
    def path(self):
        return SHIPPED_MODELS / self.name


@pytest.fixture(params=sorted(SIZES), scope="module")
def shipped(request):
    file = SAMPLES / f"{request.param.replace('-mnist', '')}_sample.npz"
    with np.load(file, allow_pickle=False) as sample:
        return Shipped(request.param, sample["images"])


async def served(shipped, use):
    runtime = Model.load(shipped.path, provider="cpu")
    await runtime.start()
    try:
        return await use(runtime)
    finally:
        await runtime.stop(drain_seconds=1)


def score(shipped, images, importance_samples=1):
    return asyncio.run(
        served(
            shipped,
            lambda runtime: runtime.score(
                images, importance_samples=importance_samples, seed=0, alpha=0.01
            ),
        )
    )


def test_noise_scores_far_below_real_images(shipped):
    real = shipped.images[:16]
    noise = np.random.default_rng(0).integers(0, 256, real.shape, np.uint8)
    answered = score(shipped, np.concatenate([real, noise]))
    bits = answered.bits_per_dim.reshape(2, 16)
    assert bits[0].max() < 8 < bits[1].min()  # 8 bits: all values equally likely
    assert all(answered.anomalous[16:])


def test_the_bound_on_the_test_set_is_what_the_manifest_says(shipped):
    manifest = load_bundle(shipped.path).manifest
    figures = {figure.estimator: figure for figure in manifest.evaluation}
    elbo = figures["elbo"]
    assert (elbo.split, elbo.images) == ("test", 10_000)
    assert figures["importance_weighted"].value_nats > elbo.value_nats
    dims = np.prod(shipped.images.shape[1:])
    assert elbo.bits_per_dim == pytest.approx(-elbo.value_nats / (dims * np.log(2)))
    again = score(shipped, shipped.images).log_likelihood_nats
    assert abs(again.mean() - elbo.value_nats) < 4 * again.std() / np.sqrt(len(again))


def test_reconstructions_resemble_and_samples_differ(shipped):
    async def use(runtime):
        images = shipped.images[:8]
        rebuilt = (await runtime.reconstruct(images, seed=0)).images
        drawn = (await runtime.sample(8, seed=0, temperature=warmth(runtime))).images
        again = (await runtime.sample(8, seed=0, temperature=warmth(runtime))).images
        return images, rebuilt, drawn, again

    images, rebuilt, drawn, again = asyncio.run(served(shipped, use))
    wrong = np.abs(images.astype(float) - rebuilt).mean()
    others = np.abs(images.astype(float) - np.roll(rebuilt, 1, axis=0)).mean()
    assert wrong < 0.5 * others
    assert drawn.shape == images.shape
    assert (drawn == again).all()
    assert len(np.unique(drawn.reshape(8, -1), axis=0)) == 8


def warmth(runtime):
    return [1.0] * len(runtime.bundle.manifest.latent.groups)


def test_bundles_are_small_calibrated_and_have_cards(shipped):
    files = {str(f.relative_to(shipped.path)): f.stat().st_size for f in shipped.path.rglob("*.*")}
    assert sum(files.values()) < SIZES[shipped.name]
    assert {"MODEL_CARD.md", "samples.png", "reconstructions.png"} <= files.keys()
    manifest = load_bundle(shipped.path).manifest
    assert manifest.calibration.images > 1_000
    card = (shipped.path / "MODEL_CARD.md").read_text(encoding="utf-8")
    for said in ("iafvae-train fit", "bits/dim", "## Verdicts", "AUROC"):
        assert said in card


def test_all_that_ships_is_served_digits_first(serve):
    client = serve(models=SHIPPED_MODELS, default_model="mnist")
    listed = client.get("/v1/models").json()
    assert {model["name"] for model in listed["models"]} == {"mnist", *SIZES}
    assert listed["default"] == "mnist"
    for name in SIZES:
        answer = client.post("/v1/sample", json={"n": 1, "seed": 0, "model": name})
        assert answer.status_code == 200
        assert answer.headers["x-iafvae-model"] == name
