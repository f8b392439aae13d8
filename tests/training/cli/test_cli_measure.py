"""`iafvae-train evaluate-anomaly` and `bound` as people run them: measure, interrupt, go on."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import build_model
from model.config import ConvVaeConfig
from service.bundle import load_bundle
from training.cli.main import main
from training.data import ImageData
from training.evaluate import bound as bound_module
from training.evaluate import subject as subject_module
from training.export import run as exporting
from training.runs.checkpoint import save_checkpoint

CONFIG = ConvVaeConfig(image_shape=(1, 8, 8), channels=(4,), hidden=8, latent_dim=4)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    run_dir = tmp_path / "tiny"
    run_dir.mkdir()
    config = {"preset": "mnist", "model": CONFIG.to_dict(), "data": {"name": "mnist"}}
    (run_dir / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = build_model(CONFIG)
    save_checkpoint(
        run_dir,
        7,
        model_state=model.state_dict(),
        ema_state=dict(model.named_parameters()),
        optim_tensors={},
        state={},
    )

    def images(name, split, data_dir, **options):
        generator = np.random.default_rng(len(split))
        return ImageData(generator.integers(0, 256, (12, 1, 8, 8), np.uint8), name, split)

    monkeypatch.setattr(subject_module, "load_dataset", images)
    return run_dir


def small_images(name, split, data_dir, **options):
    return ImageData(np.zeros((3, 1, 4, 4), np.uint8), name, split)


@pytest.fixture
def call(monkeypatch, capsys):
    def called(*words) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["iafvae-train", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, " ".join(err.split())

    return called


BOUND = ("--k", "1,4", "--images", 6, "--device", "cpu")
SETS = ("--against", "constants,draws", "--limit", 6, "--importance-samples", 1)


def test_results_lie_in_the_run_and_go_into_its_bundle(run, call, tmp_path, monkeypatch) -> None:
    code, out, err = call("bound", run, *BOUND)
    assert not code, err
    assert "Active units" not in out  # of four draws there are none to tell
    stems = {path.name.partition(".")[0] for path in run.iterdir() if path.is_file()}
    name = "bound-test-k1-4-step-00000007-ema-of6"
    assert stems == {"config", name}  # and nothing hidden is left
    assert (run / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (run / f"{name}.md").read_text().startswith("| K |")
    monkeypatch.setattr(exporting, "export_bundle", lambda *arguments, **_: arguments[2].findings)
    findings = exporting.export_run(run, tmp_path / "bundle", calibrate=False)
    assert findings.pictures.keys() == {"bound.png"}


def test_verdicts_on_other_images_go_into_a_bundles_card(
    tiny_bundle, tiny_model, call, tmp_path, monkeypatch
) -> None:
    """Its own images are a folder's: no data set has its shape."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "tiny")
    for i, image in enumerate(tiny_model.images(80)):
        (tmp_path / "own").mkdir(exist_ok=True)
        Image.fromarray(image[0]).save(tmp_path / "own" / f"{i}.png")
    command = ("evaluate-anomaly", "--bundle", bundle, "--data", f"folder:{tmp_path / 'own'}")
    code, out, err = call(*command, *SETS, "--out", tmp_path / "out", "--into-card", "--json")
    assert not code, err
    (written,) = (tmp_path / "out").glob("*.json")
    name = written.stem
    assert name.startswith("verdicts-test-k1-tiny-1.2.3-constants-draws-first6-folder-")
    document = json.loads(out)
    assert document == json.loads(written.read_text())
    assert "--bundle BUNDLE --data folder:PATH --against constants,draws" in document["command"]
    assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "out").iterdir())) == 3  # and nothing hidden is left
    card = load_bundle(bundle).read("MODEL_CARD.md").decode()
    assert (tmp_path / "out" / f"{name}.md").read_text().strip() in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    "changes",
    [("--seed", 1), ("--limit", 9), ("--images", 5), ("--k", "2,4")],
    ids=lambda each: each[0],
)
def test_another_measurement_takes_no_place_of_one_that_is_there(run, call, changes) -> None:
    ran = [call("bound", run, *BOUND, *more, "--json") for more in ((), changes)]
    assert [code for code, *_ in ran] == [0, 0], ran
    found = [json.loads(path.read_text()) for path in sorted(run.glob("bound-*.json"))]
    assert len(found) == 2
    assert all(json.loads(out) in found for _, out, _ in ran)


