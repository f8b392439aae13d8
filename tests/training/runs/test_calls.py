"""The list of calls that made a run, and the options that may change at a resume."""

from __future__ import annotations

import io
import json
import re
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from model.config import ConfigError
from training.cli.main import main
from training.config import OptimConfig, run_preset
from training.errors import TrainingError
from training.fit.progress import Budget, Scale, shown
from training.runs.checkpoint import load_checkpoint
from training.runs.directory import open_run, write_config
from training.runs.history import (
    rate_note,
    read_environment,
    until_step,
    with_call,
    with_command,
)
from training.runs.provenance import fit_command
from training.schedules import learning_rate_at

CONFIG = run_preset("mnist")
LONGER = replace(
    CONFIG,
    train=replace(CONFIG.train, epochs=300),
    optim=replace(CONFIG.optim, decay_fraction=0.15),
)


def environment(config=CONFIG, **changes):
    return {"command": fit_command(config), "git_revision": "abc", "threads": 1, **changes}


def test_a_call_is_listed_where_anything_is_new() -> None:
    first = with_call({}, None, CONFIG, environment(), 0)
    assert [call["step"] for call in first["calls"]] == [0]
    same = with_call(first, CONFIG, CONFIG, environment(), 500)
    assert same["calls"] == first["calls"]
    assert same["command"] == fit_command(CONFIG)
    moved = with_call(same, CONFIG, CONFIG, environment(threads=2), 600)
    assert moved["calls"][1] == {
        "step": 600,
        "command": "iafvae-train fit --resume --out RUN",
        "threads": 2,
    }
    assert moved["command"] == fit_command(CONFIG)  # of machines the list tells
    longer = with_call(moved, CONFIG, LONGER, environment(LONGER, threads=2), 700)
    resumed = "iafvae-train fit --resume --epochs 300 --decay-fraction 0.15 --out RUN"
    assert longer["calls"][2] == {"step": 700, "command": resumed}
    assert longer["command"] == f"{fit_command(CONFIG)}; from step 700: {resumed}"
    assert len(with_call(longer, LONGER, LONGER, environment(threads=2), 800)["calls"]) == 3


def test_a_call_has_not_made_the_weights_that_it_began_with() -> None:
    """`export` of a run that was taken up again, before that saved anything."""
    first = with_call({}, None, CONFIG, environment(), 0)
    fitted = with_command(first, 700, "iafvae-train fit-prior RUN --minutes 4")
    longer = with_call(fitted, CONFIG, LONGER, environment(LONGER, threads=2), 700)
    begun = until_step(longer, 700)
    assert begun["command"] == fitted["command"]
    assert (begun["calls"], begun["threads"]) == (fitted["calls"], 1)
    assert until_step(longer, 600) == first
    assert until_step(longer, 701) == longer
    assert until_step(first, 0) == first
    assert until_step({}, 5) == {}


def test_calls_of_steps_that_were_lost_count_from_where_it_goes_on() -> None:
    first = with_call({}, None, CONFIG, environment(), 0)
    longer = with_call(first, CONFIG, LONGER, environment(LONGER), 700)
    back = with_call(longer, LONGER, LONGER, environment(LONGER), 400)
    assert [call["step"] for call in back["calls"]] == [0, 400]
    assert "--epochs 300" in back["calls"][1]["command"]
    anew = with_call(longer, LONGER, LONGER, environment(LONGER), 0)
    assert [call["command"] for call in anew["calls"]] == [fit_command(LONGER)]


def test_a_run_from_before_the_list_keeps_what_it_said() -> None:
    told = {"command": "iafvae-train fit --epochs 70; by hand", "git_revision": "old", "threads": 1}
    found = with_call(told, CONFIG, CONFIG, environment(), 9)
    assert found["calls"][0] == {"step": 0, **told}
    assert found["calls"][1]["git_revision"] == "abc"
    assert found["command"] == told["command"]


