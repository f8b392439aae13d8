"""The recorded command starts the same run again, and every option says what it does."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from model.config import ConfigError, DiagonalPosterior
from training.cli.main import app
from training.cli.reproduce_options import TableOptions, command_line
from training.config import RunConfig, Runtime, run_preset
from training.errors import TrainingError
from training.fit import fit as fit_module
from training.fit.fit import FitResult
from training.overrides import with_settings
from training.runs.provenance import OPTIONS, fit_command, git_revision

CHANGED = {
    "likelihood": "discretized_logistic",
    "size": (9, 8),
    "channels": 3,
    "distorted": 0.25,
    "epochs": 7,
    "batch_size": 16,
    "accumulate": 2,
    "learning_rate": 0.005,
    "warmup_steps": 11,
    "kind": "adam",
    "schedule": "trapezoid",
    "decay_fraction": 0.25,
    "weight_decay": 0.01,
    "ema_decay": 0.9,
    "clip_norm": 0.5,
    "free_bits_nats": 0.5,
    "kl_warmup_epochs": 2.5,
    "importance_samples": 3,
    "seed": 3,
}


def cosine(config: RunConfig) -> RunConfig:
    return replace(config, optim=replace(config.optim, schedule="cosine"))


def another_ladder(_: RunConfig) -> RunConfig:
    config = run_preset("cifar10-small")
    model = replace(
        config.model,
        levels=(2, 1),
        z_channels=4,
        inference="bottom_up",
        scale="channel",
        posterior=DiagonalPosterior(),
    )
    return replace(config, model=model, optim=replace(config.optim, decay_fraction=0.0))


def changed_everywhere(config: RunConfig) -> RunConfig:
    for part, key in OPTIONS.values():
        config = replace(config, **{part: replace(getattr(config, part), **{key: CHANGED[key]})})
    data = replace(config.data, name="folder:/home/somebody/photos", horizontal_flips=True)
    return replace(config, data=data)


@pytest.mark.parametrize(
    "change", [lambda config: config, cosine, another_ladder, changed_everywhere]
)
def test_the_recorded_command_starts_the_same_run(
    change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, started = change(run_preset("mnist")), []

    def record(config: RunConfig, *_: Any, **__: Any) -> FitResult:
        started.append(config)
        return FitResult("done", 1, 1, -1.0, 1.0, 0)

    monkeypatch.setattr(fit_module, "fit", record)
    words = shlex.split(fit_command(config))
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output
    here = f"folder:{Path('PATH').absolute()}"  # so that later commands find it from elsewhere
    name = here if config.data.name.startswith("folder:") else config.data.name
    assert started == [replace(config, data=replace(config.data, name=name))]
    assert "somebody" not in fit_command(config)


def test_a_run_that_has_no_bound_is_told_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which knows no numbers that are not finite."""
    ended = FitResult("done", 1, 1, -math.inf, math.nan, 0)
    monkeypatch.setattr(fit_module, "fit", lambda *_, **__: ended)
    result = CliRunner().invoke(app, ["fit", "--out", "x", "--json"])
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    assert found["elbo_nats"] is None


def test_sizes_are_of_digits() -> None:
    words = ["fit", "--data", "folder:x", "--size", "\u00b2", "--out", "x"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "--size is a number" in f"{result.output}{result.exception}"


def test_a_fall_at_the_end_of_no_minutes_is_refused(tmp_path: Path) -> None:
    config = run_preset("mnist")
    config = replace(config, optim=replace(config.optim, schedule="budget"))
    for minutes in (None, 0.0):
        with pytest.raises(TrainingError, match="--budget-minutes"):
            fit_module.fit(
                config,
                tmp_path,
                runtime=Runtime(),
                data_dir=None,
                resume=False,
                budget_minutes=minutes,
                console=Console(),
            )


def test_what_a_shell_would_read_otherwise_is_quoted() -> None:
    options = TableOptions(out=Path("x"), rows=["4-*", "8-*"])
    assert "--rows '4-*,8-*'" in command_line("table1", options)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("levels=[3]", "PATH=VALUE"),
        ("model.levels", "PATH=VALUE"),
        ("preset=mnist", "PATH=VALUE"),
        ("model.depth=3", "no such field; there are channels"),
        ("model.hidden.more=3", "no such field"),
        ("model.hidden=[9,9", "--set model.hidden takes JSON such as 450, not"),
        ("optim.learning_rate=nan", "takes JSON such as 0.0"),
        ("model.posterior.kind=diagonal", "has no field"),
        ("model.hidden=-1", "hidden must be positive"),
        ("optim.kind=sgd", "adamax or adam"),
    ],
)
def test_a_setting_that_leads_nowhere_is_refused(setting: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        with_settings(run_preset("mnist"), [setting])


def test_every_option_has_a_help_text() -> None:
    commands = typer.main.get_command(app).commands
    assert set(commands) >= {"fit", "evaluate", "export", "strip", "anomaly", "bound", "curve"}
    for name, command in commands.items():
        assert command.help
        silent = [p.name for p in command.params if p.name != "help" and not p.help]
        assert silent == [], name


def test_every_option_that_changes_numbers_is_recorded() -> None:
    known = {
        option for p in typer.main.get_command(app).commands["fit"].params for option in p.opts
    }
    assert set(OPTIONS) <= known


def test_the_revision_is_a_commit_or_unknown() -> None:
    revision = git_revision()
    assert revision == "unknown" or len(revision.rstrip("+")) == 40