def test_a_bundle_of_a_folder_is_measured_on_the_folder_that_is_named(
    tiny_bundle, tiny_model, call, tmp_path
):
    for name in ("own", "others"):
        (tmp_path / name).mkdir()
        for i, image in enumerate(tiny_model.images(8)):
            Image.fromarray(image[0]).save(tmp_path / name / f"{i}.png")
    command = ("bound", "--bundle", tiny_bundle, *BOUND, "--out", tmp_path / "out")
    code, _, err = call(*command)
    assert code == 1
    assert "say which images to use with --data" in err
    for name in ("own", "others"):
        code, out, err = call(*command, "--data", f"folder:{tmp_path / name}", "--json")
        assert not code, err
        told = json.loads(out)["command"]
        assert told.startswith("iafvae-train bound --bundle BUNDLE --data folder:PATH --split test")
    assert len(list((tmp_path / "out").glob("bound-*.json"))) == 2


def test_an_evaluation_under_another_seed_takes_no_others_place(run, call) -> None:
    for seed in (0, 1):
        code, _, err = call("evaluate", run, "--importance-samples", 2, "--seed", seed)
        assert not code, err
    found = [json.loads(path.read_text()) for path in sorted(run.glob("evaluation-*.json"))]
    assert sorted(each["seed"] for each in found) == [0, 1]


def test_folders_are_told_apart_without_their_paths(tiny_bundle, tiny_model, call, tmp_path):
    for name in ("own", "a/bad", "b/bad", "b/worse"):
        (tmp_path / name).mkdir(parents=True)
        for i, image in enumerate(tiny_model.images(8)):
            Image.fromarray(image[0]).save(tmp_path / name / f"{i}.png")
    against = ",".join(f"folder:{tmp_path / name}" for name in ("a/bad", "b/bad", "b/worse"))
    command = ("evaluate-anomaly", "--bundle", tiny_bundle, "--data", f"folder:{tmp_path / 'own'}")
    code, out, err = call(*command, "--against", against, "--out", tmp_path / "out", "--json")
    assert not code, err
    assert str(tmp_path) not in out
    for name in ("bad", "bad (2)", "worse"):
        assert f'"a folder of images {name}"' in out
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert all("-bad-bad-worse-" in name for name in names)
    assert not any(part in name for name in names for part in tmp_path.parts if len(part) > 3)


def test_where_a_report_cannot_be_is_said_before_the_work(run, call, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(subject_module, "load_dataset", None)
    report = tmp_path / "file" / "x.json"
    code, _, err = call("evaluate", run, "--importance-samples", 2, "--report", report)
    assert code == 1
    assert "file" in err
    assert "Traceback" not in err


def test_ctrl_c_keeps_what_was_measured(run, call, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(bound_module, "PART_ROWS", 8)
    measure, seen = bound_module.nested_sums, []

    def counted(*arguments, **options):
        seen.append(1)
        if stop_after and len(seen) > stop_after:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(bound_module, "nested_sums", counted)
    stop_after = 0
    code, whole, _ = call("bound", run, *BOUND, "--json", "--out", tmp_path / "whole")
    assert not code
    parts = len(seen)
    seen.clear()
    stop_after = 3
    code, _, err = call("bound", run, *BOUND)
    assert code == 130
    assert "goes on from there" in err
    assert list(run.glob(".bound-*.npz"))
    seen.clear()
    stop_after = parts - 3
    code, again, err = call("bound", run, *BOUND, "--json")
    assert not code, err
    assert json.loads(again) == json.loads(whole)
    assert not list(run.glob(".bound-*"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("bound",), "either a run directory or --bundle"),
        (("bound", "x", "--bundle", "y"), "either a run directory or --bundle"),
        (("bound", "RUN", "--k", "1,x"), "--k takes whole numbers"),
        (("bound", "RUN", "--k", "0,2"), "--k takes numbers from 1"),
        (("bound", "RUN", "--split", "train"), "--split is one of test, validation"),
        (("bound", "nowhere"), "config.json"),
        (("bound", "--bundle", "nowhere", "--out", "."), "nowhere is no directory"),
    ],
)
def test_what_is_wrong_is_one_line(run, call, words, named) -> None:
    words = [run if word == "RUN" else word for word in words]
    code, _, err = call(*words, "--device", "cpu")
    assert code == 1
    assert named in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--bundle", "nowhere"), "nowhere is no directory"),
        (("--bundle", "BUNDLE", "--split", "train"), "--split is one of test, validation"),
        (("--bundle", "BUNDLE"), "say which images to use with --data"),
        (("--bundle", "BUNDLE", "--data", "mnist", "--against", "svhn"), "is none of mnist"),
        (("--bundle", "BUNDLE", "--importance-samples", "5"), "as --importance-samples, not 5"),
    ],
)
def test_what_is_wrong_with_a_bundle_is_one_line(
    tiny_bundle, call, tmp_path, monkeypatch, words, named
) -> None:
    monkeypatch.setattr(subject_module, "load_dataset", small_images)
    words = [tiny_bundle if word == "BUNDLE" else word for word in words]
    code, _, err = call("evaluate-anomaly", *words, "--out", tmp_path)
    assert code == 1
    assert named in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
