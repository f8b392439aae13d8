"""`iafvae-train reproduce` as people run it: on small images, interrupted anywhere, drawn again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import training.reproduce.reproduction as driver
from training.cli.main import main
from training.cli.reproduce_options import TableOptions
from training.runs.metrics import read_metrics

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
FAST = ("--batch-size", "64", "--compile", "off", "--bf16", "off", "--threads", "1")
ROWS = ("--rows", "diagonal,iaf-2x320")


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys, monkeypatch):
    """The command line in this process: torch is imported once, not for every call."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["iafvae-train", "reproduce", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return Result(int(stopped.value.code or 0), " ".join(out.split()), " ".join(err.split()))

    return call


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two hundred grey images of 8x8 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for i in range(200):
        pixels = generator.integers(0, 256, (2, 2), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def table1(photos: Path, out: Path, *more: str) -> tuple[str, ...]:
    given = ("--data", f"folder:{photos}", *FAST, "--importance-samples", "3", "--limit", "20")
    return ("table1", "--out", str(out), *given, *more)


def document(out: Path, name: str = "table1"):
    return json.loads((out / f"{name}.json").read_text())


def figures(out: Path, name: str = "table1"):
    """What must not depend on interruptions: all that was measured, and of which weights."""
    kept = ("split", "importance_samples", "seed", "images", "step", "elbo", "importance_weighted")
    found = {}
    for row in document(out, name)["rows"]:
        for run_ in row["runs"]:
            measured = run_["measured"]
            found[row["key"], run_["seed"]] = measured and {k: measured[k] for k in kept}
    return found


@pytest.fixture(scope="module")
def straight(photos, tmp_path_factory):
    """Two rows of table 1, trained for two epochs without interruption."""
    out = tmp_path_factory.mktemp("straight")
    arguments = table1(photos, out, *ROWS, "--epochs", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["iafvae-train", "reproduce", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert stopped.value.code == 0
    return out


def test_a_table_has_the_papers_figures_beside_ours(straight):
    text = (straight / "table1.md").read_text()
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    row = lines["IAF, depth 2, width 320"].split(" | ")
    assert (row[1], row[3]) == ("-82.02 ± 0.08", "-79.77 ± 0.06")
    measured = document(straight)["rows"][1]["runs"][0]["measured"]
    assert row[2] == (
        f"**{measured['elbo']['value_nats']:.2f} ± {measured['elbo']['standard_error_nats']:.2f}**"
    )
    assert f"**{measured['importance_weighted']['value_nats']:.2f}" in row[4]
    assert "not run" in lines["IAF, depth 8, width 1920"]
    assert "-80.80 ± 0.07" in lines["IAF, depth 8, width 1920"]
    assert "test split" in text
    assert "3 draws of the latents for each image, seed 0" in text
    assert "do not compare" in text  # they are of other images than the paper's
    assert (straight / "table1.png").read_bytes().startswith(b"\x89PNG")


def test_rows_have_had_the_same_training(straight):
    runs = [run for row in document(straight)["rows"] for run in row["runs"]]
    assert len(runs) == 2
    assert {run["images_seen"] for run in runs} == {2 * run["steps_per_epoch"] * 64 for run in runs}
    assert {run["epochs"] for run in runs} == {2.0}
    assert all(run["minutes"] > 0 for run in runs)
    assert all("1 thread" in run["machines"][0] for run in runs)


def test_no_place_of_this_machine_is_told(straight, photos):
    for name in ("table1.json", "table1.md", "runs/diagonal/config.json"):
        text = (straight / name).read_text()
        assert str(straight) not in text
        if "config" not in name:  # where the images lie a run must know
            assert str(photos) not in text
    assert "--data folder:PATH" in document(straight)["command"]
    config = json.loads((straight / "runs" / "iaf-2x320" / "config.json").read_text())
    assert config["environment"]["command"].endswith("--rows iaf-2x320")


def test_nothing_is_trained_or_measured_twice(run, straight, photos):
    before = {p: p.stat().st_mtime_ns for p in straight.rglob("*") if "checkpoints" in p.parts}
    evaluated = {p: p.stat().st_mtime_ns for p in straight.rglob("evaluation-*.json")}
    result = run(*table1(photos, straight, *ROWS, "--epochs", "2"))
    assert result.returncode == 0
    assert "done:" in result.stdout
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert {p: p.stat().st_mtime_ns for p in straight.rglob("evaluation-*.json")} == evaluated


def test_a_folder_may_have_moved_and_other_images_are_refused(run, straight, photos, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    arguments = table1(moved, straight, *ROWS, "--epochs", "2")
    assert run(*arguments).returncode == 0
    for path in sorted(moved.iterdir())[::2]:
        Image.new("L", (8, 8)).save(path)
    refused = run(*arguments)
    assert refused.returncode == 1
    assert "was trained on other images. The rows of a table share" in refused.stderr


def test_images_that_were_changed_where_they_lie_are_refused(run, straight, photos, tmp_path):
    place, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, place)
    shutil.copytree(straight, out)
    for config in out.glob("runs/*/config.json"):
        config.write_text(config.read_text().replace(f'"folder:{photos}"', f'"folder:{place}"'))
    arguments = table1(place, out, *ROWS, "--epochs", "2")
    assert run(*arguments).returncode == 0
    for path in sorted(place.iterdir())[::2]:
        Image.new("L", (8, 8)).save(path)
    refused = run(*arguments)
    assert refused.returncode == 1
    assert "was trained on other images" in refused.stderr


def test_a_row_knows_its_folder_wherever_later_commands_are_started(tmp_path):
    given = TableOptions(out=tmp_path, data="folder:photos").overrides()
    assert given["data"]["name"] == f"folder:{Path('photos').absolute()}"


def test_the_report_is_drawn_again_from_its_json_alone(run, straight, tmp_path):
    (tmp_path / "table1.json").write_bytes((straight / "table1.json").read_bytes())
    assert run("table1", "--out", str(tmp_path), "--redraw").returncode == 0
    for name in ("table1.md", "table1.json", "table1.png"):
        assert (tmp_path / name).read_bytes() == (straight / name).read_bytes(), name


@pytest.mark.slow  # processes that compile, twice; a signal is tested below
def test_a_call_that_was_killed_after_a_step_goes_on_to_the_same_table(
    run, straight, photos, tmp_path, monkeypatch
):
    """A slice of no minutes is one step; the first kill comes before anything is written down."""
    fit, fits = driver.fit, []

    def one_step(config, run_dir, **options):
        fits.append(run_dir.name)
        if len(fits) > 4:
            return fit(config, run_dir, **options)
        result = fit(config, run_dir, **{**options, "budget_minutes": 0.0})
        if len(fits) in (1, 4):
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(driver, "fit", one_step)
    arguments = table1(photos, tmp_path, *ROWS, "--epochs", "2")
    first = run(*arguments)
    assert first.returncode == 130
    assert "SIGINT:" in first.stdout
    assert "the same command goes on" in first.stdout
    assert "not measured yet" in (tmp_path / "table1.md").read_text()
    assert "not run" in (tmp_path / "table1.md").read_text()
    assert run(*arguments).returncode == 130
    assert run(*arguments).returncode == 0
    assert {"diagonal", "iaf-2x320"} == set(fits[:4])  # in turns
    assert figures(tmp_path) == figures(straight)


def test_an_interrupted_measurement_is_made_again(run, straight, photos, tmp_path, monkeypatch):
    import training.reproduce.measures as measures

    evaluate_run, calls = measures.evaluate_run, []

    def interrupted(run_dir, **options):
        calls.append(run_dir.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate_run(run_dir, **options)

    monkeypatch.setattr(measures, "evaluate_run", interrupted)
    arguments = table1(photos, tmp_path, *ROWS, "--epochs", "2")
    assert run(*arguments).returncode == 130
    found = figures(tmp_path)
    assert found["diagonal", 0] == figures(straight)["diagonal", 0]
    assert found["iaf-2x320", 0] is None
    assert run(*arguments).returncode == 0
    assert calls == ["diagonal", "iaf-2x320", "iaf-2x320"]
    assert figures(tmp_path) == figures(straight)


def test_a_signal_keeps_all_and_says_how_to_go_on(run, photos, tmp_path):
    arguments = table1(photos, tmp_path, *ROWS, "--row-minutes", "60")
    process = subprocess.Popen(
        [sys.executable, "-m", "training", "reproduce", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    give_up = time.monotonic() + 90
    while not read_metrics(tmp_path / "runs" / "diagonal"):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < give_up
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert b"the same command goes on" in out
    (row,) = [row for row in document(tmp_path)["rows"] if row["runs"]]
    assert row["runs"][0]["step"] > 0
    assert row["runs"][0]["minutes"] > 0
    assert "not measured yet" in (tmp_path / "table1.md").read_text()


def test_minutes_are_shared_equally_and_counted(run, photos, tmp_path):
    """Equal by the ledger, whatever the machine's speed: a slice ends at its minutes."""
    minutes = ("--row-minutes", "0.02", "--slice-minutes", "0.01", "--budget-minutes", "0.02")
    first = run(*table1(photos, tmp_path, *ROWS, *minutes))
    assert first.returncode == 0, first.stderr
    assert "budget:" in first.stdout
    runs = [run_ for row in document(tmp_path)["rows"] for run_ in row["runs"]]
    assert [run_["minutes"] for run_ in runs] == pytest.approx([0.01, 0.01])
    assert all(value is not None for value in figures(tmp_path).values())
    second = run(*table1(photos, tmp_path, *ROWS, *minutes))
    assert "done:" in second.stdout
    runs = [run_ for row in document(tmp_path)["rows"] for run_ in row["runs"]]
    assert [run_["minutes"] for run_ in runs] == pytest.approx([0.02, 0.02])
    steps = [run_["step"] for run_ in runs]
    assert steps == [value["step"] for value in figures(tmp_path).values()]  # the newest weights


def test_several_seeds_give_a_mean_and_a_deviation(run, straight, photos, tmp_path):
    one = ("--rows", "diagonal", "--epochs", "1")
    assert run(*table1(photos, tmp_path, *one, "--seeds", "2")).returncode == 0
    found = figures(tmp_path)
    assert set(found) == {("diagonal", 0), ("diagonal", 1)}
    values = [value["elbo"]["value_nats"] for value in found.values()]
    assert values[0] != values[1]
    text = (tmp_path / "table1.md").read_text()
    assert f"**{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}**" in text
    assert "| 0, 1 |" in text


def test_rows_of_other_settings_are_refused_before_anything_is_trained(run, straight, photos):
    before = (straight / "table1.json").read_bytes()
    for more, named in (
        (("--epochs", "2", "--learning-rate", "0.001"), "learning_rate"),
        (("--row-minutes", "1"), "schedule"),
        (("--epochs", "1"), "trained for 2 epochs"),
    ):
        result = run(*table1(photos, straight, "--rows", "iaf-2x1920", *more))
        assert result.returncode == 1
        assert named in result.stderr
        assert "give another --out" in result.stderr
    assert not (straight / "runs" / "iaf-2x1920").exists()
    assert (straight / "table1.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("table1", "--epochs", "1", "--row-minutes", "1"), "give one of them"),
        (("table1", "--rows", "nonsense"), "iaf-8x1920"),
        (("table1", "--split", "tset"), "calibration, test"),
        (("table1", "--budget-minutes", "-1"), "--budget-minutes"),
        (("table1", "--compile", "maybe"), "auto, on, off"),
        (("table1", "--warmup-steps", "-1"), "warmup_steps"),
        (("table1", "--data", "imagenet", "--epochs", "1"), "imagenet"),
        (("table4", "--size", "huge"), "small, mixture, medium, paper"),
        (("table4", "--channels", "0"), "channels"),
        (("figure7", "--free-bits", "0,x"), "--free-bits"),
        (("figure1", "--budget-minutes", "nan"), "--budget-minutes"),
        (("table1", "--redraw"), "nothing to draw yet"),
    ],
)
def test_what_is_wrong_is_one_line(run, tmp_path, arguments, named):
    out = tmp_path / "out"
    result = run(*arguments, "--out", str(out))
    assert result.returncode == 1
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists() or [path.name for path in out.iterdir()] == [".lock"]


def test_a_spoilt_document_is_named(run, tmp_path):
    (tmp_path / "table1.json").write_text('{"format": 1')
    result = run("table1", "--out", str(tmp_path), "--redraw")
    assert result.returncode == 1
    assert "table1.json cannot be read" in result.stderr
