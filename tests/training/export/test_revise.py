"""A finished bundle with a new calibration, or new figures in its card; or one clear line."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from service.bundle import load_bundle
from service.cli.local import LocalClient
from training.cli.main import main
from training.errors import ExportError, TrainingError
from training.export.card import with_section
from training.export.revise import into_card, next_version, recalibrate


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    """A bundle of its own, named by what it is in."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture
def greys(tiny_model):
    """Images of the tiny model in nearly black and white: as good as never two the same."""

    def drawn(count, seed):
        images = tiny_model.images(count, seed=seed)
        off = np.random.default_rng(seed).integers(0, 8, images.shape, np.uint8)
        return np.where(images > 0, images - off, images + off)

    return drawn


def write(folder, images, form="png"):
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image[0]).save(folder / f"{i}.{form}")
    return folder


def contents(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_false_alarms_after_a_calibration_on_a_folder_have_their_law(bundle, greys, tmp_path):
    before = contents(bundle)
    folder = write(tmp_path / "good", greys(300, 3))
    made = recalibrate(bundle, tmp_path / "new", str(folder))
    manifest = made.manifest
    assert (manifest.version, manifest.calibration.split) == (
        "1.2.4",
        "a folder of images calibration",
    )
    assert (manifest.calibration.images, manifest.calibration.fit_images) == (150, 150)
    assert not manifest.calibration.fitted
    assert contents(bundle) == before
    after = contents(made.path)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"manifest.json", "calibration.npz", "MODEL_CARD.md"}
    assert "rank among 150 images" in after["MODEL_CARD.md"].decode()
    with LocalClient.open(made.path, None, "cpu") as client:
        p = client.score(greys(1000, 4), importance_samples=1, seed=0, alpha=None).p_value
    for alpha in (0.02, 0.1, 0.5):
        k = int(alpha * 151)
        law = stats.betabinom(len(p), k, 151 - k)
        assert law.ppf(0.0005) <= (p <= alpha).sum() <= law.ppf(0.9995), alpha


def test_copies_count_once(bundle, greys, tmp_path):
    images = greys(12, 3)
    folder = write(tmp_path / "good", np.concatenate([images, images[:5]]))
    calibration = recalibrate(bundle, bundle, f"folder:{folder}").manifest.calibration
    assert calibration.images + calibration.fit_images == 12
    assert load_bundle(bundle).manifest.version == "1.2.4"


def spoilt(folder, kind):
    """A folder that nothing can be calibrated on."""
    rng = np.random.default_rng(0)
    if kind == "five":
        return write(folder, rng.integers(0, 256, (5, 1, 4, 4), np.uint8))
    if kind == "one":
        return write(folder, np.full((30, 1, 4, 4), 9, np.uint8))
    if kind == "shape":
        return write(folder, rng.integers(0, 256, (20, 1, 6, 7), np.uint8))
    if kind == "colour":
        folder.mkdir()
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).save(folder / f"{i}.png")
    elif kind == "unreadable":
        folder.mkdir()
        for i in range(20):
            (folder / f"{i}.png").write_bytes(b"no image")
    elif kind == "empty":
        folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("five", "folder of images: 5, where 10 are needed"),
        ("one", "folder of images: 1, where 10 are needed"),
        ("shape", "6x7 pixels .*takes 4x4.*--resize"),
        ("colour", "3 different channels.*--resize"),
        ("unreadable", "20 of 20 images cannot be used(?!.*--resize)"),
        ("empty", "no images in"),
        ("absent", "There is no folder(?!.*--resize)"),
    ],
)
def test_a_folder_that_says_nothing_is_one_line_and_leaves_nothing(
    bundle, tmp_path, kind, words, monkeypatch, capsys
):
    folder = spoilt(tmp_path / "bad", kind)
    before = contents(tmp_path)
    for out in (bundle, tmp_path / "new"):
        command = ["calibrate", bundle, "--data", folder, "--out", out]
        monkeypatch.setattr(sys, "argv", ["iafvae-train", *map(str, command)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        assert capsys.readouterr().err.count("\n") == 1
        with pytest.raises(TrainingError, match=words):
            recalibrate(bundle, out, str(folder))
    assert contents(tmp_path) == before


def test_images_of_another_size_and_colour_are_fitted_on_request(bundle, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).save(folder / f"{i}.png")
    made = recalibrate(bundle, bundle, str(folder), resize=True)
    assert made.manifest.calibration.fitted
    assert recalibrate(bundle, bundle, str(folder)).manifest.version == "1.2.5"  # as before


def test_a_transparent_canvas_is_said_and_names_in_brackets_are_kept(bundle, greys, tmp_path):
    folder = write(tmp_path / "good [old]", greys(20, 3))
    canvas = Image.open(folder / "7.png")
    canvas.putalpha(Image.fromarray(np.eye(4, dtype=np.uint8) * 255))
    canvas.save(folder / "7.png")
    out = tmp_path / "new [b]"
    command = [
        sys.executable,
        "-m",
        "training",
        "calibrate",
        bundle,
        "--data",
        folder,
        "--out",
        out,
    ]
    done = subprocess.run(map(str, command), capture_output=True, text=True, check=True)
    told = f"calibration: {folder / '7.png'} is partly transparent and was put on black"
    assert done.stderr.splitlines()[0] == told
    assert done.stdout.startswith(f"{out}  ")


def test_few_images_are_told_what_they_cannot_promise(bundle, greys, tmp_path, monkeypatch, capsys):
    for count, words in ((20, "no decision is ever possible"), (300, "is not certain")):
        folder = write(tmp_path / str(count), greys(count, 5))
        command = ["calibrate", bundle, "--data", folder]
        monkeypatch.setattr(sys, "argv", ["iafvae-train", *map(str, command)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert words in capsys.readouterr().err


def test_versions_follow_each_other():
    assert [next_version(v) for v in ("1.2.9", "7", "2-beta")] == ["1.2.10", "8", "2-beta.1"]


CARD = "# tiny 1.2.3\n\n## Calibration\n\nranks\n\n## Known failures of old\n\nx\n\n## Data\n\ny\n"


def test_verdicts_go_into_a_card_once(bundle, tmp_path):
    first = load_bundle(bundle)
    fields = first.manifest.model_dump(mode="json")
    for text in ("| a table |\n\n    a command", "of another day"):
        made = into_card(bundle, load_bundle(bundle).hash, text, b"\x89PNG picture")
        card = made.read("MODEL_CARD.md").decode()
        assert card.startswith("# tiny\n\n## Verdicts\n\n![anomaly](anomaly.png)\n\n" + text)
        assert card.count("## Verdicts") == 1
        assert made.read("anomaly.png") == b"\x89PNG picture"
    again = load_bundle(bundle).manifest.model_dump(mode="json")
    files, before = again.pop("files"), fields.pop("files")
    assert again == fields
    assert {n for n in files if files[n] != before.get(n)} == {"MODEL_CARD.md", "anomaly.png"}


def test_verdicts_of_another_bundle_stay_out_of_a_card(bundle):
    before = load_bundle(bundle).hash
    with pytest.raises(ExportError, match="another one is there than the one that was measured"):
        into_card(bundle, "0" * 64, "| a table |", b"\x89PNG picture")
    assert load_bundle(bundle).hash == before


def test_a_section_has_its_place():
    card = with_section(CARD, "Verdicts", "figures")
    assert "ranks\n\n## Verdicts\n\nfigures\n\n## Known" in card
    assert with_section(card, "Verdicts", "figures") == card
    assert with_section(card, "Data", "z").endswith("## Data\n\nz\n")
