"""`iafvae-train anomaly` and `bound` as people run them: measure, interrupt, go on, export."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model import build_model
from model.config import ConvVaeConfig
from training.cli.main import main
from training.data import ImageData
from training.evaluate import anomaly as anomaly_module
from training.evaluate import bound as bound_module
from training.evaluate import run as evaluation
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

    monkeypatch.setattr(evaluation, "load_dataset", images)
    return run_dir


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
ANOMALY = ("--against", "constants", "--images", 6, "--importance-samples", 2, "--device", "cpu")


def test_results_lie_in_the_run_and_go_into_its_bundle(run, call, tmp_path, monkeypatch) -> None:
    code, out, err = call("bound", run, *BOUND)
    assert not code, err
    assert "Active units" not in out  # of four draws there are none to tell
    code, out, err = call("anomaly", run, *ANOMALY, "--json")
    assert not code, err
    document = json.loads(out)
    assert document == json.loads((run / "anomaly-test-k2-step-00000007-ema.json").read_text())
    assert "--against constants" in document["command"]
    stems = {path.name.partition(".")[0] for path in run.iterdir() if path.is_file()}
    names = {"bound-test-k4-step-00000007-ema", "anomaly-test-k2-step-00000007-ema"}
    assert stems == {"config", *names}  # and nothing hidden is left
    for name in names:
        assert (run / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (run / f"{name}.md").read_text().startswith(("| K |", "The", "Each"))
    monkeypatch.setattr(exporting, "export_bundle", lambda *arguments, **_: arguments[2].findings)
    findings = exporting.export_run(run, tmp_path / "bundle", calibrate=False)
    assert findings.pictures.keys() == {"bound.png", "anomaly.png"}
    assert document["command"] in findings.failures


@pytest.mark.parametrize(
    ("words", "module", "measures"),
    [
        (("bound", *BOUND), bound_module, "nested_sums"),
        (("anomaly", *ANOMALY), anomaly_module, "evaluate_images"),
    ],
)
def test_ctrl_c_keeps_what_was_measured(
    run, call, tmp_path, monkeypatch, words, module, measures
) -> None:
    monkeypatch.setattr(module, "PART_ROWS", 8)
    measure, seen = getattr(module, measures), []

    def counted(*arguments, **options):
        seen.append(1)
        if stop_after and len(seen) > stop_after:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(module, measures, counted)
    stop_after = 0
    code, whole, _ = call(words[0], run, *words[1:], "--json", "--out", tmp_path / "whole")
    assert not code
    parts = len(seen)
    seen.clear()
    stop_after = 3
    code, _, err = call(words[0], run, *words[1:])
    assert code == 130
    assert "goes on from there" in err
    assert list(run.glob(f".{words[0]}-*.npz"))
    seen.clear()
    stop_after = parts - 3
    code, again, err = call(words[0], run, *words[1:], "--json")
    assert not code, err
    assert json.loads(again) == json.loads(whole)
    assert not list(run.glob(f".{words[0]}-*"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("bound",), "either a run directory or --bundle"),
        (("anomaly", "x", "--bundle", "y"), "either a run directory or --bundle"),
        (("bound", "RUN", "--k", "1,x"), "--k takes whole numbers"),
        (("bound", "RUN", "--k", "0,2"), "--k takes numbers from 1"),
        (("anomaly", "RUN", "--against", "svhn"), "is none of mnist"),
        (("anomaly", "RUN", "--split", "train"), "--split is one of test, validation"),
        (("bound", "nowhere"), "config.json"),
        (("anomaly", "--bundle", "nowhere"), "nowhere is no directory"),
    ],
)
def test_what_is_wrong_is_one_line(run, call, words, named) -> None:
    words = [run if word == "RUN" else word for word in words]
    code, _, err = call(*words, "--device", "cpu")
    assert code == 1
    assert named in err
    assert "Traceback" not in err
