"""Verdicts of the bundles that ship: one answer whoever computes it, p-values with their law."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from service.bundle import load_bundle
from service.cli.local import LocalClient
from service.client import Client
from service.operations.model import Model
from service.settings import SHIPPED_MODELS, load_settings
from service.verdicts.conformal import upper
from training.data import load_dataset
from training.evaluate.anomaly import AnomalyPlan, measure_anomaly
from training.export.calibrate import measure

SAMPLES = Path(__file__).parents[2] / "data"
BUNDLES = {"mnist": "mnist", "fashion-mnist": "fashion", "cifar10": "cifar10"}  # and their samples
K = 16


def sample(name, count):
    """The first test images of a bundle's own kind."""
    with np.load(SAMPLES / f"{BUNDLES[name]}_sample.npz", allow_pickle=False) as found:
        return found["images"][:count]


@pytest.mark.parametrize("name", BUNDLES)
def test_server_command_line_and_training_give_the_same_verdicts(name, serve):
    """Scores, statistics and p-values, of images of its own, altered ones and one of no kind."""
    path = SHIPPED_MODELS / name
    pixels = sample(name, 5)
    pixels = np.concatenate([pixels, 255 - pixels[:2], np.full_like(pixels[:1], 77)])
    served = Client(http=serve(models=path)).score(pixels, importance_samples=K)
    model = Model.load(path, provider="cpu")
    with LocalClient(model, load_settings()) as client:
        local = client.score(pixels, importance_samples=K, seed=None, alpha=None)
        measured = measure(model.engine, model.manifest, pixels, importance_samples=(K,))
    judged = model.bundle.reference.judge(K, measured)
    scores = {"log_likelihood_nats": measured.log_likelihood[K], "p_value": judged.p_value}
    for table in (served, local):
        for column, values in scores.items():
            assert np.allclose(getattr(table, column), values, rtol=1e-4, atol=0), column
        assert table.evidence.keys() == judged.parts.keys()
        for part, values in judged.parts.items():
            assert np.allclose(table.evidence[part], values, rtol=1e-4, atol=0), part
        assert (table.anomalous == (judged.p_value <= table.alpha)).all()
        assert table.decided.all()
    assert np.allclose(served.elbo_nats, local.elbo_nats, rtol=1e-4)


def check_law(path, pixels, importance_samples=1):
    """p-values of held-out images against those of calibration images; see `test_conformal`."""
    options = {"importance_samples": importance_samples, "seed": 0, "alpha": None}
    with LocalClient.open(path, None, "cpu") as client:
        parts = [pixels[first : first + 64] for first in range(0, len(pixels), 64)]
        found = np.concatenate([client.score(each, **options).p_value for each in parts])
    distances = load_bundle(path).reference.distances[importance_samples]
    # Both are samples: a perfect service fails a one-sample test with so few calibration images.
    assert stats.ks_2samp(found, upper(distances.astype(float), distances)).pvalue > 1e-3
    n = len(distances)
    for alpha in (0.01, 0.05):
        k = int(alpha * (n + 1))
        law = stats.betabinom(len(found), k, n + 1 - k)
        alarms = (found <= alpha).sum()
        assert law.ppf(0.0005) <= alarms <= law.ppf(0.9995), (alpha, alarms)


@pytest.mark.parametrize("importance_samples", [1, K])
@pytest.mark.parametrize("name", BUNDLES)
def test_p_values_of_held_out_images_have_their_law(name, importance_samples):
    check_law(SHIPPED_MODELS / name, sample(name, 128), importance_samples)


@pytest.fixture
def data_dir():
    root = os.environ.get("IAFVAE_DATA_DIR")
    if root is None or not Path(root, "cifar-10-batches-py").is_dir():
        pytest.skip("IAFVAE_DATA_DIR is not set, or lacks a set")
    return Path(root)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", BUNDLES)
def test_p_values_of_many_held_out_images_have_their_law(name, data_dir):
    pixels = load_dataset(name, "test", data_dir, download=False).pixels
    check_law(SHIPPED_MODELS / name, pixels[:2000])


AUROC = {  # that the verdict has at the least, of defects the largest box
    "mnist": {"fashion-mnist": 0.99, "inverted": 0.98, "shuffled": 0.98},
    "fashion-mnist": {
        **dict.fromkeys(("mnist", "blurred", "noisy", "inverted", "constants"), 0.98),
        "shuffled": 0.95,
        "defects": 0.90,
    },
    "cifar10": {
        **dict.fromkeys(("mnist", "fashion-mnist", "constants", "noise"), 0.99),
        "blurred": 0.95,
    },
}


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", BUNDLES)
def test_verdicts_tell_other_images_from_their_own(name, data_dir, tmp_path):
    plan = AnomalyPlan(against=(*AUROC[name], "draws"))
    document, _ = measure_anomaly(SHIPPED_MODELS / name, plan, tmp_path, data_dir=data_dir)
    sets = {each["name"]: each for each in document["sets"]}
    for other, least in AUROC[name].items():
        score = "largest_box" if other == "defects" else "verdict"
        assert sets[other]["auroc"][score]["value"] >= least, other
    called = {other: each["called_anomalous"] for other, each in sets.items()}
    assert called["draws"]["0.01"] <= 0.1
    assert name != "fashion-mnist" or called["mnist"]["0.05"] >= 0.9
