"""The paper's figures and ladder tables through the command line, at the smallest size."""

from __future__ import annotations

import functools
import json
import sys

import numpy as np
import pytest
from PIL import Image

import training.reproduce.toy_run as toy_reproduce
from training.cli.main import main
from training.reproduce.toy import Grid, measure
from training.runs.metrics import read_metrics

FAST = ("--batch-size", "64", "--compile", "off", "--bf16", "off", "--threads", "1")
TINY = ("--channels", "6", "--z-channels", "2")


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["iafvae-train", "reproduce", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), " ".join(out.split()), " ".join(err.split())

    return call


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two hundred colour images of 4x4 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for i in range(200):
        pixels = generator.integers(0, 256, (2, 2, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def document(out, name):
    return json.loads((out / f"{name}.json").read_text())


def test_ladders_make_tables_and_share_their_runs(run, photos, tmp_path):
    given = ("--out", tmp_path, "--data", f"folder:{photos}", *FAST, *TINY, "--epochs", "1")
    rows = ("--rows", "4-bottom-up-iaf0,4-bidirectional-diagonal")
    code, _, err = run("table4", *given, *rows, "--limit", "10")
    assert code == 0, err
    measured = {row["key"]: row["runs"] for row in document(tmp_path, "table4")["rows"]}
    assert [key for key, runs in measured.items() if runs] == [
        "4-bottom-up-iaf0",
        "4-bidirectional-diagonal",
    ]
    text = (tmp_path / "table4.md").read_text()
    (diagonal,) = measured["4-bidirectional-diagonal"]
    bits = diagonal["measured"]["elbo"]["bits_per_dim"]
    assert f"3.74 / **{bits:.3f} ± " in text  # the overview
    assert "| Bidirectional | Factorised Gaussians | 4 | 3.74 | " in text
    assert "| Bottom-up | Factorised Gaussians | 4 | – | not run |" in text
    assert diagonal["images_seen"] == diagonal["steps_per_epoch"] * 64

    trained = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.safetensors")}
    code, out, err = run("table3", *given, "--rows", "4-bottom-up-iaf0", "--limit", "10")
    assert code == 0, err
    assert "for 10 minutes" not in out  # table 4 trained it
    assert {p: p.stat().st_mtime_ns for p in trained} == trained
    shared = {row["key"]: row["runs"] for row in document(tmp_path, "table3")["rows"]}
    assert shared["4-bottom-up-iaf0"] == measured["4-bottom-up-iaf0"]
    assert "3.67 / not run" in (tmp_path / "table3.md").read_text()
    assert (tmp_path / "table3.png").exists()


def test_more_draws_add_the_importance_weighted_column(run, photos, tmp_path):
    given = ("--out", tmp_path, "--data", f"folder:{photos}", *FAST, *TINY, "--epochs", "1")
    more = ("--rows", "4-bidirectional-diagonal", "--importance-samples", "3", "--limit", "5")
    assert run("table4", *given, *more)[0] == 0
    assert "bits/dim, IW-3, ours" in (tmp_path / "table4.md").read_text()


def test_figure_7_records_every_layers_nats(run, photos, tmp_path):
    given = ("--out", tmp_path, "--data", f"folder:{photos}", *FAST, *TINY, "--epochs", "3")
    code, _, err = run("figure7", *given, "--depth", "2", "--free-bits", "0,1")
    assert code == 0, err
    rows = document(tmp_path, "figure7")["rows"]
    assert [row["key"] for row in rows] == ["lambda-0", "lambda-1"]
    for row in rows:
        (trained,) = row["runs"]
        points = trained["measured"]["points"]
        steps = [trained["steps_per_epoch"] * epoch for epoch in (1, 2, 3)]
        assert [point["step"] for point in points] == steps
        recorded = {r["step"]: r for r in read_metrics(tmp_path / "runs" / row["key"])}
        for point in points:
            assert list(point["kl_nats"]) == ["z2", "z1"]  # top first
            elbo = -point["reconstruction_nats"] - sum(point["kl_nats"].values())
            assert elbo == pytest.approx(recorded[point["step"]]["elbo_nats"], rel=1e-6)
    free, held = (row["runs"][0]["measured"]["points"][-1]["kl_nats"] for row in rows)
    assert sum(held.values()) > sum(free.values())  # a nat a part costs nothing
    assert (tmp_path / "figure7.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "figure7.md").read_text()
    assert "layers above 1 nat" in text
    assert "Validation split" in text


def test_figure_7_has_points_between_epochs_where_slices_end(run, photos, tmp_path):
    given = ("--out", tmp_path, "--data", f"folder:{photos}", *FAST, *TINY, "--depth", "2")
    length = ("--epochs", "500", "--budget-minutes", "0.01")
    code, out, err = run("figure7", *given, *length, "--free-bits", "0")
    assert code == 0, err
    assert "budget:" in out
    ((trained,),) = (row["runs"] for row in document(tmp_path, "figure7")["rows"])
    assert trained["measured"]["step"] == trained["step"]  # wherever the slice ended
    layers = (tmp_path / "runs" / "lambda-0" / "layers.jsonl").exists()
    assert layers == bool(trained["step"] % trained["steps_per_epoch"])


def test_figure_1_is_fitted_once_and_drawn(run, tmp_path, monkeypatch):
    fit_toy, fits = toy_reproduce.fit_toy, []

    def interrupted(posterior, **options):
        fits.append((posterior, options["seed"]))
        if len(fits) == 2:
            raise KeyboardInterrupt
        return fit_toy(posterior, **options)

    monkeypatch.setattr(toy_reproduce, "fit_toy", interrupted)
    coarsely = functools.partial(measure, grid=Grid(61), draws=500)
    monkeypatch.setattr(toy_reproduce, "measure", coarsely)
    given = ("figure1", "--out", tmp_path, "--steps", "4", "--seeds", "1")
    code, out, _ = run(*given)
    assert code == 130
    assert "the same command goes on" in out
    text = (tmp_path / "figure1.md").read_text()
    assert "| IAF | not run |" in text
    assert not (tmp_path / "figure1.png").exists()
    code, out, err = run(*given)
    assert code == 0, err
    assert fits == [("diagonal", 0), ("iaf", 0), ("iaf", 0)]
    assert (tmp_path / "figure1.png").read_bytes().startswith(b"\x89PNG")
    kept = document(tmp_path, "figure1")
    figures = {r["posterior"]: r["figures"] for r in kept["runs"]}
    text = (tmp_path / "figure1.md").read_text()
    for name, label in (("diagonal", "diagonal Gaussian"), ("iaf", "IAF")):
        assert f"| {label} | 0 | {figures[name]['elbo']:.4f} ± " in text
        samples = np.asarray(kept["shown"][name]["samples"])
        assert samples.shape == (4, 1000, 2)
    pictures = (tmp_path / "figure1.png").read_bytes()
    assert run("figure1", "--out", tmp_path, "--redraw")[0] == 0
    assert (tmp_path / "figure1.png").read_bytes() == pictures


def test_figure_1_starts_no_fit_after_its_minutes(run, tmp_path):
    code, out, _ = run("figure1", "--out", tmp_path, "--budget-minutes", "0")
    assert code == 0
    assert "budget:" in out
    assert not (tmp_path / "runs").exists()