def test_what_the_directory_says_is_read_or_passed_over(tmp_path: Path) -> None:
    assert read_environment(tmp_path) == {}
    write_config(tmp_path, CONFIG, {"threads": 3})
    assert read_environment(tmp_path) == {"threads": 3}
    (tmp_path / "config.json").write_text("[]")
    assert read_environment(tmp_path) == {}


def test_the_rate_may_be_thought_over_and_nothing_else(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG, {})
    faster = replace(LONGER, optim=replace(LONGER.optim, learning_rate=0.004))
    open_run(tmp_path, faster, resume=True)
    first = with_call({}, None, CONFIG, environment(), 0)
    called = with_call(first, CONFIG, faster, environment(faster), 700)["calls"][1]["command"]
    assert "--epochs 300 --learning-rate 0.004 --decay-fraction 0.15" in called
    distorted = replace(LONGER, data=replace(LONGER.data, distorted=0.5))
    open_run(tmp_path, distorted, resume=True)
    called = with_call(first, CONFIG, distorted, environment(distorted), 700)["calls"][1]["command"]
    assert "--distorted 0.5" in called
    decayed = replace(faster, optim=replace(faster.optim, weight_decay=1.0))
    ladder = replace(LONGER, train=replace(LONGER.train, free_bits_nats=0.1))
    for draws, refused in ((1, True), (5, False)):  # of several draws there are no free bits
        train = replace(ladder.train, importance_samples=draws)
        run = tmp_path / str(draws)
        run.mkdir()
        write_config(run, replace(ladder, train=train), {})
        parts = replace(ladder, train=train, optim=replace(ladder.optim, accumulate=2))
        with pytest.raises(TrainingError, match="accumulate") if refused else nullcontext():
            open_run(run, parts, resume=True)
    with pytest.raises(TrainingError, match=r"weight_decay.*--with-validation and") as told:
        open_run(tmp_path, decayed, resume=True)
    assert "decay_fraction:" not in str(told.value)
    assert "learning_rate:" not in str(told.value)


def test_a_jump_of_the_rate_is_told() -> None:
    assert rate_note(CONFIG, CONFIG, 90, 1) == ""
    assert rate_note(CONFIG, LONGER, 50, 1) == ""  # before either falls
    assert re.search(r"at 0\.002, not 0\.0005$", rate_note(CONFIG, LONGER, 90, 1))
    assert re.search(r"at 0\.0005, not 0\.002$", rate_note(LONGER, CONFIG, 90, 1))


def test_a_rate_without_a_fall_stays() -> None:
    never = OptimConfig(decay_fraction=0.0, warmup_steps=0)
    assert {learning_rate_at(never, step, 100) for step in range(100)} == {0.002}
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="decay_fraction"):
            OptimConfig(decay_fraction=wrong)


# --- the bar ----------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("training.fit.progress.time.monotonic", found)
    return found


def test_a_budget_counts_from_its_begin(clock: Clock) -> None:
    budget = Budget(2.0)
    clock.seconds += 1000
    assert budget.spent == 0.0
    assert not budget.spent_up
    budget.begin()
    clock.seconds += 90
    budget.begin()
    assert budget.spent == 1.5
    clock.seconds += 30
    assert budget.spent_up
    endless = Budget(None)
    endless.begin()
    clock.seconds += 1e9
    assert not endless.spent_up


def test_the_bar_shows_minutes_where_they_end_the_call(clock: Clock) -> None:
    budget = Budget(10.0)
    scale = Scale(budget, total_steps=None, epochs=None)
    assert scale.total == 10.0
    budget.begin()
    clock.seconds += 150
    assert scale.at(77) == {"completed": 2.5, "place": "2.5/10 min, step 77"}
    clock.seconds += 1e6
    assert scale.at(78)["completed"] == 10.0
    steps = Scale(Budget(None), total_steps=200, epochs=4)
    assert (steps.total, steps.at(5)) == (200, {"completed": 5, "place": "5/200"})


