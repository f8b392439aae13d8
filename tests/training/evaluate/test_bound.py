"""The bound by K: the same figures as an evaluation's, nested, and kept through Ctrl-C."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from model import build_model
from model.config import ConfigError, ConvVaeConfig, DiagonalPosterior, ResnetVaeConfig
from training.data import ImageData, drawn_pixels
from training.errors import EvaluationError
from training.evaluate import bound as module
from training.evaluate.bound import BoundPlan, measure_bound
from training.evaluate.bound_report import bound_markdown, bound_picture, bound_table
from training.evaluate.evaluate import evaluate_model
from training.evaluate.resume import Partial
from training.evaluate.scorers import ModelScorer
from training.evaluate.subject import Subject

SHAPE = (1, 8, 8)
IMAGES = ImageData(
    np.random.default_rng(0).integers(0, 256, (30, *SHAPE), np.uint8), "grey", "test"
)


def subject_of(posterior=None, likelihood="bernoulli"):
    torch.manual_seed(0)
    config = ConvVaeConfig(
        image_shape=SHAPE, likelihood=likelihood, channels=(4,), hidden=8, latent_dim=4
    )
    model = build_model(replace(config, posterior=posterior) if posterior else config).eval()
    with torch.no_grad():  # away from a posterior that is the prior
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return Subject(
        scorer=ModelScorer(model),
        name="tiny",
        identity={"step": 1, "weights": "ema", "weights_sha256": "0"},
        words="RUN",
        stem="step-1-ema",
        images=lambda _: IMAGES,
    )


@pytest.fixture(scope="module")
def subject():
    return subject_of()


PLAN = BoundPlan(ks=(1, 5, 48), seed=3)


def test_every_k_has_the_figures_of_an_evaluation_with_its_draws(subject, tmp_path):
    document, _ = measure_bound(subject, PLAN, tmp_path)
    for row in document["rows"]:
        k = row["importance_samples"]
        report = evaluate_model(subject.scorer, IMAGES, importance_samples=k, seed=3)
        wanted = report.importance_weighted
        assert row["value_nats"] == pytest.approx(wanted.value_nats, abs=1e-6)
        assert row["standard_error_nats"] == pytest.approx(wanted.standard_error_nats, abs=1e-6)
        assert row["bits_per_dim"] == pytest.approx(wanted.bits_per_dim, abs=1e-8)
        if k > 1:
            assert row["monte_carlo_error"] == pytest.approx(
                wanted.monte_carlo_error_nats, rel=1e-4
            )
    assert document["active_units"] == report.active_units
    assert document["kl_nats"]["z"] == pytest.approx(report.kl_nats["z"], abs=1e-6)
    assert document["elbo"]["value_nats"] == pytest.approx(report.elbo.value_nats, abs=1e-6)
    # One draw's error, told by all 48: that of the mean of 48, times the root of 48.
    single = report.elbo.monte_carlo_error_nats * math.sqrt(48)
    assert document["rows"][0]["monte_carlo_error"] == pytest.approx(single, rel=1e-4)


def test_the_bound_rises_with_k_and_its_gain_is_of_the_same_images(subject, tmp_path):
    plan = BoundPlan(ks=(1, 5, 48), images=12, seed=3)
    document, _ = measure_bound(subject, plan, tmp_path)
    whole, _ = measure_bound(subject, PLAN, tmp_path)
    rows = document["rows"]
    assert [row["images"] for row in rows] == [30, 30, 12]
    assert rows[1]["value_nats"] == pytest.approx(whole["rows"][1]["value_nats"], abs=1e-6)
    first = evaluate_model(subject.scorer, IMAGES.first(12), importance_samples=48, seed=3)
    assert rows[2]["value_nats"] == pytest.approx(first.importance_weighted.value_nats, abs=1e-6)
    common = [row["value_on_common_nats"] for row in rows]
    assert common == sorted(common)
    assert rows[2]["gain"]["value_nats"] == pytest.approx(common[2] - common[1], abs=1e-9)
    assert rows[2]["gain"]["standard_error_nats"] < rows[2]["standard_error_nats"]
    assert "K = 48 on the first 12 of them alone" in document["protocol"]
    alone, _ = measure_bound(subject, BoundPlan(ks=(48,), limit=12, seed=3), tmp_path)
    assert document["effective_share"] == pytest.approx(alone["effective_share"], rel=1e-6)


def test_nats_of_each_latent_are_the_divergence_in_closed_form(tmp_path):
    """A diagonal posterior is a Gaussian in each latent: KL = (m^2 + s^2 - 1 - log s^2) / 2."""
    subject = subject_of(DiagonalPosterior())
    document, _ = measure_bound(subject, BoundPlan(ks=(3000,), limit=12), tmp_path)
    model = subject.scorer.model
    x = model.likelihood.from_pixels(torch.from_numpy(drawn_pixels(IMAGES.pixels, 0)))
    with torch.no_grad():
        mean, log_scale = (t.double().numpy() for t in model.bottom_up(x)[:2])
    exact = 0.5 * (mean**2 + np.exp(2 * log_scale) - 1 - 2 * log_scale)
    assert np.allclose(document["latent_kl_nats"], exact[:12].mean(0), atol=0.04)
    assert sum(document["latent_kl_nats"]) == pytest.approx(document["kl_nats"]["z"], abs=0.1)


class Interrupting(ModelScorer):
    """A scorer that is stopped after so many images."""

    def __init__(self, scorer, images):
        vars(self).update(vars(scorer))
        self.left, self.seen = images, 0

    def images(self, pixels):
        if self.left <= 0:
            raise KeyboardInterrupt
        self.left -= len(pixels)
        self.seen += len(pixels)
        return super().images(pixels)


def test_an_interruption_loses_nothing_and_changes_nothing(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 48 * 4)
    (tmp_path / "whole").mkdir()
    whole, partial = measure_bound(subject, PLAN, tmp_path / "whole")
    assert partial.path.is_file()
    partial.remove()
    assert not partial.path.exists()
    with pytest.raises(KeyboardInterrupt):
        measure_bound(replace(subject, scorer=Interrupting(subject.scorer, 14)), PLAN, tmp_path)
    assert list(tmp_path.glob(".bound-*.npz"))
    rest = Interrupting(subject.scorer, 1000)
    again, _ = measure_bound(replace(subject, scorer=rest), PLAN, tmp_path)
    assert rest.seen == 30 - 16  # parts of four
    assert again == whole
    other = Interrupting(subject.scorer, 1000)
    measure_bound(replace(subject, scorer=other), replace(PLAN, seed=4), tmp_path)
    assert other.seen == 30  # another seed shares nothing


def test_a_partial_file_that_is_spoilt_is_made_again(tmp_path):
    partial = Partial(tmp_path, "bound", {"seed": 1}, count="iw")
    partial.add({"iw": np.ones(3)})
    partial.save()
    assert Partial(tmp_path, "bound", {"seed": 1}, count="iw").done == 3
    assert Partial(tmp_path, "bound", {"seed": 2}, count="iw").done == 0
    partial.path.write_bytes(partial.path.read_bytes()[:50])
    assert Partial(tmp_path, "bound", {"seed": 1}, count="iw").done == 0


def test_the_report_holds_the_figures(subject, tmp_path):
    document, _ = measure_bound(subject, BoundPlan(ks=(1, 16), limit=9), tmp_path)
    document = json.loads(json.dumps(document, allow_nan=False))
    text = bound_markdown(document)
    for row in document["rows"]:
        assert f"| {row['importance_samples']} | 9 | {row['value_nats']:.3f} |" in text
    assert "drawn once to 0 or 255" in text
    assert "nested" in text
    assert "iafvae-train bound RUN --split test --k 1,16 --seed 0 --limit 9" in text
    assert bound_picture(document).startswith(b"\x89PNG")
    assert bound_table(document).row_count == 2
    eight_bit, _ = measure_bound(subject_of(likelihood="discretized_logistic"), PLAN, tmp_path)
    assert "8-bit pixels as they are" in eight_bit["protocol"]


def test_what_cannot_be_measured_is_refused(subject, tmp_path):
    for wrong in ({"ks": (0, 1)}, {"ks": (5, 1)}, {"ks": ()}, {"ks": (5,), "images": 3}):
        with pytest.raises(ConfigError, match=r"--k|--images"):
            BoundPlan(**wrong)
    wide = ImageData(np.zeros((2, 1, 8, 9), np.uint8), "wide", "test")
    with pytest.raises(EvaluationError, match=r"images \(1, 8, 8\)"):
        measure_bound(replace(subject, images=lambda _: wide), PLAN, tmp_path)
    with pytest.raises(ConfigError, match="--out"):
        subject.place_for_results(None)


def test_a_ladder_tells_groups_not_latents(tmp_path):
    """Its lower layers' priors are no standard normals: moments of z would say nothing."""
    torch.manual_seed(0)
    config = ResnetVaeConfig(image_shape=(3, 8, 8), channels=4, z_channels=2, levels=(1, 1))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)
    images = ImageData(pixels, "colours", "test")
    ladder = replace(
        subject_of(), scorer=ModelScorer(build_model(config).eval()), images=lambda _: images
    )
    document, _ = measure_bound(ladder, BoundPlan(ks=(1, 16)), tmp_path)
    report = evaluate_model(ladder.scorer, images, importance_samples=16)
    assert document["active_units"] == report.active_units
    assert document["kl_nats"] == pytest.approx(report.kl_nats, abs=1e-4)
    assert document["latent_kl_nats"] is None
    assert "Nats of each latent" not in bound_markdown(document)
    assert bound_picture(document).startswith(b"\x89PNG")
