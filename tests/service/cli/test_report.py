"""`iafvae report`: a folder judged, as HTML, CSV and JSON."""

from __future__ import annotations

import base64
import csv
import errno
import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

import service
from service.bundle import load_bundle
from service.cli import report as module
from service.cli import report_page
from service.cli.main import app


@pytest.fixture
def cli(tiny_bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("IAFVAE_MODELS", str(tiny_bundle))
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, ["report", *map(str, arguments)])
        assert result.exit_code == code, result.output + repr(result.exception)
        return result.output

    return run


@pytest.fixture
def folder(tmp_path, digits):
    path = tmp_path / "photos"
    for index, digit in enumerate(digits):
        for kind, image in (("good", digit[0]), ("<odd>", 255 - digit[0])):
            (path / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path / kind / f"{index}.png")
    (path / "broken & co.png").write_bytes(b"no image")
    (path / "gone.png").symlink_to(path / "nowhere.png")
    return path


SERVICE = Path(service.__file__).parent


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
def test_names_that_command_a_terminal_or_break_a_line(cli, tmp_path, digits):
    folder = tmp_path / "strange"
    folder.mkdir()
    names = ["a\rb.png", "c\nd.png", 'e",\n.png', "\x1b]0;f\x07.png"]
    for name in names:
        Image.fromarray(digits[0][0]).save(folder / name)
    (folder / "\x1b[31mbroken\n.png").write_bytes(b"no image")
    assert "\x1b" not in cli(folder, "-o", "r.html")
    with (tmp_path / "r.csv").open(newline="") as file:
        listed = [row["file"] for row in csv.DictReader(file)]
    assert sorted(listed) == sorted([*names, "\x1b[31mbroken\n.png"])


def test_names_that_a_spreadsheet_would_compute(cli, tmp_path, digits, monkeypatch):
    """In CSV they name the same files; in JSON, and numbers, they are as they are."""
    (tmp_path / "photos" / "@kind").mkdir(parents=True)
    names = ["=1+1.png", "+1.png", "-1.png", "@kind/a.png", "plain.png"]
    for name in names:
        Image.fromarray(digits[0][0]).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "=bad.png").write_bytes(b"no image")
    cli("photos", "-o", "r.html")
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    monkeypatch.chdir("photos")
    assert {Path(row["file"]).as_posix() for row in rows} == {*names, "=bad.png"}
    assert all(Path(row["file"]).is_file() for row in rows)
    texts = [row[name] for row in rows for name in ("file", "class", "note", "error")]
    assert not [text for text in texts if text.startswith(("=", "+", "-", "@"))]
    assert all(float(row["log_likelihood_nats"]) < 0 for row in rows if not row["error"])
    found = json.loads((tmp_path / "r.json").read_text())
    assert {row["file"] for row in found["results"]} == set(names)


def test_every_image_is_in_all_three_files(cli, folder, tmp_path):
    told = cli(folder, "-o", "r.html", "--fdr", 0.5)
    assert "12 images" in told
    assert "2 files were not judged, listed there: broken & co.png is not a PNG" in told
    found = json.loads((tmp_path / "r.json").read_text())
    names = {f"{kind}/{i}.png" for kind in ("good", "<odd>") for i in range(6)}
    assert {row["file"] for row in found["results"]} == names
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text())))
    broken = {"broken & co.png", "gone.png"}
    assert {row["file"] for row in rows} == names | broken
    why = {row["file"]: row["error"] for row in found["unreadable"]}
    assert set(why) == broken
    assert why["gone.png"] == "No such file or directory"
    page = (tmp_path / "r.html").read_text()
    assert page.count("<tr class=") == 12
    assert "&lt;odd&gt;/3.png" in page
    assert "<odd>" not in page
    assert not {p.name for p in tmp_path.iterdir()} - {"r.html", "r.csv", "r.json", "photos"}


def test_the_page_needs_nothing_else_and_shows_what_was_seen(cli, folder, tmp_path, digits):
    cli(folder, "-o", "r.html")
    page = (tmp_path / "r.html").read_text()
    assert set(re.findall(r'(?:src|href)="(.{5})', page)) == {"data:"}
    assert "http" not in page
    first = re.search(r'alt="the image" src="data:image/png;base64,([^"]+)', page)[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(first))))
    name = json.loads((tmp_path / "r.json").read_text())["results"][0]["file"]
    assert np.array_equal(shown, np.asarray(Image.open(folder / name)))


def test_classes_are_told_apart_as_another_library_says(cli, folder, tmp_path):
    cli(folder, "-o", "r.html")
    found = json.loads((tmp_path / "r.json").read_text())
    odd = next(each for each in found["classes"] if each["class"] == "<odd>")
    labels = [row["class"] == "<odd>" for row in found["results"]]
    for name, key, sign in (
        ("verdict", "p_value", -1),
        ("likelihood alone", "log_likelihood_nats", -1),
    ):
        scores = [sign * row[key] for row in found["results"]]
        figure = odd["detection"][name]["auroc"]
        assert figure["value"] == pytest.approx(roc_auc_score(labels, scores))
        corners = np.array(odd["detection"][name]["roc"])
        assert np.trapezoid(corners[:, 1], corners[:, 0]) == pytest.approx(figure["value"])


