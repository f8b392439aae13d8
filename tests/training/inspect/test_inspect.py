"""`iafvae-train inspect` as people run it, on a small set laid out as MVTec's are."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from service.bundle import load_bundle
from training.cli.main import main
from training.inspect import run as inspect_run


def photo(generator, size=(16, 16)):
    """A bright disc on a slope, with noise."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    disc = np.hypot(x - size[1] / 2, y - size[0] / 2) < 5 + generator.normal(0, 0.3)
    return (60 + 3 * x + 80 * disc + generator.normal(0, 3, size)).clip(0, 255).astype(np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def parts(tmp_path):
    """48 good images and a broken one to learn from, 10 good and 10 spotted ones with masks."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "parts"
    for i in range(48):
        save(folder / "train" / "good" / f"{i:03d}.png", photo(generator))
    (folder / "train" / "good" / "broken.png").write_bytes(b"\x89PNG")
    for i in range(10):
        save(folder / "test" / "good" / f"{i:03d}.png", photo(generator))
        pixels, mask = photo(generator), np.zeros((16, 16), np.uint8)
        pixels[2:8, 3:9], mask[2:8, 3:9] = 0, 255
        save(folder / "test" / "spot" / f"{i:03d}.png", pixels)
        save(folder / "ground_truth" / "spot" / f"{i:03d}_mask.png", mask)
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    def called(*words):
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["iafvae-train", "inspect", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return called


@pytest.mark.timeout(300)
def test_from_a_folder_to_verdicts(call, parts, tmp_path):
    out = tmp_path / "out"
    options = ("--minutes", 0.1, "--threads", 1, "--false-alarms", 0.1, "--out", out)
    code, told, error = call(parts, *options)
    assert code == 0, told + error
    assert "1 file that cannot be read" in told
    assert "10 spot; 10 have masks" in told
    for words in ("Few images: 48", "False alarms", "Of planted squares", "Of the pixels in your"):
        assert words in told
    assert f"iafvae report FOLDER --bundle {out / 'bundle'}" in " ".join(told.split())
    bundle = load_bundle(out / "bundle")
    assert bundle.manifest.image.shape == (1, 16, 16)
    assert bundle.manifest.calibration.images == 16
    assert bundle.manifest.calibration.folds > 1
    report = json.loads((out / "report.json").read_text())
    assert report["images"] == 20
    spot = next(each for each in report["classes"] if each["class"] == "spot")
    assert spot["detection"]["largest box"]["auroc"]["value"] > 0.8
    page = (out / "report.html").read_text()
    assert "Few images: 48" in page
    planted = json.loads((out / "planted.json").read_text())
    assert {each["class"] for each in planted["classes"]} >= {"good", "planted 4x4"}
    used = {path.resolve() for path in (out / "images").rglob("*.png")}
    good = {*(parts / "train").rglob("*.png"), *(parts / "test" / "good").rglob("*.png")}
    assert used == {path for path in good if path.name != "broken.png"}
    other = tmp_path / "other"
    for i in range(41):
        save(other / f"{i}.png", photo(np.random.default_rng(100 + i)))
    code, _, error = call(other, *options)
    assert code == 1
    assert "another --out" in " ".join(error.split())
    # Again, the folder moved, with other options: what was divided stays so.
    moved = parts.rename(tmp_path / "moved")
    before = (out / "inspect.json").read_bytes()
    options = ("--minutes", 0.05, "--threads", 1, "--false-alarms", 0.2, "--out", out)
    code, told, error = call(moved, "--test", other, *options)
    assert code == 0, told + error
    assert "is trained further" in told
    assert "False alarms: 0.2 of usual images" in told
    assert (out / "inspect.json").read_bytes() == before
    linked = {path.resolve().relative_to(moved) for path in (out / "images").rglob("*.png")}
    assert linked == {path.relative_to(parts) for path in used}
    report = json.loads((out / "report.json").read_text())
    assert {each["class"] for each in report["classes"]} >= {"good", "spot", "other"}
    assert report["alpha"] == 0.2
    # Images of the same names that are others are refused, before anything is written.
    save(moved / "train" / "good" / "000.png", photo(np.random.default_rng(7)))
    code, _, error = call(moved, *options)
    assert code == 1
    assert "other images" in " ".join(error.split())
    assert (out / "inspect.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_stopped_after_training_it_is_not_trained_again(call, parts, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = ("--minutes", 0.05, "--threads", 1, "--false-alarms", 0.1, "--out", out)

    def stopped(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_run, "export_run", stopped)
    code, _, error = call(parts, *options)
    assert code == 130
    assert "call it again to go on" in " ".join(error.split())
    assert not (out / "bundle").exists()
    before = (out / "run" / "metrics.jsonl").read_bytes()
    code, told, _ = call(parts, *options)
    assert code == 130
    assert "is trained, but was not judged yet" in " ".join(told.split())
    assert (out / "run" / "metrics.jsonl").read_bytes() == before
