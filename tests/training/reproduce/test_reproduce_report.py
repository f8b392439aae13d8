"""Documents become Markdown and pictures: from the document alone, complete or not."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest
from PIL import Image

from training.reproduce.experiments import table1, table4
from training.reproduce.figures import picture
from training.reproduce.report import markdown, summary, write_report

DIMS = 100


def measured(elbo, error=0.5, step=10):
    def estimate(value):
        return {
            "value_nats": value,
            "standard_error_nats": error,
            "bits_per_dim": -value / (DIMS * math.log(2)),
        }

    return {
        "step": step,
        "dims": DIMS,
        "elbo": estimate(elbo),
        "importance_weighted": estimate(elbo + 2),
        "protocol": "All of the test images.",
    }


def trained(seed, found, *, minutes=30.0, step=10):
    return {
        "seed": seed,
        "step": step,
        "measured_step": found and found["step"],
        "images_seen": 1280,
        "epochs": 2.5,
        "steps_per_epoch": 4,
        "minutes": minutes,
        "machines": ["a machine"],
        "measured": found,
    }


def document(experiment, runs):
    """A document with `runs` by key; the other rows were never run."""
    rows = [
        {
            "key": row.key,
            "cells": list(row.cells),
            "paper": {
                k: {"value": p.value, "deviation": p.deviation} for k, p in row.paper.items()
            },
            "runs": runs.get(row.key, []),
        }
        for row in experiment.rows
    ]
    return {
        "format": 1,
        "kind": "table",
        "experiment": experiment.name,
        "title": experiment.title,
        "columns": list(experiment.columns),
        "across": experiment.across,
        "unit": experiment.unit,
        "measures": dict(experiment.measures),
        "dataset": experiment.dataset,
        "trained_on": [experiment.dataset],
        "notes": list(experiment.notes),
        "plan": "30 minutes each",
        "protocol": {"split": "test", "importance_samples": 128, "seed": 0, "limit": None},
        "command": "iafvae-train reproduce it",
        "git_revision": "0123456789abcdef+",
        "rows": rows,
    }


def size_of(png):
    image = Image.open(io.BytesIO(png))
    image.load()
    return image.size


def test_a_figure_is_a_mean_with_the_deviation_over_seeds_or_the_error_over_images():
    row = {"runs": [trained(0, measured(-80.0)), trained(1, measured(-82.0)), trained(2, None)]}
    found = summary(row, "elbo", "nats")
    assert found == {"value": -81.0, "error": pytest.approx(math.sqrt(2))}
    one = summary({"runs": row["runs"][:1]}, "elbo", "bits/dim")
    assert one["value"] == pytest.approx(80 / (DIMS * math.log(2)))
    assert one["error"] == pytest.approx(0.5 / (DIMS * math.log(2)))
    assert summary({"runs": row["runs"][2:]}, "elbo", "nats") is None
    single = summary({"runs": [trained(0, measured(-80.0, error=None))]}, "elbo", "bits/dim")
    assert single["error"] is None


def test_a_row_says_how_it_was_made_and_what_is_missing():
    runs = {
        "diagonal": [trained(0, measured(-84.5)), trained(1, measured(-85.5), minutes=31.0)],
        "iaf-2x320": [trained(0, None)],
    }
    lines = markdown(document(table1(), runs)).splitlines()
    (diagonal,) = [line for line in lines if line.startswith("| Diagonal")]
    assert "| -84.08 ± 0.10 | **-85.00 ± 0.71** |" in diagonal
    assert diagonal.endswith("| 30.0–31.0 | 1,280 | 2.5 | 0, 1 | a machine |")
    (small,) = [line for line in lines if "width 320" in line]
    assert "| -82.02 ± 0.08 | not measured yet |" in small
    (large,) = [line for line in lines if "depth 8" in line]
    assert "| -80.80 ± 0.07 | not run |" in large
    assert "- Ours: averaged weights (EMA); All of the test images." in lines
    assert "- `iafvae-train reproduce it`, program 0123456789ab+" in lines
    assert not any("do not compare" in line or "trained further" in line for line in lines)
    runs["diagonal"][0]["step"] = 99
    assert "trained further since" in markdown(document(table1(), runs))


def test_nothing_run_yet_is_a_report_too():
    given = document(table4(), {})
    text = markdown(given)
    assert "3.74 / not run" in text
    assert "will be measured on the test split with K = 128, seed 0" in text
    assert min(size_of(picture(given))) > 300


def test_other_images_than_the_papers_are_pointed_out():
    given = {**document(table1(), {}), "trained_on": ["fashion-mnist"]}
    assert "mnist, ours of fashion-mnist: they do not compare" in markdown(given)


def test_the_same_document_gives_the_same_picture_and_ours_changes_it():
    empty = document(table1(), {})
    some = document(table1(), {"iaf-2x320": [trained(0, measured(-82.0))]})
    assert picture(some) == picture(copy.deepcopy(some))
    assert picture(some) != picture(empty)


def layers(points):
    given = document(table1(), {})
    series = {"step": points[-1]["step"], "points": points} if points else None
    row = {"key": "lambda-1", "cells": ["1"], "paper": {}, "runs": [trained(0, series)]}
    return {**given, "kind": "layers", "columns": ["λ, nats"], "measures": {}, "rows": [row]}


def point(step):
    kl = {"z2": 0.5, "z1": 3.0 + step}
    return {"step": step, "reconstruction_nats": 50.0, "kl_nats": kl, "bits_per_dim": 4.0}


def test_layers_are_drawn_once_there_are_two_points():
    assert picture(layers([])) is None
    assert picture(layers([point(4)])) is None
    assert min(size_of(picture(layers([point(4), point(8)])))) > 300
    assert "| 1 |" in markdown(layers([]))
    assert "not measured yet" in markdown(layers([]))
    assert "| 1 | 2.5 | 50.0 | 11.5 | 4.0000 | 1 of 2 |" in markdown(layers([point(4), point(8)]))


def toy(complete):
    figures = dict.fromkeys(
        ("elbo", "log_px", "kl_to_posterior", "information", "aggregate_kl", "overlap"), -1.5
    )
    figures |= {"elbo_standard_error": 0.01, "mass_error": 1e-6}
    names = ("diagonal", "iaf") if complete else ("diagonal",)
    common = {"seed": 0, "figures": figures, "cpu_seconds": 2.0, "machine": "a machine"}
    samples = np.random.default_rng(0).standard_normal((4, 9, 2)).tolist()
    return {
        "kind": "toy",
        "experiment": "figure1",
        "title": "Figure 1",
        "command": "iafvae-train reproduce figure1 --out OUT",
        "git_revision": "unknown",
        "posteriors": ["diagonal", "iaf"],
        "steps": 3,
        "runs": [{"posterior": name, **common} for name in names],
        "shown": {name: {"seed": 0, "samples": samples} for name in names} if complete else {},
    }


def test_the_toy_is_drawn_once_both_posteriors_are_there():
    assert picture(toy(complete=False)) is None
    assert "| IAF | not run |" in markdown(toy(complete=False))
    assert min(size_of(picture(toy(complete=True)))) > 300
    assert "| IAF | 0 | -1.5000 ± 0.0100 |" in markdown(toy(complete=True))


def test_a_picture_that_is_not_due_leaves_the_old_one(tmp_path):
    given = document(table1(), {})
    write_report(tmp_path, given, plot=True)
    before = (tmp_path / "table1.png").read_bytes()
    write_report(tmp_path, {**given, "title": "Another"}, plot=False)
    assert (tmp_path / "table1.png").read_bytes() == before
    assert "# Another" in (tmp_path / "table1.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "table1.json",
        "table1.md",
        "table1.png",
    ]
