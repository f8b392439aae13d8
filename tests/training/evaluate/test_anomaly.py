"""Verdicts on sets against counting pairs; sets against independent computations."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from model.config import ConfigError
from service.cli.local import LocalClient
from service.codecs.images import Fit, fit_array
from training.data import ImageData
from training.errors import DataError, EvaluationError
from training.evaluate import anomaly as module
from training.evaluate import anomaly_sets
from training.evaluate.anomaly import AnomalyPlan, measure_anomaly
from training.evaluate.anomaly_report import (
    anomaly_markdown,
    anomaly_picture,
    anomaly_table,
    failures,
)
from training.evaluate.anomaly_sets import (
    DRAWS,
    MADE,
    blurred,
    default_names,
    image_set,
    made_anomalies,
    noisy,
    planted_defects,
)

SHAPE = (1, 4, 4)
NAMES = ("noisy:60", "inverted", DRAWS)
PLAN = AnomalyPlan(against=NAMES, limit=15, importance_samples=1)


@pytest.fixture
def own(tiny_model, monkeypatch):
    """Test images of the tiny model: more than a plan takes, so that made ones are of others."""
    pixels = tiny_model.images(40, seed=9)
    monkeypatch.setattr(module, "bundle_images", lambda *_: ImageData(pixels, "mine", "test"))
    return pixels


@pytest.fixture
def document(own, tiny_bundle, tmp_path):
    found, partials = measure_anomaly(tiny_bundle, PLAN, tmp_path)
    assert all(partial.path.is_file() for partial in partials)
    return found


def answered(bundle, pixels):
    """What the local command line gets: p-values, log-likelihoods and the largest box."""
    with LocalClient.open(bundle, None, "cpu") as client:
        table = client.score(pixels, importance_samples=1, seed=0, alpha=None)
        _, boxes = client.anomalies(pixels, seed=0, boxes=1)
    return {
        "verdict": -table.p_value,
        "log_likelihood": -table.log_likelihood_nats,
        "largest_box": np.array([abs(box["deviations"]) for (box,) in boxes]),
        **{f"p/{name}": -p for name, p in table.evidence.items()},
    }


def test_areas_are_those_that_counting_pairs_of_answers_gives(own, document, tiny_bundle):
    sets = {"noisy:60": noisy(own[15:30], 60.0, 0), "inverted": 255 - own[15:30]}
    mine = answered(tiny_bundle, own[:15])
    assert [entry["name"] for entry in document["sets"]] == list(NAMES)
    for entry in document["sets"][:2]:
        theirs = answered(tiny_bundle, sets[entry["name"]])
        assert entry["auroc"].keys() == theirs.keys() == document["scores"].keys()
        for name, odd in theirs.items():
            plain = mine[name]
            wins = (odd[:, None] > plain).mean() + 0.5 * (odd[:, None] == plain).mean()
            assert entry["auroc"][name]["value"] == pytest.approx(wins), name
            low, high = entry["auroc"][name]["interval"]
            assert low <= wins <= high
        called = (-theirs["verdict"] <= 0.05).mean()
        assert entry["called_anomalous"]["0.05"] == pytest.approx(called)
        assert sum(entry["histogram"]) == entry["images"] == 15
    assert document["own"]["called_anomalous"]["0.05"] == (-mine["verdict"] <= 0.05).mean()
    assert document["calibration_images"] == 200


def test_the_models_own_draws_are_no_anomalies(document):
    drawn = document["sets"][-1]
    assert drawn["images"] == 15
    low, high = drawn["auroc"]["verdict"]["interval"]
    assert low < 0.5 < high  # the tiny model is the law of its images


def test_an_interruption_in_the_middle_of_a_score_ends_it():
    """Else its failure is logged with a traceback when the model stops."""
    ended = []

    async def score():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    def interrupt():
        raise KeyboardInterrupt

    with asyncio.Runner() as runner:
        runner.get_loop().call_later(0.01, interrupt)
        with pytest.raises(KeyboardInterrupt):
            module._awaited(runner, score())
        runner.run(asyncio.sleep(0))
        assert ended


def test_an_interruption_loses_nothing_and_changes_nothing(
    document, tiny_bundle, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "PART_IMAGES", 5)
    left, scores = [7], module._scores

    def stopping(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return scores(*arguments)

    monkeypatch.setattr(module, "_scores", stopping)
    folder = tmp_path / "anew"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        measure_anomaly(tiny_bundle, PLAN, folder)
    assert list(folder.glob(".verdicts-*.npz"))
    left[0] = 4 * 3 - 7  # parts that are left, and no more
    again, _ = measure_anomaly(tiny_bundle, PLAN, folder)
    assert {**again, "date": 0} == {**document, "date": 0}


def test_the_report_says_what_is_missed_and_how_it_was_measured(document):
    document = json.loads(json.dumps(document, allow_nan=False))
    text = anomaly_markdown(document)
    for word in ("verdict AUROC", "log p alone", "| own | 15 |", "inverted", "nats", "seed 0"):
        assert word in text
    for name in document["scores"]:
        assert not name.startswith("p/") or f"| {name.removeprefix('p/')} |" in text
    assert (
        "iafvae-train evaluate-anomaly --bundle BUNDLE --against noisy:60,inverted,draws "
        "--split test --importance-samples 1 --limit 15 --seed 0"
    ) in text
    assert anomaly_picture(document).startswith(b"\x89PNG")
    assert anomaly_table(document).row_count == 4

    def said(verdict, likelihood):
        auroc = {
            "verdict": {"value": verdict, "interval": None},
            "log_likelihood": {"value": likelihood, "interval": [likelihood, likelihood + 0.1]},
        }
        return failures({"sets": [{"name": "odd", "auroc": auroc}]})

    assert "misses some of (AUROC below 0.9): odd (0.70)" in said(0.7, 0.8)
    assert "tells each of these sets" in said(0.95, 0.8)
    assert "likelier than its own images (AUROC below 0.5): odd (0.20)" in said(0.95, 0.2)
    assert "likelier" not in said(0.95, 0.45)


def test_few_calibration_images_decide_nothing(own, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ALPHAS", (0.001, 0.01))  # of 200 images
    found, _ = measure_anomaly(tiny_bundle, PLAN, tmp_path)
    assert found["own"]["called_anomalous"]["0.001"] is None
    assert "| undecided |" in anomaly_markdown(found)


def test_what_has_no_verdict_is_one_line(own, tiny_bundle, tmp_path):
    with pytest.raises(EvaluationError, match=r"calibrated for K = 1, 16, 64: .*, not 3\."):
        measure_anomaly(tiny_bundle, AnomalyPlan(importance_samples=3), tmp_path)
    with pytest.raises(EvaluationError, match=str(tmp_path)):
        measure_anomaly(tmp_path, PLAN, tmp_path)


def test_what_is_not_at_hand_is_named_where_it_was_asked_for(own, tiny_bundle, tmp_path):
    shared = {"folder": tmp_path, "data_dir": tmp_path / "empty"}
    plan = AnomalyPlan(against=(f"folder:{tmp_path / 'none'}",), importance_samples=1)
    with pytest.raises(DataError):
        measure_anomaly(tiny_bundle, plan, **shared)
    found, _ = measure_anomaly(tiny_bundle, AnomalyPlan(limit=3, importance_samples=1), **shared)
    assert [entry["name"] for entry in found["sets"]] == [*MADE, DRAWS]


# --- the sets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.6, 1.0, 3.0])
def test_blurring_is_a_gaussian_with_mirrored_edges(sigma):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, 9, 12), np.uint8)
    exact = ndimage.gaussian_filter(
        pixels.astype(float), (0, 0, sigma, sigma), mode="reflect", radius=int(np.ceil(4 * sigma))
    )
    assert np.abs(blurred(pixels, sigma).astype(float) - exact).max() <= 0.51
    assert (blurred(np.full((1, 1, 7, 7), 93, np.uint8), sigma) == 93).all()


def test_noise_has_the_deviation_that_is_asked_for():
    grey = np.full((40, 1, 20, 20), 128, np.uint8)
    change = noisy(grey, 12.0, 0).astype(float) - 128
    assert change.std() == pytest.approx(12.0, rel=0.02)
    assert np.array_equal(noisy(grey, 12.0, 0), noisy(grey, 12.0, 0))
    assert not np.array_equal(noisy(grey, 12.0, 0), noisy(grey, 12.0, 1))


@pytest.mark.parametrize("kind", MADE)
def test_made_anomalies_are_functions_of_the_images_and_the_seed(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 12, 9), np.uint8)
    made = made_anomalies(pixels, kind, 5)[0]
    assert made.dtype == np.uint8
    assert made.shape == (256 if kind == "constants" else 6, 3, 12, 9)
    assert np.array_equal(made, made_anomalies(pixels, kind, 5)[0])
    drawn = kind in ("noise", "noisy", "shuffled", "defects")
    assert np.array_equal(made, made_anomalies(pixels, kind, 6)[0]) == (not drawn)
    assert not np.array_equal(made[:6], pixels)


def test_mirrors_and_shuffles_keep_what_they_should():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 2, 9, 12), np.uint8)
    assert np.array_equal(made_anomalies(pixels, "inverted", 0)[0], 255 - pixels)
    flipped = made_anomalies(pixels, "flipped", 0)[0]
    assert np.array_equal(flipped[:, :, 0], pixels[:, :, -1])
    assert np.array_equal(made_anomalies(pixels, "thresholded", 0)[0], 255 * (pixels >> 7))
    mixed = made_anomalies(pixels, "shuffled:4", 0)[0]
    assert np.array_equal(mixed[:, :, 8:], pixels[:, :, 8:])  # what fills no square

    def squares(images):  # of one image, as a multiset
        cut = [images[:, y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4, 8)]
        return sorted(square.tobytes() for square in cut)

    assert all(squares(a) == squares(b) for a, b in zip(mixed, pixels, strict=True))
    moved = [not np.array_equal(a, b) for a, b in zip(mixed, pixels, strict=True)]
    assert np.mean(moved) > 0.9
    halves, words = made_anomalies(pixels, "shuffled:100", 0)
    assert not np.array_equal(halves, pixels)
    assert f"squares of {min(pixels.shape[2:]) // 2} pixels" in words


def test_defects_lie_where_their_masks_say():
    pixels = np.random.default_rng(0).integers(0, 256, (500, 1, 10, 8), np.uint8)
    spoilt, masks = planted_defects(pixels, seed=2)
    assert masks.shape == (500, 10, 8)
    assert (masks.sum(axis=(1, 2)) == 16).all()
    assert np.array_equal(spoilt[:, 0][~masks], pixels[:, 0][~masks])
    hidden, shown = (images[:, 0][masks].reshape(500, 16) for images in (pixels, spoilt))
    assert (shown == shown[:, :1]).all()
    contrast = shown[:, 0] - hidden.mean(axis=1)
    assert np.abs(np.abs(contrast) - 128).max() <= 0.5
    tops, lefts = masks.any(axis=2).argmax(axis=1), masks.any(axis=1).argmax(axis=1)
    assert set(tops) == set(range(7))  # anywhere, the edges too
    assert set(lefts) == set(range(5))
    assert np.array_equal(spoilt, made_anomalies(pixels, "defects", 2)[0])
    assert planted_defects(pixels, seed=2, side=9)[1].sum() == 500 * 64  # as large as fits


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_images_of_another_shape_are_fitted_as_the_service_does(monkeypatch, tmp_path, fit):
    digits = np.random.default_rng(0).integers(0, 256, (2, 1, 12, 20), np.uint8)
    monkeypatch.setattr(
        anomaly_sets, "load_dataset", lambda *_, **__: ImageData(digits, "d", "test")
    )
    own = np.zeros((2, 3, 8, 8), np.uint8)
    options = {"split": "test", "count": None, "seed": 0, "data_dir": None, "fit": fit}
    size = (3, 8, 8)
    served = fit_array(digits, size, Fit(resize=True, convert=True, how=fit))
    assert np.array_equal(image_set("mnist", own, **options).pixels, served.images)
    for i, image in enumerate(digits):
        Image.fromarray(image[0]).save(tmp_path / f"{i}.png")
    found = image_set(f"folder:{tmp_path}", own, **options)  # all of it, whatever their names say
    assert np.array_equal(found.pixels, served.images)


def test_the_names_of_sets(monkeypatch, tmp_path):
    own = np.zeros((3, *SHAPE), np.uint8)
    assert default_names("fashion-mnist") == ("mnist", "cifar10", *MADE, DRAWS)
    assert default_names("cifar10")[:2] == ("mnist", "fashion-mnist")
    for digits in ("mnist", "mnist-static"):  # the same are no foreign images
        assert default_names(digits)[:2] == ("fashion-mnist", "cifar10")

    def images(name, split, data_dir, **options):
        return ImageData(np.zeros((9, 3, 16, 16), np.uint8), name, split)

    monkeypatch.setattr(anomaly_sets, "load_dataset", images)
    options = {"split": "test", "count": 4, "seed": 0, "data_dir": None}
    found = image_set("cifar10", own, **options)
    assert found.pixels.shape == (4, *SHAPE)
    assert found.description == "test images of cifar10, made 1x4x4 of 3x16x16"
    (tmp_path / "bad").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "bad" / "0.png")
    folder = image_set(f"folder:{tmp_path / 'bad'}", own, **options)
    assert folder.name == "a folder of images bad"
    assert "folder:PATH" in AnomalyPlan(against=(f"folder:{tmp_path}",)).command
    for wrong in ("svhn", "constants:3", "noisy:x", "blurred:0", "noisy:nan", "defects:1.5"):
        with pytest.raises(ConfigError, match="--against"):
            image_set(wrong, own, **options)
    with pytest.raises(ConfigError, match="more than once"):
        AnomalyPlan(against=("mnist", "mnist"))
    with pytest.raises(ConfigError, match="--limit"):
        AnomalyPlan(limit=1)
