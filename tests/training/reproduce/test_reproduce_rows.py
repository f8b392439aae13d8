"""The paper's figures, typed in a second time, and the runs that stand behind the rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.config import (
    ConfigError,
    ConvIafPosterior,
    DiagonalPosterior,
    IafPosterior,
    ResnetVaeConfig,
)
from model.priors import CouplingPrior, StandardNormalPrior
from training.reproduce.experiments import (
    FREE_BITS,
    figure7,
    priors,
    selected,
    table1,
    table3,
    table4,
)


def by_key(experiment):
    return {row.key: row for row in experiment.rows}


def test_table_1_is_the_papers():
    rows = by_key(table1())
    paper = {
        key: [
            (row.paper[name].value, row.paper[name].deviation)
            for name in ("elbo", "importance_weighted")
        ]
        for key, row in rows.items()
    }
    assert paper == {
        "diagonal": [(-84.08, 0.10), (-81.08, 0.08)],
        "iaf-2x320": [(-82.02, 0.08), (-79.77, 0.06)],
        "iaf-2x1920": [(-81.17, 0.08), (-79.30, 0.08)],
        "iaf-4x1920": [(-80.93, 0.09), (-79.17, 0.08)],
        "iaf-8x1920": [(-80.80, 0.07), (-79.10, 0.07)],
    }
    posteriors = {key: row.config.model.posterior for key, row in rows.items()}
    assert posteriors["diagonal"] == DiagonalPosterior()
    for key, posterior in posteriors.items():
        if key != "diagonal":
            steps, width = key.removeprefix("iaf-").split("x")
            assert posterior == IafPosterior(steps=int(steps), hidden=(int(width), int(width)))
    assert all(row.config.data.name == "mnist" for row in rows.values())


def test_priors_and_posteriors_are_crossed_on_table_1s_rows():
    rows, published = by_key(priors()), by_key(table1())
    assert list(rows) == ["diagonal", "diagonal-coupling", "iaf-2x320", "iaf-2x320-coupling"]
    for posterior in ("diagonal", "iaf-2x320"):
        normal, coupling = rows[posterior], rows[f"{posterior}-coupling"]
        assert normal.config == published[posterior].config  # in one directory they share the run
        assert normal.paper == published[posterior].paper
        assert normal.config.model.prior == StandardNormalPrior()
        assert coupling.config.model == replace(normal.config.model, prior=CouplingPrior())
        assert not coupling.paper  # which has no such prior


def test_every_table_says_that_expressive_posteriors_are_better():
    """The paper's own ordering: a figure in the wrong row would break it."""
    vlb = [row.paper["elbo"].value for row in table1().rows]
    assert vlb == sorted(vlb)
    rows = by_key(table4())
    for depth in (4, 8, 12):
        names = ("diagonal", "iaf0", "iaf1", "iaf2", "iaf1x2")
        bits = [rows[f"{depth}-bidirectional-{name}"].paper["elbo"].value for name in names]
        assert bits == sorted(bits, reverse=True)
        one = "iaf1"
        both = [
            rows[f"{depth}-{way}-{one}"].paper["elbo"] for way in ("bottom-up", "bidirectional")
        ]
        assert both[0].value > both[1].value


def test_tables_3_and_4_agree_where_both_can_be_read():
    """Table 3's location-and-scale column is a part of table 4."""
    third, fourth = by_key(table3()), by_key(table4())
    shared = [key for key in third if not key.endswith("-location")]
    assert len(shared) == 8
    unread = [key for key in shared if not fourth[key].paper]
    assert unread == ["4-bottom-up-iaf0"]
    for key in set(shared) - set(unread):
        assert third[key].paper["elbo"] == fourth[key].paper["elbo"]
        assert third[key].config == fourth[key].config  # in one directory they share the run


