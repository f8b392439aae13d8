"""A bundle is published whole or not, says what it is, and holds nothing of the machine."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress, TaskID

from service.bundle import load_bundle
from service.engine.onnxruntime_engine import Engine
from training.errors import ExportError
from training.export import export as module
from training.export.export import export_bundle


def test_nothing_of_the_machine_is_in_the_files(conv):
    here = [str(path).encode() for path in (conv.bundle.path.parent, module.__file__)]
    for file in filter(Path.is_file, conv.bundle.path.rglob("*")):
        content = file.read_bytes()
        for trace in (*here, b"site-packages", b"stack_trace", b'.py"'):
            assert trace not in content, file.name


def test_the_manifest_and_the_card_say_what_it_is(convs, conv):
    manifest = conv.bundle.manifest
    assert (manifest.name, manifest.version, manifest.license) == ("tiny", "1.0.0", "MIT")
    assert manifest.image.shape == convs.SHAPE
    assert manifest.preprocessing.kind == "binarize"
    assert manifest.latent.dim == 16
    assert manifest.training == {"epochs": 3}
    assert manifest.calibration.images == 40
    assert manifest.scoring.calibrated_importance_samples == (1, 16, 64)
    assert sorted(conv.bundle.reference.scores) == [1, 16, 64]
    card = (conv.bundle.path / "MODEL_CARD.md").read_text()
    for words in ("# tiny 1.0.0", "For tests.", "samples.png", "reconstructions.png", "epochs"):
        assert words in card
    assert (conv.bundle.path / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert "![curve](curve.png)\n\nAn hour." in card
    assert (conv.bundle.path / "curve.png").read_bytes() == b"a picture"
    assert "curve.png" in conv.bundle.manifest.files


def test_without_images_there_is_a_bundle_without_p_values(convs, conv, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "build_graphs", lambda _: conv.graphs)
    figure = {
        "estimator": "importance_weighted",
        "importance_samples": 8,
        "split": "test",
        "images": 10,
        "seed": 0,
        "value_nats": -80.25,
        "standard_error_nats": 0.5,
        "bits_per_dim": 0.15,
        "kl_nats": {"z": 20.0},
        "protocol": "Ten images.",
        "command": "iafvae-train evaluate RUN",
    }
    details = replace(convs.DETAILS, evaluation=(figure,), fit="pad")
    said = []
    progress = Progress(disable=True)
    monkeypatch.setattr(progress, "add_task", lambda text, **_: said.append(text) or TaskID(0))
    monkeypatch.setattr(progress, "remove_task", said.append)
    out = tmp_path / "plain"
    bundle = export_bundle(conv.model, out, details, calibration=None, progress=progress)
    assert said == ["making and comparing the graphs", 0]  # minutes, for a large model
    assert (bundle.manifest.fit, conv.bundle.manifest.fit) == ("pad", "crop")
    assert bundle.manifest.calibration is None
    assert not (bundle.path / "reconstructions.png").exists()
    card = (bundle.path / "MODEL_CARD.md").read_text()
    for words in ("no p-values", "IW-8", "-80.250 ± 0.500", "Ten images.", "iafvae-train evaluate"):
        assert words in card


def flipped(graphs):
    """One weight with another sign: what a bug in the offsets might do."""
    weights = np.frombuffer(graphs.weights, np.float32).copy()
    weights[np.flatnonzero(np.abs(weights) > 0.3)[0]] *= -1
    return replace(graphs, weights=weights.tobytes())


def test_a_disagreement_publishes_nothing(convs, conv, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "build_graphs", lambda _: flipped(conv.graphs))
    with pytest.raises(ExportError, match="No bundle was written"):
        export_bundle(conv.model, tmp_path / "new", convs.DETAILS, calibration=None)
    assert list(tmp_path.iterdir()) == []


def test_parity_sees_what_the_canaries_do_not(convs, conv, tmp_path, monkeypatch):
    """With canaries that nobody compares; a bundle that stood there before stays as it was."""
    shutil.copytree(conv.bundle.path, tmp_path / "old")
    monkeypatch.setattr(module, "build_graphs", lambda _: flipped(conv.graphs))
    monkeypatch.setattr(Engine, "warm", lambda self: None)
    with pytest.raises(ExportError, match=r"disagree in .* at N = 1: .* Nothing was published"):
        export_bundle(conv.model, tmp_path / "old", convs.DETAILS, calibration=None)
    assert load_bundle(tmp_path / "old").hash == conv.bundle.hash
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_what_no_manifest_takes_is_said_before_the_work(convs, conv, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "build_graphs", lambda _: pytest.fail("worked for nothing"))
    with pytest.raises(ExportError, match="name 'A B/c' must be"):
        export_bundle(
            conv.model, tmp_path / "new", replace(convs.DETAILS, name="A B/c"), calibration=None
        )


def test_a_directory_that_is_no_bundle_is_left_alone(convs, conv, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="no bundle"):
        export_bundle(conv.model, tmp_path, convs.DETAILS, calibration=None)
    assert (tmp_path / "notes.txt").read_text() == "mine"
