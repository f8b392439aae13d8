"""A stripped run is smaller, and still evaluated, exported and resumed."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ConvVaeConfig
from training.cli.main import main
from training.config import OptimConfig, RunConfig, Runtime, TrainConfig
from training.data import ImageData
from training.errors import CheckpointError, TrainingError
from training.fit.trainer import Trainer
from training.runs.checkpoint import load_checkpoint, load_run
from training.runs.directory import write_config
from training.runs.metrics import METRICS_FILE, read_metrics
from training.runs.strip import size_in_bytes, strip_run
from training.schedules import rewarming_at

EAGER = Runtime(device="cpu", compile="off", bf16="off", threads=1)
CONFIG = RunConfig(
    model=ConvVaeConfig(image_shape=(1, 8, 8), channels=(8,), hidden=64, latent_dim=8),
    optim=OptimConfig(batch_size=8, warmup_steps=4),
    train=TrainConfig(epochs=20),
)


@pytest.fixture(scope="module")
def data():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), np.uint8)
    return ImageData(pixels, "noise", "train")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> tuple[Path, Trainer]:
    out = tmp_path_factory.mktemp("run")
    trainer = Trainer(CONFIG, EAGER, data)
    for _ in range(9):
        trainer.train_step()
    trainer.save(out)
    write_config(out, CONFIG, {"torch": "9"})
    return out, trainer


def test_each_option_leaves_out_what_it_says(run, tmp_path):
    full = size_in_bytes(load_checkpoint(run[0]).path)
    sizes = {
        name: size_in_bytes(strip_run(run[0], tmp_path / name, ema_only=ema, bf16=bf16))
        for name, ema, bf16 in (
            ("plain", False, False),
            ("ema", True, False),
            ("small", True, True),
        )
    }
    for name, share in (("plain", 1 / 2), ("ema", 1 / 4), ("small", 1 / 8)):
        assert sizes[name] == pytest.approx(full * share, rel=0.15), name


def test_the_averaged_weights_are_the_runs(run, tmp_path):
    out, trainer = run
    _, plain, _ = load_run(strip_run(out, tmp_path / "plain").parent.parent)
    _, alone, _ = load_run(strip_run(out, tmp_path / "ema", ema_only=True).parent.parent)
    _, small, _ = load_run(strip_run(out, tmp_path / "bf16", ema_only=True, bf16=True).parents[1])
    for name, weight in trainer.average.named_parameters():
        assert torch.equal(plain.get_parameter(name), weight)
        assert torch.equal(alone.get_parameter(name), weight)
        rounded = small.get_parameter(name)
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, weight, rtol=2**-8, atol=0)
    _, raw, _ = load_run(tmp_path / "plain", weights="raw")
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(raw.get_parameter(name), weight)
    with pytest.raises(CheckpointError, match="averaged weights alone: use --weights ema"):
        load_run(tmp_path / "ema", weights="raw")


def test_one_checkpoint_of_a_run_can_be_stripped(run, tmp_path):
    path = load_checkpoint(run[0]).path
    assert strip_run(path, tmp_path / "out").name == path.name
    assert (tmp_path / "out" / "config.json").read_text() == (run[0] / "config.json").read_text()


def test_records_until_its_checkpoint_go_along(run, tmp_path):
    """Else all earlier steps would count at the first speed that is recorded when it goes on."""
    whole, records = tmp_path / "whole", [{"step": n, "kind": "train"} for n in (4, 9, 14)]
    shutil.copytree(run[0], whole)
    (whole / METRICS_FILE).write_text("".join(json.dumps(each) + "\n" for each in records))
    strip_run(whole, tmp_path / "out")
    assert read_metrics(tmp_path / "out") == records[:2]
    strip_run(run[0], tmp_path / "none")
    assert not (tmp_path / "none" / METRICS_FILE).exists()


def test_what_is_taken_or_no_run_is_refused(run, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(TrainingError, match="not empty: give another --out"):
        strip_run(run[0], tmp_path / "taken")
    with pytest.raises(TrainingError, match="holds no run"):
        strip_run(tmp_path / "taken", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ema_only", [False, True])
def test_a_stripped_run_goes_on_with_a_fresh_optimiser_that_begins_gently(
    run, data, tmp_path, ema_only
):
    strip_run(run[0], tmp_path, ema_only=ema_only)
    trainer = Trainer(CONFIG, EAGER, data)
    trainer.restore(load_checkpoint(tmp_path))
    source = run[1].average if ema_only else run[1].model
    before = {name: weight.detach().clone() for name, weight in source.named_parameters()}
    assert trainer.step == 9
    trainer.train_step()
    moved = max(
        (weight - before[name]).abs().max().item()
        for name, weight in trainer.model.named_parameters()
    )
    assert 0 < moved < 1.01 * CONFIG.optim.learning_rate / 4  # a quarter: one of 4 warm-up steps
    # From here on it is exact again: the fresh start is part of the checkpoint.
    trainer.save(tmp_path / "again")
    other = Trainer(CONFIG, EAGER, data)
    other.restore(load_checkpoint(tmp_path / "again"))
    for _ in range(4):
        trainer.train_step()
        other.train_step()
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name


def test_the_rate_rises_again_only_after_a_fresh_start():
    optim = replace(CONFIG.optim, warmup_steps=10)
    assert rewarming_at(optim, 500, 0, 1000) == 1.0
    assert [rewarming_at(optim, step, 500, 1000) for step in (500, 504, 509, 700)] == [
        pytest.approx(share) for share in (0.1, 0.5, 1.0, 1.0)
    ]
    assert rewarming_at(replace(optim, warmup_steps=0), 500, 500, 1000) == 1.0


def test_the_command_says_what_it_wrote(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    words = ["iafvae-train", "strip", str(run[0]), "--out", str(out), "--ema-only", "--bf16"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert re.search(r"step-00000009, \d+\.\d MB", capsys.readouterr().out)
    assert load_checkpoint(out).step == 9


def test_a_checkpoint_without_the_optimisers_state_is_half_as_large(run, data, tmp_path):
    trainer = run[1]
    full = size_in_bytes(trainer.save(tmp_path / "full"))
    half = size_in_bytes(trainer.save(tmp_path / "half", optimizer=False))
    assert half == pytest.approx(full / 2, rel=0.15)
    assert load_checkpoint(tmp_path / "half").optim == {}