def test_sub_folders_of_one_name_are_classes_of_their_own(cli, tmp_path, digits):
    """What lies anywhere in a folder called good is usual, and is not mixed with what does not."""
    kinds = {"good/monday": 0, "good/tuesday": 0, "bad/monday": 255, "bad": 255}
    for kind, off in kinds.items():
        (tmp_path / "photos" / kind).mkdir(parents=True, exist_ok=True)
        for i, digit in enumerate(digits):
            Image.fromarray(digit[0] ^ np.uint8(off)).save(tmp_path / "photos" / kind / f"{i}.png")
    cli("photos", "-o", "r.html")
    found = json.loads((tmp_path / "r.json").read_text())
    normal = {each["class"]: each["normal"] for each in found["classes"]}
    assert normal == {kind: kind.startswith("good") for kind in (*kinds, "all of these")}
    odd = next(each for each in found["classes"] if each["class"] == "all of these")
    labels = [row["class"].startswith("bad") for row in found["results"]]
    scores = [-row["log_likelihood_nats"] for row in found["results"]]
    figure = odd["detection"]["likelihood alone"]["auroc"]
    assert figure["value"] == pytest.approx(roc_auc_score(labels, scores))
    cli("photos", "-o", "r.html", "--normal", "bad/monday")
    found = json.loads((tmp_path / "r.json").read_text())
    assert [each["class"] for each in found["classes"] if each["normal"]] == ["bad/monday"]


@pytest.mark.parametrize(
    ("folder", "normal", "usual"),
    [
        ("Good/monday", ("good",), True),
        ("bad/monday/am", ("bad/monday",), True),
        ("bad/monday", ("monday",), True),
        ("bad/mondays", ("bad/monday", "monday"), False),
        ("bad", ("bad/monday",), False),
        ("", ("good",), False),
    ],
)
def test_a_folder_is_usual_by_its_name_its_path_or_what_it_lies_in(folder, normal, usual):
    assert module.is_usual(folder, normal) == usual


def test_what_was_interrupted_goes_on(cli, folder, tmp_path, monkeypatch):
    cli(folder, "-o", "whole.html")
    monkeypatch.setattr(module, "CHUNK", 4)
    judged, original = [], module.scored

    def breaking(backend, files, *arguments, **options):
        for part in original(backend, files, *arguments, **options):
            judged.append(len(part.rows))
            if len(judged) == 3:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(module, "scored", breaking)
    cli(folder, "-o", "r.html", code=130)
    kept = tmp_path / "r.partial.jsonl"
    assert not (tmp_path / "r.html").exists()
    kept.write_bytes(kept.read_bytes()[:-20])  # the last line is torn
    changed = next((folder / "good").iterdir())
    changed.write_bytes(changed.read_bytes())  # another time: judged anew
    judged[:] = [0] * 9
    cli(folder, "-o", "r.html")
    assert 5 <= sum(judged) <= 7
    assert not kept.exists()
    for kind in ("json", "csv", "html"):
        one, other = (tmp_path / f"{name}.{kind}" for name in ("whole", "r"))
        assert one.read_text() == other.read_text()


def test_what_another_call_or_program_does_meanwhile(cli, folder, tmp_path, monkeypatch):
    """A second report into the same place ends first, and a file goes after it was scored."""
    gone, small = next((folder / "good").iterdir()), module._thumbnail

    def thumbnail(file, *rest):
        gone.unlink(missing_ok=True)
        (tmp_path / "r.partial.jsonl").unlink(missing_ok=True)
        return small(file, *rest)

    monkeypatch.setattr(module, "_thumbnail", thumbnail)
    cli(folder, "-o", "r.html")
    found = json.loads((tmp_path / "r.json").read_text())
    assert len(found["results"]) == 11
    assert gone.name in [row["file"].rpartition("/")[2] for row in found["unreadable"]]


def test_a_full_disk_is_told_with_the_file_s_name(cli, folder, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_judged", full)
    assert "r.partial.jsonl" in cli(folder, "-o", "r.html", code=1)


def test_other_options_begin_anew(cli, folder, tmp_path):
    (tmp_path / "r.partial.jsonl").write_text('{"report": "of another call"}\n{"file": "x"}\n')
    cli(folder, "-o", "r.html")
    assert len(json.loads((tmp_path / "r.json").read_text())["results"]) == 12


def test_a_server_gives_the_same_report(cli, folder, tmp_path, running):
    cli(folder, "-o", "local.html")
    cli(folder, "-o", "remote.html", "--url", running.url)
    assert (tmp_path / "local.csv").read_text() == (tmp_path / "remote.csv").read_text()
    assert (tmp_path / "local.html").read_text() == (tmp_path / "remote.html").read_text()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "is no folder"),
        (lambda path: path.mkdir(), "holds no"),
        (lambda path: (path.mkdir(), (path / "a.png").write_bytes(b"?")), "none of 1 images"),
    ],
)
def test_nothing_to_judge_is_one_line_and_writes_nothing(cli, tmp_path, make, words):
    make(tmp_path / "photos")
    told = cli("photos", "-o", "r.html", code=1)
    assert words in told
    assert len(told.splitlines()) == 1
    assert {p.name for p in tmp_path.iterdir()} <= {"photos"}


