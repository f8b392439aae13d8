"""`--with-validation`: a model's last epochs, on the images that chose its settings, too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.training.fit.conftest import Call
from training.fit.fit import run_images
from training.runs.checkpoint import load_checkpoint
from training.runs.directory import read_config
from training.runs.metrics import read_metrics

SMALL = (
    *("--set", "model.latent_dim=4", "--set", "model.hidden=16", "--set", "model.channels=[4,6]"),
    *("--set", 'model.posterior={"kind":"iaf","steps":1,"hidden":[8]}', "--batch-size", "16"),
    *("--kl-warmup-epochs", "0", "--compile", "off"),
)
RESUME = ("fit", "--resume", "--compile", "off")


def images(folder: Path, seed: int) -> None:
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for i in range(60):
        pixels = generator.integers(0, 256, (2, 2), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")


def test_the_last_epochs_are_of_all_images_but_those_of_calibration_and_test(
    tmp_path: Path, call: Call
) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    images(photos, 0)
    code, said = call(
        "fit", "--data", f"folder:{photos}", "--epochs", "2", *SMALL, "--out", str(run)
    )
    assert code == 0, said
    train, validation = run_images(read_config(run), None, lambda _: None)
    before = load_checkpoint(run)
    assert before.state["images"]["count"] == len(train)

    more = (*RESUME, "--with-validation", "--epochs", "3", "--out", str(run))
    code, said = call(*more)
    assert code == 0, said
    both = len(train) + len(validation)
    assert f"{both} images to train on, the {len(validation)} to validate on among them" in said
    assert "validation ELBO" not in said
    assert "of 9, seen ELBO" in said
    config = read_config(run)
    assert config.data.with_validation
    pixels = run_images(config, None, lambda _: None)[0].pixels
    assert pixels.tobytes() == train.pixels.tobytes() + validation.pixels.tobytes()
    kinds = [r["kind"] for r in read_metrics(run) if r["step"] > before.step]
    assert set(kinds) == {"train", "seen"}
    document = json.loads((run / "config.json").read_text())
    assert "--with-validation" in document["environment"]["calls"][-1]["command"]

    code, said = call(*RESUME, "--epochs", "4", "--out", str(run))  # it stays so
    assert code == 0, said
    assert load_checkpoint(run).state["images"]["count"] == both
    code, said = call("evaluate", str(run), "--split", "validation")
    assert code == 1
    assert "trained with its validation images" in said
    assert call("evaluate", str(run), "--split", "calibration")[0] == 0
    code, said = call("fit-prior", str(run), "--out", str(tmp_path / "flow"))
    assert code == 1
    assert "fit the prior before `fit --with-validation`" in said
    code, said = call("export", str(run), "--out", str(tmp_path / "bundle"), "--no-calibration")
    assert code == 0, said
    bundle = ("evaluate", "--bundle", str(tmp_path / "bundle"), "--split", "validation")
    code, said = call(*bundle)
    assert code == 1
    assert "trained with its validation images" in said
    assert call(*bundle, "--data", f"folder:{photos}", "--limit", "2")[0] == 0  # as is asked for


def test_images_that_came_since_are_not_taken_for_validation_images(
    tmp_path: Path, call: Call
) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    images(photos, 0)
    code, said = call(
        "fit", "--data", f"folder:{photos}", "--epochs", "1", *SMALL, "--out", str(run)
    )
    assert code == 0, said
    for i in range(20):  # behind the others in the order of names, most of them for training
        Image.new("L", (8, 8), i).save(photos / f"z{i:03d}.png")
    code, said = call(*RESUME, "--with-validation", "--epochs", "2", "--out", str(run))
    assert code == 1
    assert "not those that the run was started with" in said


def test_other_images_are_refused_with_it_as_without(tmp_path: Path, call: Call) -> None:
    photos, others, run = tmp_path / "photos", tmp_path / "others", tmp_path / "run"
    images(photos, 0)
    images(others, 1)
    code, said = call(
        "fit", "--data", f"folder:{photos}", "--epochs", "1", *SMALL, "--out", str(run)
    )
    assert code == 0, said
    code, said = call(
        *(*RESUME, "--with-validation", "--epochs", "2"),
        *("--data", f"folder:{others}", "--out", str(run)),
    )
    assert code == 1
    assert "not those that the run was started with" in said
    assert not read_config(run).data.with_validation
