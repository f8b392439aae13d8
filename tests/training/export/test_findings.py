"""What was measured of exactly these weights goes into the card, and nothing else does."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from service.bundle.manifest import manifest_from_json
from training.config import run_preset
from training.data.licences import data_note
from training.errors import TrainingError
from training.export.card import model_card
from training.export.findings import Findings, gather
from training.runs.directory import write_config

IDENTITY = {"step": 200, "weights": "ema", "weights_sha256": "abc"}


def bound(images=50, k=16, **changes):
    row = {
        "importance_samples": k,
        "images": images,
        "value_nats": -81.25,
        "standard_error_nats": 0.5,
        "monte_carlo_error": 0.01,
        "bits_per_dim": 0.15,
        "value_on_common_nats": -81.25,
        "common_images": images,
    }
    return {
        "kind": "bound",
        "model": "somebodys-run",
        "dataset": "mnist",
        "split": "test",
        "images": images,
        "rows": [row],
        "elbo": {"value_nats": -83.0, "standard_error_nats": 0.5},
        "kl_nats": {"z": 25.0},
        "latents": {"z": 32},
        "effective_share": 0.2,
        "active_units": {"z": 27},
        "latent_kl_nats": [1.5, 0.25],
        "protocol": "Told how.",
        "command": "iafvae-train bound RUN",
        **IDENTITY,
        **changes,
    }


def verdicts(day=1, value=0.25, **changes):
    described = {
        "name": "mnist",
        "description": "digits",
        "images": 50,
        "shown": {"mean": 1.5, "standard_error": 0.1},
        "called_anomalous": {"0.01": 0.5, "0.05": None},
        "histogram": [1, 2, 1],
    }
    figure = {"value": value, "interval": [value - 0.02, value + 0.02]}
    scores = ("verdict", "log_likelihood", "largest_box", "p/level")
    detection = {name: dict.fromkeys(scores, figure) for name in ("auroc", "aupr", "fpr95")}
    return {
        "kind": "verdicts",
        "model": "somebodys 1.0.0",
        "dataset": "fashion-mnist",
        "split": "test",
        "images": 50,
        "importance_samples": 16,
        "seed": 0,
        "unit": "bits/dim",
        "calibration_images": 2500,
        "scores": {name: {"anomalous": "low", "meaning": "the bound"} for name in scores},
        "own": described,
        "sets": [{**described, "name": "digits", **detection}],
        "histogram_edges": [0.0, 1.0, 2.0, 3.0],
        "histogram_scale": None,
        "machine": "a machine",
        "date": f"2026-11-{day:02d}T10:00:00+00:00",
        "command": "iafvae-train evaluate-anomaly --bundle BUNDLE",
        **IDENTITY,
        **changes,
    }


def write(folder: Path, name: str, content: object) -> None:
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_config(tmp_path, run_preset("mnist"), {})
    return tmp_path


def test_the_results_of_these_weights_on_test_images_are_taken(run: Path) -> None:
    write(run, "bound-test-k16-a", bound(images=50))
    write(run, "bound-test-k1000-b", bound(images=10, k=1000))
    write(run, "bound-test-k64-c", bound(images=50, k=64))
    write(run, "bound-test-k512-d", bound(images=900, k=512, weights_sha256="of others"))
    write(run, "bound-validation-k256-e", bound(images=900, k=256, split="validation"))
    write(run, "verdicts-test-k16-a", verdicts())
    write(run, "verdicts-test-k16-b", verdicts(day=3, value=0.125))
    write(run, "verdicts-test-k16-c", verdicts(day=2))
    write(run, "verdicts-test-k16-d", verdicts(day=4, weights_sha256="of others"))
    findings = gather(run, IDENTITY, "mnist 1.0.0")
    assert "| 64 | 50 | -81.250 |" in findings.bound
    assert "| 1000 |" not in findings.bound
    assert "iafvae-train bound RUN" in findings.bound
    assert "digits (0.12)" in findings.verdicts  # the newest
    assert "50.0% | undecided" in findings.verdicts
    assert findings.curve == ""  # no metrics here
    assert set(findings.pictures) == {"bound.png", "anomaly.png"}
    assert all(len(picture) < 60_000 for picture in findings.pictures.values())
    nothing = gather(run, {**IDENTITY, "step": 199, "weights_sha256": "new"}, "mnist 1.0.0")
    assert nothing == Findings()


def test_verdicts_belong_to_the_calibration_that_gave_them(run: Path) -> None:
    write(run, "bound-test-k16-a", bound())
    write(run, "verdicts-test-k16-a", verdicts(calibration=hashlib.sha256(b"ranks").hexdigest()))
    findings = gather(run, IDENTITY, "mnist 1.0.0")
    assert findings.of_calibration(b"ranks") == findings
    for other in (b"of other images", None):
        kept = findings.of_calibration(other)
        assert (kept.verdicts, set(kept.pictures)) == ("", {"bound.png"})
        assert kept.bound == findings.bound
    write(run, "verdicts-test-k16-b", verdicts(day=2))  # of before it was noted
    assert gather(run, IDENTITY, "mnist 1.0.0").of_calibration(b"ranks").verdicts == ""


def test_the_curve_ends_where_the_weights_are_from(run: Path) -> None:
    figures = {"elbo_nats": -90.0, "bits_per_dim": 1.0}
    records = [
        {"step": step, "kind": kind, "images_per_second": 128.0, **figures}
        for step in (60, 120, 180, 240)
        for kind in ("train", "validation")
    ]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    findings = gather(run, IDENTITY, "mnist 1.0.0")
    assert findings.curve.startswith("3.0 minutes, 180 steps of 128 images, 3 epochs")
    assert findings.pictures.keys() == {"curve.png"}


@pytest.mark.parametrize("content", ["[]", "{", '{"kind": "curve"}', '{"kind": "bound"}'])
def test_a_spoilt_result_is_named(run: Path, content: str) -> None:
    (run / "bound-test.json").write_text(content)
    with pytest.raises(TrainingError, match=r"bound-test\.json is no result"):
        gather(run, IDENTITY, "mnist 1.0.0")


def test_a_card_holds_what_was_found(run: Path, tiny: ModuleType, tmp_path: Path) -> None:
    write(run, "bound-test-k16-a", bound())
    write(run, "verdicts-test-k16-a", verdicts())
    findings = gather(run, IDENTITY, "mnist 1.0.0")
    findings = replace(
        findings, curve="3.0 minutes", pictures={**findings.pictures, "curve.png": b""}
    )
    manifest = the_manifest(tiny, tmp_path / "tiny")
    calls = [
        {"step": 0, "command": "iafvae-train fit", "threads": 1},
        {"step": 9, "command": "iafvae-train fit --resume", "threads": 2},
    ]
    training = {"data": "cifar10", "calls": calls}
    manifest = manifest.model_copy(update={"training": training})
    card = model_card(manifest, reconstructions=False, findings=findings)
    for words in (
        "## The bound by the number of draws",
        "![bound](bound.png)",
        "## Verdicts",
        "finds these likelier than its own images",
        "![anomaly](anomaly.png)",
        "![curve](curve.png)",
        "3.0 minutes",
        "| 9 | iafvae-train fit --resume | threads 2 |",
        "Licence: none is stated",
        "## What it is not for",
    ):
        assert words in card
    assert "somebodys-run" not in card
    plain = model_card(manifest, reconstructions=False)
    for words in ("## Verdicts", "bound.png", "curve.png"):
        assert words not in plain
    assert "## Data" in plain


def the_manifest(tiny: ModuleType, path: Path):
    tiny.write_tiny_bundle(path)
    return manifest_from_json(json.loads((path / "manifest.json").read_text()))


def test_every_data_set_has_its_licence() -> None:
    assert "ShareAlike 3.0" in data_note("mnist")
    assert "50,000 official training images" in data_note("cifar10")
    assert "MIT" in data_note("fashion-mnist")
    assert "theirs to state" in data_note("a folder of images")
