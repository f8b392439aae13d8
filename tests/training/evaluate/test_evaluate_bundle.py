"""A bundle's figures are its checkpoint's; large latents are evaluated in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import build_model
from model.config import ResnetVaeConfig
from service.bundle import load_bundle
from training.cli.main import main
from training.config import run_preset
from training.data import FolderOptions, ImageData, drawn_pixels
from training.errors import DataError, EvaluationError
from training.evaluate import subject as module
from training.evaluate.evaluate import evaluate_images, evaluate_model, pieces
from training.evaluate.scorers import BundleScorer, ModelScorer
from training.evaluate.subject import bundle_subject
from training.runs.checkpoint import load_run

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "service" / "bundles" / "mnist"
RUN = ROOT / "training" / "checkpoints" / "mnist-wide"
CHECKPOINT = RUN / "checkpoints" / "step-00338052"
DIGITS = np.load(ROOT / "tests" / "data" / "mnist_sample.npz")


@pytest.fixture(scope="module")
def digits():
    pixels = next(DIGITS[name] for name in DIGITS.files if DIGITS[name].ndim >= 3)
    return ImageData(pixels.reshape(-1, 1, 28, 28)[:20], "mnist", "test")


@pytest.fixture(scope="module")
def scorer():
    return BundleScorer(load_bundle(SHIPPED), provider="cpu")


def test_a_bundles_figures_are_its_checkpoints_image_by_image(digits, scorer):
    """Torch and the graphs through the engine, on the same noise."""
    _, model, _ = load_run(CHECKPOINT)
    pixels = drawn_pixels(digits.pixels, 3)
    arguments = {"importance_samples": 20, "seed": 3}
    mine = evaluate_images(model, pixels, **arguments)
    theirs = evaluate_images(scorer, pixels, **arguments)
    for name in ("elbo", "importance_weighted", "log_px_z", "kl"):
        assert np.allclose(getattr(mine, name), getattr(theirs, name), rtol=2e-6, atol=2e-4), name
    for name in ("elbo_variance", "importance_weighted_variance", "effective_sample_size"):
        assert np.allclose(getattr(mine, name), getattr(theirs, name), rtol=1e-2), name
    other = evaluate_images(scorer, pixels, importance_samples=20, seed=4)
    assert np.abs(mine.elbo - other.elbo).max() > 0.1  # another seed is another figure


def test_the_report_of_a_bundle_names_what_computed_it(digits, scorer):
    report = evaluate_model(scorer, digits, importance_samples=4)
    assert report.protocol.endswith("seed 0, float32, ONNX Runtime on cpu.")
    assert "drawn once to 0 or 255" in report.protocol
    assert report.active_units is None  # a score graph gives no latents
    json.dumps(report.to_dict(), allow_nan=False)
    assert "active" not in str([column.header for column in report.table().columns])
    with pytest.raises(EvaluationError, match=r"images \(1, 28, 28\)"):
        evaluate_images(scorer, digits.pixels[:, :, :20], importance_samples=1)


def test_a_bundle_knows_its_images_or_is_told(digits, monkeypatch):
    asked = []

    def images(name, split, data_dir, *options):
        asked.append((name, split, *options))
        return digits

    monkeypatch.setattr(module, "load_dataset", images)
    bundle = load_bundle(SHIPPED)
    module.bundle_images(bundle, None, "test", None)
    module.bundle_images(bundle, "folder:photos", "train", None)
    assert asked[0] == ("mnist", "test")
    assert asked[1] == ("folder:photos", "train", FolderOptions(size=(28, 28), channels=1))
    stranger = replace(
        bundle,
        manifest=bundle.manifest.model_copy(update={"training": {"data": "a folder of images"}}),
    )
    with pytest.raises(
        EvaluationError, match=r"trained on a folder of images: say which .* --data"
    ):
        module.bundle_images(stranger, None, "test", None)


def test_what_is_no_bundle_or_no_device_is_named(tmp_path):
    with pytest.raises(EvaluationError, match=str(tmp_path)):
        bundle_subject(tmp_path)
    with pytest.raises(EvaluationError, match="auto, cpu or cuda, not 'cuda:1'"):
        bundle_subject(SHIPPED, device="cuda:1")


def run(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["iafvae-train", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr()


def test_the_command_measures_a_bundle_and_keeps_the_figures(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "load_dataset", lambda *_, **__: digits)
    file = tmp_path / "figures.json"
    words = ["evaluate", "--bundle", str(SHIPPED), "--importance-samples", "2", "--limit", "3"]
    code, (out, _) = run([*words, "--json", "--report", str(file)], monkeypatch, capsys)
    assert not code
    assert json.loads(out) == json.loads(file.read_text())
    assert json.loads(out)["images"] == 3
    for wrong, named in (
        (["evaluate"], "either a run directory or --bundle"),
        (["evaluate", "runs/x", "--bundle", "y"], "either a run directory or --bundle"),
        (["evaluate", "runs/x", "--data", "mnist"], "--data goes with --bundle"),
    ):
        code, (_, err) = run(wrong, monkeypatch, capsys)
        assert code == 1
        assert named in " ".join(err.split())


# --- memory -----------------------------------------------------------------------------------

LADDER = ResnetVaeConfig(image_shape=(3, 16, 16), channels=8, z_channels=4, levels=(2, 2))


@pytest.fixture(scope="module")
def ladder():
    torch.manual_seed(0)
    return build_model(LADDER).eval()


def test_a_ladder_is_evaluated_alike_in_little_memory_and_in_much(ladder):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), np.uint8)
    facts = ModelScorer(ladder).facts
    little = (facts.image_bytes + facts.row_bytes + 4 * 32 * facts.dim) / 2**30
    assert pieces(facts, 6, little) == (1, 1)
    assert pieces(facts, 6, 1.0) == (512 // 6, 6)
    one = evaluate_images(ladder, pixels, importance_samples=6, memory_gib=little)
    many = evaluate_images(ladder, pixels, importance_samples=6)
    for name in ("elbo", "importance_weighted", "kl", "posterior_mean_variance"):
        assert np.allclose(getattr(one, name), getattr(many, name), rtol=1e-4, atol=1e-4), name


def test_pieces_fit_the_memory_that_is_stated(ladder):
    facts = ModelScorer(ladder).facts
    noise = 2 * 16 * 4 * facts.dim
    for gib in (0.002, 0.01, 0.05, 0.3):
        for draws in (1, 3, 16, 10_000):
            images, chunk = pieces(facts, draws, gib)
            used = images * (facts.image_bytes + noise + chunk * facts.row_bytes)
            assert used <= gib * 2**30
            assert chunk <= min(16, draws)
    assert pieces(facts, 10, 1e-9) == (1, 1)  # it cannot be less


def test_one_more_layers_features_count(ladder):
    """The estimate grows with what is repeated for every draw."""
    deeper = build_model(replace(LADDER, levels=(4, 2))).eval()
    small, large = ModelScorer(ladder).facts, ModelScorer(deeper).facts
    added = sum(feature.nbytes for feature in deeper.bottom_up(torch.zeros(1, 3, 16, 16))) - sum(
        feature.nbytes for feature in ladder.bottom_up(torch.zeros(1, 3, 16, 16))
    )
    assert large.row_bytes - small.row_bytes >= added > 0


PEAK = """
import re, sys
from pathlib import Path
import numpy as np, torch
from model import build_model
from training.config import run_preset
from training.evaluate.evaluate import evaluate_images
from training.evaluate.scorers import ModelScorer
torch.manual_seed(0)
torch.set_num_threads(1)
scorer = ModelScorer(build_model(run_preset("cifar10-small").model).eval())
pixels = np.zeros((40, 3, 32, 32), np.uint8)
evaluate_images(scorer, pixels[:1], importance_samples=1)
Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
table = lambda: Path("/proc/self/status").read_text()
status = lambda name: int(re.search(name + r":\\s+(\\d+)", table())[1])
before = status("VmRSS")
evaluate_images(scorer, pixels, importance_samples=32, memory_gib=float(sys.argv[1]))
print((status("VmHWM") - before) / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no such peak here")
def test_the_memory_that_an_evaluation_takes_is_below_what_was_stated():
    grown = []
    for gib in (0.15, 0.4):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(gib)], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        grown.append(float(done.stdout))
        assert grown[-1] <= gib
    assert grown[1] > grown[0] + 0.02  # what is allowed is used


def test_a_folder_that_was_moved_is_asked_for(tmp_path):
    config = run_preset("mnist")
    config = replace(config, data=replace(config.data, name=f"folder:{tmp_path / 'gone'}"))
    with pytest.raises(DataError, match=r"no folder .*gone.* fit --resume --data folder:"):
        module.run_images(config, "test", None)