def test_what_the_model_refuses_leaves_nothing(cli, folder, tmp_path):
    assert "seed" in cli(folder, "-o", "r.html", "--seed", 2**63, code=1)
    assert {p.name for p in tmp_path.iterdir()} == {"photos"}


def test_another_name_is_refused(cli, folder):
    assert "ends in .html" in cli(folder, "-o", "report.pdf", code=1)


def test_masks_alone_are_nothing_to_judge(cli, tmp_path):
    folder = tmp_path / "photos" / "ground_truth"
    folder.mkdir(parents=True)
    Image.new("L", (4, 4)).save(folder / "0_mask.png")
    assert "no images but masks" in cli("photos", "-o", "r.html", code=1)
    assert {p.name for p in tmp_path.iterdir()} == {"photos"}


@pytest.mark.parametrize(
    ("name", "why"), [("good", "All images are usual"), ("<odd>", "No sub-folder is called good")]
)
def test_a_report_of_one_kind_says_why_nothing_is_compared(cli, folder, tmp_path, name, why):
    (tmp_path / "alone").mkdir()
    (folder / name).rename(tmp_path / "alone" / name)
    cli(tmp_path / "alone", "-o", "r.html")
    assert f"{why}: none is compared with others." in (tmp_path / "r.html").read_text()


def test_masks_are_no_images(cli, folder, tmp_path):
    (folder / "ground_truth" / "good").mkdir(parents=True)
    Image.new("L", (4, 4)).save(folder / "ground_truth" / "good" / "0_mask.png")
    cli(folder, "-o", "r.html", "--pictures", 2)
    found = json.loads((tmp_path / "r.json").read_text())
    assert not [row for row in found["results"] if "mask" in row["file"]]
    page = (tmp_path / "r.html").read_text()
    assert page.count('alt="the image"') == 2
    assert "10 more are listed" in page


def test_without_p_values_nothing_is_said_of_them(cli, folder, tmp_path):
    told = cli(folder, "-o", "r.html", "-k", 3, "--fdr", 0.1)
    assert (
        "no decision on 12: the model, or this number of importance samples, has no calibration"
        in told
    )
    page = (tmp_path / "r.html").read_text()
    assert (
        "12 undecided: the model, or this number of importance samples, has no calibration" in page
    )
    for said in ("Anomalous is what", "discoveries", "AUPR", "Histogram"):
        assert said not in page


def test_without_calibration_images_are_listed_by_likelihood(cli, folder, tiny, tmp_path):
    scoring = {**tiny.tiny_manifest()["scoring"], "calibrated_importance_samples": []}
    tiny.write_tiny_bundle(tmp_path / "plain", calibration=None, scoring=scoring)
    cli(folder, "-o", "r.html", "--bundle", tmp_path / "plain")
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["undecided"], found["calibration"]) == (12, None)
    nats = [row["log_likelihood_nats"] for row in found["results"]]
    assert nats == sorted(nats)
    page = (tmp_path / "r.html").read_text()
    assert "nothing is decided" in page
    assert page.count("0 (0%), 6 undecided") == 2


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
def test_a_name_that_is_no_utf8_is_in_all_three_files(cli, folder, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (folder / "good" / "0.png").rename(folder / "good" / name)
    (folder / "broken & co.png").rename(folder / name)
    cli(folder, "-o", "r.html")
    for suffix in ("html", "csv", "json"):
        text = (tmp_path / f"r.{suffix}").read_text("utf-8")
        assert r"good/caf\udce9.png" in text
    found = json.loads(text)
    assert f"good/{name}" in {row["file"] for row in found["results"]}
    assert name in {row["file"] for row in found["unreadable"]}


def test_the_evidence_is_in_the_words_of_the_services_page():
    script = (SERVICE / "web" / "look.js").read_text("utf-8")
    tables = re.findall(r"const (?:WHOLE|BY_GROUP) = \{(.*?)\};", script, re.DOTALL)
    words = dict(re.findall(r'"?([\w/]+)"?: "([^"]+)"', " ".join(tables)))
    assert words == report_page.WORDS
    bundle = load_bundle(SERVICE / "bundles" / "fashion-mnist")
    for name in bundle.reference.names:
        assert "/" not in report_page.in_words(name)
    assert report_page.in_words("prior_eps/z2") == "prior's noise of z2"
