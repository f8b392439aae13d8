"""Minutes of a curve against metrics made by hand; what cannot be drawn is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from training.cli.main import main
from training.config import run_preset
from training.errors import TrainingError
from training.evaluate.curve import curve_document, curve_picture, run_curve
from training.runs.directory import write_config
from training.runs.metrics import minutes_clock


def train(step, speed, elbo=-100.0):
    figures = {"elbo_nats": elbo, "bits_per_dim": None if elbo is None else -elbo / 100}
    return {"step": step, "kind": "train", "images_per_second": speed, **figures}


def validation(step, elbo):
    return {"step": step, "kind": "validation", "elbo_nats": elbo, "bits_per_dim": -elbo / 100}


# 60 images a batch: 50 steps at 50 images/s are a minute. The first slice compiles and is stopped
# at step 120, of which steps 101 to 120 were never told; the next slice goes on from there.
RECORDS = [
    train(50, 25.0),  # two minutes, compilation and all
    train(100, 50.0),  # one
    validation(100, -90.0),
    train(150, 50.0, None),  # one: steps 101 to 150 at the speed of the second slice
    train(200, 100.0),  # half
    validation(200, -80.0),
    {"step": 230, "kind": "skipped"},
]


def run_of(folder: Path, name: str, preset: str = "mnist", records=RECORDS) -> Path:
    run = folder / name
    run.mkdir()
    config = run_preset(preset)
    write_config(run, replace(config, optim=replace(config.optim, batch_size=60)), {})
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return run


@pytest.mark.parametrize(
    ("step", "minutes"),
    [(0, 0.0), (25, 1.0), (50, 2.0), (100, 3.0), (120, 3.4), (150, 4.0), (200, 4.5), (300, 5.5)],
)
def test_minutes_add_up_over_slices(step: int, minutes: float) -> None:
    assert minutes_clock(RECORDS, 60)(step) == pytest.approx(minutes)


def test_a_run_without_speeds_has_no_minutes() -> None:
    assert minutes_clock([], 60)(100) == 0.0
    assert minutes_clock([train(50, None), train(100, 50.0)], 60)(100) == pytest.approx(2.0)


def test_a_curve_holds_each_figure_at_its_minute(tmp_path: Path) -> None:
    curve = run_curve(run_of(tmp_path, "a"))
    assert [(p["minutes"], p["elbo_nats"]) for p in curve["validation"]] == [
        (pytest.approx(3.0), -90.0),
        (pytest.approx(4.5), -80.0),
    ]
    assert [p["step"] for p in curve["training"]] == [50, 100, 200]  # null is no figure
    assert curve["unit"] == "nats"
    assert (curve["step"], curve["epochs"]) == (230, 2)
    assert curve["minutes"] == pytest.approx(4.8)
    earlier = run_curve(tmp_path / "a", 150)
    assert len(earlier["validation"]) == 1
    assert earlier["minutes"] == pytest.approx(4.0)


def test_long_trainings_are_thinned_to_means(tmp_path: Path) -> None:
    records = [train(50 * (i + 1), 50.0, -float(i)) for i in range(1000)]
    curve = run_curve(run_of(tmp_path, "long", records=records))
    assert len(curve["training"]) == 200
    assert curve["training"][0]["elbo_nats"] == pytest.approx(-2.0)  # of 0 to 4
    assert curve["training"][-1]["step"] == 50_000


def test_runs_of_one_unit_are_drawn_together(tmp_path: Path) -> None:
    one, two = run_of(tmp_path, "one"), run_of(tmp_path, "two")
    document = curve_document([one, two])
    assert [run["run"] for run in document["runs"]] == ["one", "two"]
    assert not math.isnan(document["runs"][0]["images_per_second"])
    picture = curve_picture(document)
    assert picture is not None
    assert picture.startswith(b"\x89PNG")
    assert str(tmp_path) not in json.dumps(document)
    young = run_of(tmp_path, "young", records=RECORDS[:1])
    assert curve_picture(curve_document([young])) is None


def called(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["iafvae-train", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, " ".join("".join(capsys.readouterr()).split())


def test_the_command(tmp_path: Path, monkeypatch, capsys) -> None:
    one, bits = run_of(tmp_path, "one"), run_of(tmp_path, "bits", "fashion-mnist-flat")
    code, said = called(["curve", one], monkeypatch, capsys)
    assert not code
    assert "one: 4.8 minutes, step 230, 2 epochs" in said
    assert (one / "curve.png").is_file()
    assert json.loads((one / "curve.json").read_text())["unit"] == "nats"
    young = run_of(tmp_path, "young", records=RECORDS[:3])
    assert "step 100, 1 epoch written" in called(["curve", young], monkeypatch, capsys)[1]
    for words, named in (
        (["curve", one, bits, "--out", tmp_path / "out"], "share no axis"),
        (["curve", one, one], "give --out"),
        (["curve", tmp_path], "holds no run"),
    ):
        code, said = called(words, monkeypatch, capsys)
        assert code == 1
        assert named in said
    empty = run_of(tmp_path, "empty", records=[])
    with pytest.raises(TrainingError, match="recorded no step"):
        run_curve(empty)
