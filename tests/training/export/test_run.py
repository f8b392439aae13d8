"""From a run directory to figures and a bundle: what the commands call."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from model import build_model
from model.config import ConvVaeConfig
from training.data import ImageData
from training.errors import CheckpointError, DataError, ExportError, TrainingError
from training.evaluate import subject as evaluation
from training.evaluate.run import evaluate_run
from training.export import run as exporting
from training.export.run import export_run
from training.runs.checkpoint import load_run, save_checkpoint

CONFIG = ConvVaeConfig(image_shape=(1, 8, 8), channels=(16,), hidden=16, latent_dim=16)


def save(run_dir, step, scale):
    torch.manual_seed(0)
    model = build_model(CONFIG)
    averaged = {name: p.detach() * scale for name, p in model.named_parameters()}
    save_checkpoint(
        run_dir,
        step,
        model_state=model.state_dict(),
        ema_state=averaged,
        optim_tensors={},
        state={},
    )
    return model, averaged


@pytest.fixture
def run(tmp_path, monkeypatch):
    run_dir = tmp_path / "runs" / "tiny"
    run_dir.mkdir(parents=True)
    config = {"preset": "tiny", "model": CONFIG.to_dict(), "data": {"name": "mnist"}}
    config |= {"optim": {"batch_size": 100}, "environment": {"torch": "9.9"}}
    (run_dir / "config.json").write_text(json.dumps(config))
    records = [{"step": s, "kind": "train", "images_per_second": 100.0} for s in (60, 120, 60, 180)]
    lines = [json.dumps(record) for record in records] + ['{"kind": "train", "st']
    (run_dir / "metrics.jsonl").write_text("\n".join(lines))
    save(run_dir, 120, 1.1)

    def images(name, split, data_dir, **options):
        seed = {"train": 0, "validation": 1, "calibration": 2, "test": 3}[split]
        generator = np.random.default_rng(seed)
        return ImageData(generator.integers(0, 256, (12, 1, 8, 8), np.uint8), name, split)

    monkeypatch.setattr(evaluation, "load_dataset", images)
    return run_dir


def test_a_runs_model_has_the_weights_that_were_asked_for(run):
    model, averaged = save(run, 130, 1.5)
    config, loaded, checkpoint = load_run(run)
    assert config.preset == "tiny"
    assert checkpoint.step == 130
    assert not loaded.training
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, averaged[name]), name
    _, loaded, _ = load_run(run, weights="raw")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(loaded.named_parameters())[name]), name
    _, _, older = load_run(run / "checkpoints" / "step-00000120")
    assert older.step == 120


def test_a_run_that_is_none_or_does_not_fit_is_refused(run, tmp_path):
    with pytest.raises(TrainingError, match="holds no run"):
        load_run(tmp_path)
    config = json.loads((run / "config.json").read_text())
    config["model"]["hidden"] = 17
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"another model .*\(\d+ of \d+ tensors differ, the first is \S+\)"
    ) as refused:
        load_run(run)
    assert "\n" not in str(refused.value)
    (run / "config.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"config\.json: .* needs the part 'model'"):
        load_run(run)


def test_an_evaluation_is_kept_with_its_command_and_weights(run):
    report, path = evaluate_run(run, importance_samples=4, limit=5)
    assert path.parent == run
    assert report.images == 5
    content = json.loads(path.read_bytes())
    assert content["command"].endswith("--importance-samples 4 --seed 0 --limit 5")
    assert (content["step"], content["weights"]) == (120, "ema")
    assert content["elbo"]["value_nats"] == report.elbo.value_nats
    other, _ = evaluate_run(run, importance_samples=4, limit=5, weights="raw")
    assert other.elbo.value_nats != report.elbo.value_nats


def test_a_bundle_carries_the_full_evaluations_of_its_own_weights(run, tmp_path):
    report, _ = evaluate_run(run, importance_samples=4)
    evaluate_run(run, importance_samples=2, limit=3)  # not of all images
    evaluate_run(run, importance_samples=3, weights="raw")  # of other weights
    bundle = export_run(run, tmp_path / "bundle")
    figures = bundle.manifest.evaluation
    assert [(f.estimator, f.importance_samples) for f in figures] == [
        ("elbo", 4),
        ("importance_weighted", 4),
    ]
    assert figures[1].value_nats == report.importance_weighted.value_nats
    facts = bundle.manifest.training
    assert facts["step"] == 120
    assert facts["minutes"] == 2.0  # 120 steps of 100 images at 100 images a second
    assert facts["environment"]["torch"] == "9.9"
    assert facts["command"] == "iafvae-train fit --out RUN"
    assert bundle.manifest.name == "tiny"
    assert bundle.manifest.calibration.images == 12
    text = (bundle.path / "manifest.json").read_text()
    assert str(tmp_path) not in text


def test_figures_of_other_weights_at_the_same_step_are_left_out(run, tmp_path, monkeypatch):
    """A run taken up again at an earlier step may come to this one with other weights."""
    monkeypatch.setattr(exporting, "export_bundle", lambda *arguments, **_: arguments[2].evaluation)
    evaluate_run(run, importance_samples=2)
    assert len(export_run(run, tmp_path / "bundle", calibrate=False)) == 2
    save(run, 120, 1.3)
    assert export_run(run, tmp_path / "bundle", calibrate=False) == ()


def test_the_raw_weights_are_named_in_the_command(run):
    _, path = evaluate_run(run, importance_samples=2, weights="raw")
    content = json.loads(path.read_bytes())
    assert content["command"].startswith("iafvae-train evaluate RUN --weights raw ")
    assert content["manifest"][0]["command"] == content["command"]


def test_a_place_that_is_no_bundle_is_refused_before_any_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        evaluation, "load_dataset", lambda *_, **__: pytest.fail("read for nothing")
    )
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="is no bundle"):
        export_run(run, tmp_path / "file")


def test_a_bundle_of_another_name_is_not_replaced(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "export_bundle", lambda *arguments, **_: arguments[2].name)
    manifest = tmp_path / "bundle" / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text('{"name": "other"}')
    with pytest.raises(ExportError, match="the bundle other is there, not tiny"):
        export_run(run, manifest.parent, calibrate=False)
    for own in ('{"name": "tiny"}', "broken"):
        manifest.write_text(own)
        assert export_run(run, manifest.parent, calibrate=False) == "tiny"


def test_missing_images_name_the_way_without_them(run, tmp_path, monkeypatch):
    def none(*_, **__):
        raise DataError("There are none.")

    monkeypatch.setattr(evaluation, "load_dataset", none)
    with pytest.raises(ExportError, match=r"There are none\. Or export with --no-calibration"):
        export_run(run, tmp_path / "bundle")


def test_a_model_of_ones_own_images_is_named_after_its_run(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "export_bundle", lambda *arguments, **_: arguments[2])
    config = json.loads((run / "config.json").read_text())
    config["data"]["name"] = f"folder:{tmp_path}/photos"
    (run / "config.json").write_text(json.dumps(config))
    mine = run.rename(run.parent / "My photos, 2")
    details = export_run(mine, tmp_path / "bundle", calibrate=False)
    assert details.name == "My-photos-2"
    assert "a folder of images" in details.description
    assert details.license == "none stated"
    mine_to_state = export_run(mine, tmp_path / "bundle", calibrate=False, license_name="CC0-1.0")
    assert mine_to_state.license == "CC0-1.0"


def test_the_program_that_trained_is_named_not_the_one_that_exports(run):
    content = json.loads((run / "config.json").read_text())
    content["environment"] |= {"git_revision": "abc+", "command": "iafvae-train fit --seed 1"}
    (run / "config.json").write_text(json.dumps(content))
    config, _, checkpoint = load_run(run)
    facts = exporting.training_facts(run, config, checkpoint, "ema")
    assert facts["git_revision"] == "abc+"
    assert facts["command"] == "iafvae-train fit --seed 1"
    assert set(facts["environment"]) == {"torch", "processor"}


def test_a_bundle_without_data_needs_none(run, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("no images are needed")

    monkeypatch.setattr(evaluation, "load_dataset", refuse)
    monkeypatch.setattr(
        exporting, "export_bundle", lambda *arguments, **options: (arguments, options)
    )
    (_, out, details), options = export_run(run, tmp_path / "bundle", name="plain", calibrate=False)
    assert out == tmp_path / "bundle"
    assert details.name == "plain"
    assert options["calibration"] is options["examples"] is None


def test_a_spoilt_evaluation_is_named(run, tmp_path):
    (run / "evaluation-test.json").write_text("[]")
    with pytest.raises(TrainingError, match=r"evaluation-test\.json is no evaluation"):
        export_run(run, tmp_path / "bundle", calibrate=False)


def test_a_folders_path_stays_at_home(run, tmp_path):
    config, _, checkpoint = load_run(run)
    config = replace(config, data=replace(config.data, name=f"folder:{tmp_path}"))
    facts = exporting.training_facts(run, config, checkpoint, "ema")
    assert str(tmp_path) not in json.dumps(facts)


def test_images_are_fitted_in_the_service_as_they_were_in_training(run, tmp_path, monkeypatch):
    config = json.loads((run / "config.json").read_text())
    config["data"] = {"name": "folder:photos", "fit": "pad"}
    (run / "config.json").write_text(json.dumps(config))
    load, asked = evaluation.load_dataset, []

    def loading(*arguments):
        asked.append(arguments[3].fit)
        return load(*arguments[:3])

    monkeypatch.setattr(evaluation, "load_dataset", loading)
    monkeypatch.setattr(exporting, "export_bundle", lambda *arguments, **_: arguments[2])
    assert export_run(run, tmp_path / "bundle").fit == "pad"
    assert set(asked) == {"pad"}