def test_table_4_says_what_issue_and_paper_say():
    rows = by_key(table4())
    assert len(rows) == 24
    figures = {key: row.paper["elbo"].value for key, row in rows.items() if row.paper}
    assert [figures[f"{d}-bidirectional-diagonal"] for d in (4, 8, 12)] == [3.74, 3.60, 3.46]
    assert [figures[f"{d}-bidirectional-iaf2"] for d in (4, 8, 12)] == [3.54, 3.39, 3.27]
    assert [figures[f"{d}-bidirectional-iaf1x2"] for d in (4, 8, 12)] == [3.53, 3.36, 3.26]
    assert [figures[f"{d}-bottom-up-iaf1"] for d in (4, 8, 12)] == [3.61, 3.49, 3.38]
    assert set(rows) - set(figures) == {"4-bottom-up-diagonal", "4-bottom-up-iaf0"}


def test_table_3_changes_the_update_alone():
    rows = by_key(table3())
    assert len(rows) == 16
    location = {k: row.paper["elbo"].value for k, row in rows.items() if k.endswith("-location")}
    assert list(location.values()) == [3.67, 3.61, 3.66, 3.58, 3.54, 3.48, 3.51, 3.45]
    for key in location:
        full = rows[key.removesuffix("-location")]
        assert rows[key].config.model.posterior.update == "location"
        assert full.config.model.posterior.update == "affine"
        assert rows[key].cells[:-1] == full.cells[:-1]


def test_a_ladders_row_is_what_its_key_says():
    rows = by_key(table4("medium", {"optim": {"batch_size": 16}, "model": {"channels": 24}}))
    config = rows["12-bottom-up-iaf1"].config
    assert isinstance(config.model, ResnetVaeConfig)
    assert config.model.depth == 12
    assert config.model.inference == "bottom_up"
    assert config.model.posterior == ConvIafPosterior(hidden_layers=1)
    assert config.model.channels == 24
    assert config.optim.batch_size == 16
    assert config.data.name == "cifar10"
    assert rows["8-bidirectional-iaf1x2"].config.model.posterior.steps == 2
    settings = {(row.config.optim, row.config.train, row.config.data) for row in rows.values()}
    assert len(settings) == 1  # rows differ in the model alone


def test_figure_7_changes_the_minimum_alone():
    experiment = figure7("paper")
    minima = [row.config.train.free_bits_nats for row in experiment.rows]
    assert minima == [0, 0.125, 0.25, 0.5, 1, 2, 4, 8] == list(FREE_BITS)
    assert {row.config.model for row in experiment.rows} == {experiment.rows[0].config.model}
    assert experiment.rows[0].config.model.depth == 24
    some = figure7(depth=3, free_bits=[1, 0.25, 1])
    assert [row.key for row in some.rows] == ["lambda-0.25", "lambda-1"]
    assert some.rows[0].config.model.depth == 3


@pytest.mark.parametrize("make", [table1, priors, table3, table4, figure7])
def test_keys_are_unique_and_safe_as_directories(make):
    keys = [row.key for row in make().rows]
    assert len(set(keys)) == len(keys)
    assert all(key.replace("-", "").replace(".", "").isalnum() for key in keys)


def test_rows_are_chosen_by_patterns():
    experiment = table4()
    assert selected(experiment, []) == experiment.rows
    four = selected(experiment, ["4-*", "12-bottom-up-diagonal"])
    assert len(four) == 9
    with pytest.raises(ConfigError, match=r"5-\* matches no row of table4; .*4-bottom-up-diagonal"):
        selected(experiment, ["4-*", "5-*"])


def test_what_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="small, mixture, medium, paper"):
        table4("tiny")
    with pytest.raises(ConfigError, match="small, mixture, medium, paper"):
        figure7("tiny")
    with pytest.raises(ConfigError, match="--free-bits"):
        figure7(free_bits=[])
    with pytest.raises(ConfigError, match="free_bits_nats"):
        figure7(free_bits=[-1])