def test_a_line_says_how_long_is_left(clock: Clock) -> None:
    budget = Budget(None)
    assert Scale(budget, total_steps=None, epochs=None).left(9) == ""
    scale = Scale(budget, total_steps=100, epochs=4, first=9)
    assert scale.left(10) == ""  # the first step compiles: it says nothing of the others
    budget.begin()
    clock.seconds += 90
    assert scale.left(40) == ", 3 min left"
    assert scale.left(80) == ", 26 s left"
    short = Budget(2.0)
    short.begin()
    clock.seconds += 30
    assert Scale(short, total_steps=10**6, epochs=4).left(40) == ", 2 min left"


@pytest.mark.parametrize(("epochs", "line"), [(None, "epoch 3  valid"), (9, "epoch 3/9  valid")])
def test_an_endless_run_has_no_last_epoch(epochs: int | None, line: str) -> None:
    class Silent:
        def write(self, *_: object) -> None: ...

    console = Console(file=io.StringIO(), width=120)
    options = {"total_steps": None, "step": 0, "epochs": epochs, "budget": Budget(1.0)}
    with shown(console, Silent(), **options) as observer:
        observer.validation(30, 3, {"elbo_nats": -1.0, "kl_nats": 1.0, "bits_per_dim": 1.0})
    assert line in console.file.getvalue()


def test_many_short_epochs_are_a_line_every_few_seconds(clock: Clock) -> None:
    class Counting:
        written = 0

        def write(self, *_: object) -> None:
            self.written += 1

    console, recorder = Console(file=io.StringIO(), width=120), Counting()
    options = {"total_steps": None, "step": 0, "epochs": None, "budget": Budget(1.0)}
    with shown(console, recorder, **options) as observer:
        for epoch in range(1, 101):
            clock.seconds += 0.5
            observer.validation(epoch, epoch, {"elbo_nats": -1.0, "kl_nats": 1, "bits_per_dim": 1})
    told = [int(number) for number in re.findall(r"epoch (\d+)", console.file.getvalue())]
    assert told == [*range(1, 11), *range(20, 101, 10)]
    assert recorder.written == 100


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(80):
        Image.fromarray(generator.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def test_fit_resumes_with_another_length_and_fall_and_says_so(
    photos: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    out = tmp_path / "run"

    def fit(*words: str) -> tuple[int, str]:
        fixed = ["--compile", "off", "--bf16", "off", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["iafvae-train", "fit", *words, *fixed])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), " ".join("".join(capsys.readouterr()).split())

    tiny = ["model.hidden=16", "model.posterior.hidden=[8]", "model.latent_dim=4"]
    settings = [word for setting in tiny for word in ("--set", setting)]
    start = ["--data", f"folder:{photos}", "--batch-size", "16", "--epochs", "4", *settings]
    code, said = fit(*start, "--decay-fraction", "0.5", "--schedule", "cosine")
    assert code == 1
    assert "the schedule cosine has none" in said
    code, said = fit(*start, "--decay-fraction", "0.5", "--budget-minutes", "0")
    assert not code, said
    step = load_checkpoint(out).step
    code, said = fit("--resume", "--epochs", "2", "--decay-fraction", "1")
    assert not code, said
    assert "the learning rate goes on at" in said
    config = json.loads((out / "config.json").read_text())
    assert config["optim"]["decay_fraction"] == 1.0
    calls = config["environment"]["calls"]
    assert calls[1]["step"] == step > 0
    assert calls[1]["command"] == (
        "iafvae-train fit --resume --epochs 2 --decay-fraction 1.0 --out RUN"
    )
    assert "--set model.hidden=16" in calls[0]["command"]
    assert config["environment"]["command"] == (
        f"{calls[0]['command']}; from step {step}: {calls[1]['command']}"
    )
    assert str(photos) not in config["environment"]["command"]
