"""`widen`: a wider run computes what the trained one does, and trains on with all its parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.fit.conftest import Call
from training.errors import TrainingError
from training.runs.checkpoint import load_checkpoint, load_run
from training.runs.metrics import read_metrics

FLAT = ("--set", 'model.posterior={"kind":"iaf","steps":1,"hidden":[8]}', "--set")
LADDER = ("--preset", "cifar10-small", "--set", "model.levels=[1,1]", "--set", "model.channels=8")


def fitted(tmp_path: Path, call: Call, *settings: str) -> Path:
    photos, run = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    generator = np.random.default_rng(0)
    for i in range(60):
        pixels = generator.integers(0, 256, (2, 2), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(photos / f"{i:03d}.png")
    code, said = call(
        *("fit", "--data", f"folder:{photos}", "--batch-size", "16", "--epochs", "2"),
        *("--kl-warmup-epochs", "0", "--compile", "off", "--out", str(run), *settings),
    )
    assert code == 0, said
    return run


def test_a_wider_run_computes_the_same_and_uses_its_new_units(tmp_path: Path, call: Call) -> None:
    shape = ("model.latent_dim=4", "--set", "model.hidden=16", "--set", "model.channels=[4,6]")
    run, out = fitted(tmp_path, call, *FLAT, *shape), tmp_path / "wide"
    wider = ("--set", "model.channels=[4,8]", "--set", "model.hidden=20")
    code, said = call("widen", str(run), *wider, "--out", str(out))
    assert code == 0, said
    (_, old, _), (_, new, before) = load_run(run), load_run(out)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (old, new)]
    assert f"{sizes[1]:,} parameters, {sizes[0]:,} before" in said
    assert sizes[0] < sizes[1]
    with pytest.raises(TrainingError, match="averaged weights alone"):
        load_run(out, weights="raw")
    x, eps = torch.rand(32, 1, 8, 8), torch.randn(32, 4)
    with torch.no_grad():
        for was, now in zip(old(x, eps), new(x, eps), strict=True):
            torch.testing.assert_close(now, was, rtol=1e-4, atol=1e-3)
    config = json.loads((out / "config.json").read_text())
    assert (config["model"]["channels"], config["model"]["hidden"]) == ([4, 8], 20)
    assert "widen RUN --set model.channels=[4,8] --set model" in config["environment"]["command"]
    assert read_metrics(out) == read_metrics(run)
    taken = call("widen", str(run), *wider, "--out", str(out))
    assert taken[0] == 1
    assert "not empty" in taken[1]

    more = ("fit", "--resume", "--epochs", "4", "--compile", "off", "--out", str(out))
    code, said = call(*more)
    assert code == 0, said
    name = "encoder.blocks.2.first.v"  # the second block that halves the size; [8, 4, 3, 3]
    old_units_of_new = "decoder.project.v"
    moved = load_checkpoint(out).model
    assert before.model[name].shape == (8, 4, 3, 3)
    for key in (name, old_units_of_new):
        assert not torch.equal(moved[key], before.model[key])
    reads_new = "encoder.hidden.v"  # of the old units, those columns were zero
    columns = before.model[reads_new].shape[1] * 6 // 8
    assert not before.model[reads_new][:16, columns:].any()
    assert moved[reads_new][:16, columns:].any()


def test_what_is_no_widening_is_refused(tmp_path: Path, call: Call) -> None:
    shape = ("model.latent_dim=4", "--set", "model.hidden=16", "--set", "model.channels=[4,6]")
    run, out = fitted(tmp_path, call, *FLAT, *shape), tmp_path / "wide"
    for setting, why in (
        ("model.channels=[4,4]", "a layer narrower: widen only makes layers wider"),
        ("model.channels=[4,6,6]", "other layers"),
        ("model.posterior.hidden=[6]", "a layer narrower"),
        ("model.latent_dim=6", "leaves the latents"),
        ("model.image_shape=[1,16,16]", "wider layers of the model"),
        ("train.epochs=9", "wider layers of the model"),
        ("model.channels=[4,6]", "wider layers of the model"),  # as it is
        ("model.chanels=[8]", "no such field"),
    ):
        code, said = call("widen", str(run), "--set", setting, "--out", str(out))
        assert code in (1, 2)
        assert why in said
        assert not out.exists()


def test_autoregressive_layers_keep_their_units_among_those_of_their_degree(
    tmp_path: Path, call: Call
) -> None:
    posterior = '{"kind":"iaf","steps":2,"hidden":[7,10]}'  # 2, 1, 2, 1, 1 units of a degree
    shape = ("model.latent_dim=5", "--set", "model.hidden=16", "--set", "model.channels=[4,6]")
    settings = ("--set", f"model.posterior={posterior}", "--set", *shape)
    run, out = fitted(tmp_path, call, *settings), tmp_path / "wide"
    refused = call("widen", str(run), "--set", "model.posterior.hidden=[8,10]", "--out", str(out))
    assert refused[0] == 1  # 2, 2, 1, 2, 1
    assert "fewer units of some degree" in refused[1]
    wider = ("--set", "model.posterior.hidden=[10,13]", "--set", "model.hidden=20")
    code, said = call("widen", str(run), *wider, "--out", str(out))
    assert code == 0, said
    (_, old, _), (_, new, _) = load_run(run), load_run(out)
    x, eps = torch.rand(32, 1, 8, 8), torch.randn(32, 5)
    with torch.no_grad():
        for was, now in zip(old(x, eps), new(x, eps), strict=True):
            torch.testing.assert_close(now, was, rtol=1e-4, atol=1e-3)
    code, said = call("fit", "--resume", "--epochs", "3", "--compile", "off", "--out", str(out))
    assert code == 0, said
    first, trained = new.state_dict(), load_checkpoint(out).model
    name = "flow.steps.0.made.hidden.1.v"
    fresh = first[name].eq(0) & ~trained[name].eq(0)  # what old units now read of new ones
    assert fresh.any()


def test_maps_of_a_ladder_that_are_cut_into_parts_are_refused(tmp_path: Path, call: Call) -> None:
    run, out = fitted(tmp_path, call, *LADDER), tmp_path / "wide"
    given = ("--set", "model.channels=12", "--out", str(out))
    code, said = call("widen", str(run), *given)
    assert code == 1
    assert not out.exists(), said
