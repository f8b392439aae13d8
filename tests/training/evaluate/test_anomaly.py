"""Anomaly scores of sets against counting pairs; sets against independent computations."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from model import build_model
from model.config import ConfigError, ConvVaeConfig, ResnetVaeConfig
from training.data import ImageData
from training.errors import EvaluationError
from training.evaluate import anomaly as module
from training.evaluate import anomaly_sets
from training.evaluate.anomaly import AnomalyPlan, measure_anomaly
from training.evaluate.anomaly_report import (
    anomaly_markdown,
    anomaly_picture,
    anomaly_tables,
    failures,
)
from training.evaluate.anomaly_sets import (
    MADE,
    blurred,
    default_names,
    fitted,
    image_set,
    made_anomalies,
    noisy,
    planted_defects,
)
from training.evaluate.evaluate import evaluate_images
from training.evaluate.scorers import ModelScorer
from training.evaluate.subject import Subject, bundle_subject

SHAPE = (1, 8, 8)


def smooth(n, seed):
    """Images that are nothing like noise: a bright corner each."""
    generator = np.random.default_rng(seed)
    corner = generator.integers(100, 256, (n, 1, 1, 1))
    return (corner * np.linspace(1, 0, 8)[:, None] * np.ones(8)).astype(np.uint8)


OWN = {"test": ImageData(smooth(20, 0), "mine", "test")}
OWN["calibration"] = ImageData(smooth(40, 1), "mine", "calibration")


def subject_of(config, own, home):
    torch.manual_seed(0)
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    scorer = ModelScorer(model)

    @torch.inference_mode()
    def centre(pixels):
        eps = torch.zeros(len(pixels), scorer.facts.dim)
        return scorer.model.infer(scorer.images(pixels)[1], eps).prior_eps.double().numpy()

    return Subject(
        scorer=scorer,
        name="tiny",
        identity={"step": 1, "weights": "ema", "weights_sha256": "0"},
        words="RUN",
        stem="step-1-ema",
        images=own.__getitem__,
        centre=centre,
        home=home,
    )


CONFIG = ConvVaeConfig(
    image_shape=SHAPE, likelihood="discretized_logistic", channels=(4,), hidden=8, latent_dim=4
)
PLAN = AnomalyPlan(against=("constants", "noisy:60"), importance_samples=2, images=15)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return subject_of(CONFIG, OWN, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def document(subject):
    found, partials = measure_anomaly(subject, PLAN, subject.home)
    assert all(partial.path.is_file() for partial in partials)
    return found


def scores(subject, pixels):
    return evaluate_images(subject.scorer, pixels, importance_samples=2, seed=0)


def test_areas_are_those_that_counting_pairs_gives(subject, document):
    usual = OWN["test"].pixels[:15]
    mine = scores(subject, usual)
    sets = {
        "constants": np.arange(256, dtype=np.uint8)[:, None, None, None].repeat(64, 1),
        "noisy:60": noisy(usual, 60.0, 0),
    }
    assert [entry["name"] for entry in document["sets"]] == list(sets)
    for entry in document["sets"]:
        pixels = sets[entry["name"]].reshape(-1, *SHAPE)
        theirs = scores(subject, pixels)
        norms = [np.linalg.norm(subject.centre(images), axis=1) for images in (pixels, usual)]
        pairs = {
            "log_likelihood": (-theirs.importance_weighted, -mine.importance_weighted),
            "elbo": (-theirs.elbo, -mine.elbo),
            "reconstruction": (-theirs.log_px_z, -mine.log_px_z),
            "kl": (theirs.kl.sum(1), mine.kl.sum(1)),
            "norm": norms,
        }
        for name, (odd, plain) in pairs.items():
            wins = (odd[:, None] > plain).mean() + 0.5 * (odd[:, None] == plain).mean()
            assert entry["auroc"][name]["value"] == pytest.approx(wins, abs=5e-3), name
            low, high = entry["auroc"][name]["interval"]
            assert low <= entry["auroc"][name]["value"] <= high
            side = document["scores"][name]["anomalous"]
            assert side == ("high" if name in ("kl", "norm") else "low")
        assert sum(entry["histogram"]) == entry["images"] == len(pixels)


def test_p_values_rank_among_the_calibration_images(subject, document):
    assert document["calibration_images"] == 40  # all there are, more than --images
    reference = scores(subject, OWN["calibration"].pixels).importance_weighted
    found = scores(subject, noisy(OWN["test"].pixels[:15], 60.0, 0)).importance_weighted
    low = np.array([(1 + (reference <= value).sum()) / 41 for value in found])
    assert document["sets"][1]["flagged"]["p_value"] == pytest.approx((low <= 0.01).mean())
    assert "typicality" in document["sets"][0]["auroc"]


def test_an_interruption_loses_nothing_and_changes_nothing(
    subject, document, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "PART_ROWS", 10)
    left = [8]  # parts of five images
    measure = module.evaluate_images

    def stopping(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(module, "evaluate_images", stopping)
    mine = replace(subject, home=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        measure_anomaly(mine, PLAN, tmp_path)
    assert list(tmp_path.glob(".anomaly-*.npz"))
    left[0] = 3 + 52 + 3 + 8 - 8  # what is left and no more: own, constants, noisy, calibration
    again, _ = measure_anomaly(mine, PLAN, tmp_path)
    for name, entry, other in zip(PLAN.against, again["sets"], document["sets"], strict=True):
        for score in entry["auroc"]:
            mine, theirs = entry["auroc"][score]["value"], other["auroc"][score]["value"]
            assert mine == pytest.approx(theirs, abs=5e-3), (name, score)


def test_the_report_says_which_side_is_anomalous_and_what_fails(document):
    document = json.loads(json.dumps(document, allow_nan=False))
    text = anomaly_markdown(document)
    for word in ("IW-2 (low)", "KL (high)", "constants", "noisy:60", "bits/dim", "bootstrap"):
        assert word in text
    assert "iafvae-train evaluate-anomaly RUN --against constants,noisy:60" in text
    assert anomaly_picture(document).startswith(b"\x89PNG")
    assert [table.row_count for table in anomaly_tables(document)] == [3, 2, 2, 2]

    def said(value, *interval):
        auroc = {"log_likelihood": {"value": value, "interval": interval or None}}
        return failures({"sets": [{"name": "odd", "auroc": auroc}]})

    assert "finds these likelier" in said(0.2, 0.0, 0.4)
    assert "finds these likelier" in said(0.2)
    assert "does not tell" in said(0.4, 0.2, 0.6)
    assert "less likely" in said(0.9, 0.7, 1.0)


def test_a_pair_is_measured_in_both_directions(subject, tmp_path):
    noise = np.random.default_rng(5).integers(0, 256, (9, *SHAPE), np.uint8)
    theirs = {s: ImageData(noise, "noise", s) for s in ("test", "calibration")}
    other = subject_of(CONFIG, theirs, tmp_path)
    plan = AnomalyPlan(importance_samples=1, images=8)
    for one, two, names in (
        (subject, other, ("mine", "noise")),
        (other, subject, ("noise", "mine")),
    ):
        document, _ = measure_anomaly(one, plan, tmp_path, pair=two)
        assert (document["dataset"], *(e["name"] for e in document["sets"])) == names
        assert document["command"].startswith(
            "iafvae-train evaluate-anomaly RUN --pair RUN --split"
        )
        assert document["sets"][0]["images"] == 8


def test_a_ladder_has_an_area_for_each_group(tmp_path):
    config = ResnetVaeConfig(image_shape=(3, 8, 8), channels=4, z_channels=2, levels=(1, 1))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), np.uint8)
    own = {s: ImageData(pixels, "mine", s) for s in ("test", "calibration")}
    plan = AnomalyPlan(against=("blurred",), importance_samples=1)
    subject = subject_of(config, own, tmp_path)
    document, _ = measure_anomaly(subject, plan, tmp_path)
    groups = {f"kl/{name}" for name in subject.scorer.facts.kl_groups}
    assert len(groups) == 2
    assert groups < document["sets"][0]["auroc"].keys()
    assert "By the KL of each group alone" in anomaly_markdown(document)
    assert len(anomaly_tables(document)) == 5


def test_a_bundle_is_measured_with_its_own_calibration(tiny_bundle, tiny_model, tmp_path):
    subject = bundle_subject(tiny_bundle, device="cpu")
    pixels = tiny_model.images(6)
    eps = np.zeros((6, subject.scorer.facts.dim), np.float32)
    assert np.allclose(
        subject.centre(pixels), tiny_model.encode(pixels, eps)["prior_eps"], atol=1e-5
    )
    measured = replace(subject, images=lambda split: ImageData(pixels, "mine", split))
    k = next(iter(subject.calibration))
    plan = AnomalyPlan(against=("constants",), importance_samples=k)
    document, _ = measure_anomaly(measured, plan, tmp_path)
    assert document["calibration_images"] == len(subject.calibration[k])
    assert document["sha256"] == subject.identity["sha256"]
    uncalibrated = AnomalyPlan(against=("constants",), importance_samples=3)
    document, _ = measure_anomaly(measured, uncalibrated, tmp_path)
    assert document["calibration_images"] is None
    assert "typicality" not in document["sets"][0]["auroc"]
    with pytest.raises(EvaluationError, match=str(tmp_path)):
        bundle_subject(tmp_path)


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
    made = made_anomalies(pixels, kind, 5)
    assert made.dtype == np.uint8
    assert made.shape == (256 if kind == "constants" else 6, 3, 12, 9)
    assert np.array_equal(made, made_anomalies(pixels, kind, 5))
    drawn = kind in ("noisy", "shuffled", "defects")
    assert np.array_equal(made, made_anomalies(pixels, kind, 6)) == (not drawn)
    assert not np.array_equal(made[:6], pixels)


def test_mirrors_and_shuffles_keep_what_they_should():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 2, 9, 12), np.uint8)
    assert np.array_equal(made_anomalies(pixels, "inverted", 0), 255 - pixels)
    flipped = made_anomalies(pixels, "flipped", 0)
    assert np.array_equal(flipped[:, :, 0], pixels[:, :, -1])
    mixed = made_anomalies(pixels, "shuffled:4", 0)
    assert np.array_equal(mixed[:, :, 8:], pixels[:, :, 8:])  # what fills no square

    def squares(images):  # of one image, as a multiset
        cut = [images[:, y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4, 8)]
        return sorted(square.tobytes() for square in cut)

    assert all(squares(a) == squares(b) for a, b in zip(mixed, pixels, strict=True))
    moved = [not np.array_equal(a, b) for a, b in zip(mixed, pixels, strict=True)]
    assert np.mean(moved) > 0.9
    assert not np.array_equal(made_anomalies(pixels, "shuffled:100", 0), pixels)  # halves


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
    assert np.array_equal(spoilt, made_anomalies(pixels, "defects", 2))
    assert planted_defects(pixels, seed=2, side=9)[1].sum() == 500 * 64  # as large as fits


def test_images_of_another_shape_are_made_to_fit():
    digits = np.random.default_rng(0).integers(0, 256, (2, 1, 28, 28), np.uint8)
    colours = fitted(digits, (3, 32, 32))
    assert colours.shape == (2, 3, 32, 32)
    assert np.array_equal(colours[:, 1, 2:-2, 2:-2], digits[:, 0])
    assert not colours[:, :, :2].any()
    assert np.array_equal(fitted(colours, (1, 32, 32))[:, 0], colours[:, 0])  # equal channels
    blocks = digits.repeat(2, axis=2).repeat(2, axis=3)
    assert np.array_equal(fitted(blocks, (1, 28, 28)), digits)  # means of equal pixels


def test_the_names_of_sets(monkeypatch, tmp_path):
    own = smooth(3, 0)
    assert default_names("fashion-mnist") == ("mnist", *MADE)
    assert default_names("cifar10")[:2] == ("mnist", "fashion-mnist")

    def images(name, split, data_dir, **options):
        return ImageData(np.zeros((9, 3, 16, 16), np.uint8), name, split)

    monkeypatch.setattr(anomaly_sets, "load_dataset", images)
    options = {"split": "test", "count": 4, "seed": 0, "data_dir": None}
    found = image_set("cifar10", own, **options)
    assert found.pixels.shape == (4, *SHAPE)
    assert found.description == "test images of cifar10, made 1x8x8 of 3x16x16"
    folder = image_set(f"folder:{tmp_path}", own, **options)
    assert folder.name == "a folder of images"
    assert "folder:PATH" in AnomalyPlan(against=(f"folder:{tmp_path}",)).options
    for wrong in ("svhn", "constants:3", "noisy:x", "blurred:0", "noisy:nan", "defects:1.5"):
        with pytest.raises(ConfigError, match="--against"):
            image_set(wrong, own, **options)
    with pytest.raises(ConfigError, match="more than once"):
        AnomalyPlan(against=("mnist", "mnist"))
    with pytest.raises(ConfigError, match="--images"):
        AnomalyPlan(images=1)
