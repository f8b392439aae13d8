"""`iafvae-train fit` as people run it: start, interrupt, resume, refuse."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.cli.main import main
from training.fit.averages import Step
from training.fit.trainer import Trainer
from training.runs.checkpoint import load_checkpoint

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "training", *arguments]


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process: torch is imported once, not for every call."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["iafvae-train", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return Result(int(stopped.value.code or 0), " ".join(out.split()), " ".join(err.split()))

    return call


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for i in range(200):
        pixels = generator.integers(0, 256, (3, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def fit_arguments(photos: Path, out: Path, *more: str) -> tuple[str, ...]:
    return (
        "fit",
        "--preset",
        "fashion-mnist-flat",
        "--data",
        f"folder:{photos}",
        "--batch-size",
        "32",
        "--kl-warmup-epochs",
        "0",
        "--compile",
        "off",
        "--bf16",
        "off",
        "--out",
        str(out),
        *more,
    )


def test_a_folder_of_images_becomes_a_run(run: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run(*fit_arguments(photos, out, "--epochs", "2"))
    assert result.returncode == 0, result.stderr
    config = json.loads((out / "config.json").read_text())
    assert config["model"]["image_shape"] == [1, 12, 12]
    assert config["model"]["likelihood"] == "discretized_logistic"
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [m["kind"] for m in metrics].count("validation") == 2
    assert list((out / "tensorboard").glob("events.*"))
    assert list((out / "sheets").glob("samples-*.png"))
    assert list((out / "sheets").glob("reconstructions-*.png"))
    assert re.search(r"done: step (\d+) of \1, validation ELBO -\d+\.\d+ nats", result.stdout)

    again = run(*fit_arguments(photos, out, "--epochs", "2"))
    assert again.returncode == 1
    assert "--resume" in again.stderr
    assert "Traceback" not in again.stderr
    other = run(*fit_arguments(photos, out, "--epochs", "4", "--weight-decay", "1", "--resume"))
    assert other.returncode == 1
    assert "weight_decay" in other.stderr
    longer = run(
        *("fit", "--resume", "--epochs", "3", "--learning-rate", "0.0001"),
        *("--compile", "off", "--out", str(out)),
    )
    assert longer.returncode == 0, longer.stderr
    assert "the learning rate goes on at" in longer.stderr + longer.stdout
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [m["kind"] for m in metrics].count("validation") == 3
    assert [m["learning_rate"] for m in metrics if m["kind"] == "train"][-1] <= 0.0001


def test_an_epoch_is_one_line_where_nobody_watches(photos: Path, tmp_path: Path) -> None:
    """A log file has no width to wrap at, and no bar."""
    arguments = fit_arguments(photos, tmp_path / "run", "--epochs", "3")
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "COLUMNS"}
    result = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    figures = r"validation ELBO -[\d.]+ nats  KL [\d.]+  [\d.]+ bits/dim"
    line = rf"epoch \d/3  {figures}  \([1-9]\d* images/s(, \d+ s left)?\)"
    assert [bool(re.fullmatch(line, text)) for text in lines] == [True] * 3 + [False], lines
    assert all(text.endswith(" s left)") for text in lines[:-1]), lines
    assert "steps of 32 images an epoch" in result.stderr
    assert lines[-1].startswith("done: step")
    assert lines[-1].endswith("steps skipped")


def test_a_run_that_ended_before_its_first_checkpoint_starts_again(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert run(*fit_arguments(photos, out, "--epochs", "2")).returncode == 0
    first = load_checkpoint(out)
    shutil.rmtree(out / "checkpoints")
    result = run("fit", "--resume", "--compile", "off", "--bf16", "off", "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert "starting it again" in result.stdout
    again = load_checkpoint(out)
    assert all(torch.equal(first.ema[name], again.ema[name]) for name in first.ema)
    fewer = run("fit", "--resume", "--epochs", "1", "--compile", "off", "--out", str(out))
    assert fewer.returncode == 1
    assert "lies behind" in fewer.stderr
    assert json.loads((out / "config.json").read_text())["train"]["epochs"] == 2


def test_a_training_that_diverges_is_no_success(run: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run(*fit_arguments(photos, out, "--epochs", "3", "--learning-rate", "1e9"))
    assert result.returncode == 1
    assert "diverged" in result.stderr
    assert "--learning-rate" in result.stderr


def test_a_full_disk_is_one_line(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("training.runs.metrics.Recorder.write", full)
    result = run(*fit_arguments(photos, tmp_path / "run", "--epochs", "1"))
    assert result.returncode == 1
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_and_resume_goes_on(
    run: Run, photos: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    arguments = fit_arguments(photos, out, "--epochs", "100000")
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    metrics = out / "metrics.jsonl"
    give_up = time.monotonic() + 90
    while not (metrics.exists() and metrics.stat().st_size > 0):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < give_up
        time.sleep(0.1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert b"stopping after this step" in stderr
    checkpoint = load_checkpoint(out)
    assert checkpoint.step > 0
    assert not checkpoint.faults
    resumed = run(*arguments, "--resume", "--budget-minutes", "0.001")
    assert resumed.returncode == 0, resumed.stderr
    assert f"at step {checkpoint.step}" in resumed.stdout
    assert load_checkpoint(out).step > checkpoint.step


def test_a_killed_run_loses_only_what_was_not_saved(run: Run, photos: Path, tmp_path: Path) -> None:
    """Two runs of the command with a cut between them equal one without, bit for bit."""
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    assert run(*fit_arguments(photos, straight, "--epochs", "2")).returncode == 0
    assert (
        run(*fit_arguments(photos, cut, "--epochs", "2", "--budget-minutes", "0")).returncode == 0
    )
    assert 0 < load_checkpoint(cut).step < load_checkpoint(straight).step
    assert run(*fit_arguments(photos, cut, "--epochs", "2", "--resume")).returncode == 0
    a, b = load_checkpoint(straight), load_checkpoint(cut)
    assert a.step == b.step
    for one, two in ((a.model, b.model), (a.ema, b.ema), (a.optim, b.optim)):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_minutes_are_of_steps_and_what_came_before_is_named_apart(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step, which compiles, may take an hour and costs the budget nothing."""
    clock = [0.0]
    monkeypatch.setattr("training.fit.progress.time.monotonic", lambda: clock[0])
    take = Trainer.train_step

    def step(trainer: Trainer, wish: str = "") -> Step:
        clock[0] += 6.0 if trainer.step else 3600.0
        return take(trainer, wish)

    monkeypatch.setattr(Trainer, "train_step", step)
    out = tmp_path / "run"
    result = run(*fit_arguments(photos, out, "--epochs", "99", "--budget-minutes", "0.5"))
    assert result.returncode == 0, result.stderr
    assert load_checkpoint(out).step == 1 + 5  # 30 seconds of 6
    assert "0.50 minutes of steps; before them 3600 s for the first one" in result.stdout


def test_a_run_remembers_where_its_images_lie(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    here = fit_arguments(Path(photos.name), out, "--epochs", "1", "--data-dir", str(photos.parent))
    first = run(*here)
    assert first.returncode == 0, first.stderr
    assert "200 images (" in first.stderr  # told before it starts
    assert str(photos.parent) not in (out / "config.json").read_text()
    monkeypatch.chdir(tmp_path)
    longer = run("fit", "--resume", "--epochs", "2", "--compile", "off", "--out", str(out))
    assert longer.returncode == 0, longer.stderr
    measured = run("evaluate", str(out), "--importance-samples", "2", "--limit", "4")
    assert measured.returncode == 0, measured.stderr
    # Without --data-dir a folder is remembered by its whole path.
    monkeypatch.chdir(photos.parent)
    other = tmp_path / "other"
    assert run(*fit_arguments(Path(photos.name), other, "--epochs", "1")).returncode == 0
    monkeypatch.chdir(tmp_path)
    measured = run("evaluate", str(other), "--importance-samples", "2", "--limit", "4")
    assert measured.returncode == 0, measured.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--preset", "mnits"), "mnist-diagonal"),
        (("--data", "imagenet"), "imagenet"),
        (("--data", "folder:nowhere-at-all"), "nowhere-at-all"),
        (("--learning-rate", "-1"), "learning_rate"),
        (("--optimizer", "sgd"), "adamax"),
        (("--size", "12x"), "--size"),
        (("--device", "cuda"), "cuda"),
        (("--resume",), "--resume"),
        (("--device", "gpu"), "cuda:N"),
        (("--threads", "-1"), "threads"),
        (("--budget-minutes", "nan"), "--budget-minutes"),
        (("--free-bits", "nan"), "free_bits"),
        (("--compile", "maybe"), "auto, on, off"),
    ],
)
def test_what_is_wrong_is_one_line(
    run: Run, tmp_path: Path, photos: Path, arguments: tuple[str, ...], named: str
) -> None:
    out = tmp_path / "run"
    given = ("--data", f"folder:{photos}") if "--data" not in arguments else ()
    result = run("fit", "--out", str(out), *given, *arguments)
    assert result.returncode == 1
    assert named.lower() in result.stderr.lower()
    assert "Traceback" not in result.stderr
    assert not out.exists()
