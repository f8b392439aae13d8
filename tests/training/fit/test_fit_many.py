"""`iafvae-train fit` in several processes, and on disks that fill up."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.cli.main import main
from training.runs.checkpoint import load_checkpoint
from training.runs.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "200",
    "NO_COLOR": "1",
    "PYTHONPATH": str(ROOT),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for i in range(80):
        pixels = generator.integers(0, 256, (2, 2), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def words(photos: Path, out: Path, *more: str) -> list[str]:
    return [
        *("fit", "--preset", "mnist-diagonal", "--data", f"folder:{photos}", "--batch-size", "16"),
        *("--free-bits", "0.5", "--kl-warmup-epochs", "0", "--schedule", "constant", "--flips"),
        *("--compile", "off", "--bf16", "off", "--device", "cpu", "--out", str(out), *more),
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(arguments: list[str], size: int) -> list[subprocess.Popen[str]]:
    """The command in so many processes, each with the environment that torchrun would give."""
    port = str(free_port())
    world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "training", *arguments],
            env={**ENVIRONMENT, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def ended(processes: list[subprocess.Popen[str]], timeout: float = 100) -> list[str]:
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def call(arguments: list[str], monkeypatch, capsys) -> tuple[int, str]:
    """The command in this process; gives its exit code and all that it said."""
    monkeypatch.setattr(sys, "argv", ["iafvae-train", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), " ".join((out + err).split())


def until_it_trains(out: Path, processes: list[subprocess.Popen[str]]) -> None:
    metrics, give_up = out / "metrics.jsonl", time.monotonic() + 90
    while not (metrics.exists() and metrics.stat().st_size > 0):
        assert all(process.poll() is None for process in processes), ended(processes)
        assert time.monotonic() < give_up
        time.sleep(0.1)


def test_a_run_of_two_processes_goes_on_in_one(photos, tmp_path, monkeypatch, capsys):
    """And is then, but for rounding, the run that one process made from the start."""
    both, alone = tmp_path / "both", tmp_path / "alone"
    processes = started(words(photos, both, "--epochs", "2"), 2)
    first, second = ended(processes)
    assert "done: step 6 of 6" in first
    assert second == ""  # one process speaks
    assert [process.returncode for process in processes] == [0, 0]
    kinds = [record["kind"] for record in read_metrics(both)]
    assert kinds.count("validation") == 2  # one process writes
    assert json.loads((both / "config.json").read_text())["environment"]["processes"] == 2
    again = ["fit", "--resume", "--epochs", "3", "--compile", "off", "--bf16", "off"]
    code, said = call([*again, "--out", str(both)], monkeypatch, capsys)
    assert code == 0, said
    assert "resuming" in said
    assert "at step 6 of 9" in said
    assert call(words(photos, alone, "--epochs", "3"), monkeypatch, capsys)[0] == 0
    validations = [
        [r["elbo_nats"] for r in read_metrics(run) if r["kind"] == "validation"]
        for run in (both, alone)
    ]
    assert validations[0] == pytest.approx(validations[1], rel=1e-4)
    assert len(validations[0]) == 3


def test_micro_batches_under_free_bits_are_told_of(photos, tmp_path, monkeypatch, capsys):
    arguments = words(photos, tmp_path / "run", "--epochs", "1", "--accumulate", "4")
    code, said = call(arguments, monkeypatch, capsys)
    assert code == 0, said
    assert "each micro-batch of 4 images has its own mean under free bits" in said


def test_checkpoints_without_the_optimisers_state_say_so_at_resume(
    photos, tmp_path, monkeypatch, capsys
):
    arguments = words(photos, tmp_path / "run", "--epochs", "2", "--no-optimizer-state")
    assert call([*arguments, "--budget-minutes", "0"], monkeypatch, capsys)[0] == 0
    checkpoint = load_checkpoint(tmp_path / "run")
    assert (checkpoint.step, checkpoint.optim) == (1, {})
    code, said = call([*arguments, "--resume"], monkeypatch, capsys)
    assert code == 0, said
    assert "holds no optimiser state: the optimiser starts afresh" in said


FULL = """
import resource, sys
from training.cli.main import main
from training.runs.metrics import read_metrics
most = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # no file may be larger
main()
"""


def test_a_disk_that_takes_no_more_leaves_the_last_good_checkpoint(
    photos, tmp_path, monkeypatch, capsys
):
    """The system itself refuses to write, in the middle of a file."""
    out = tmp_path / "run"
    begun = words(photos, out, "--epochs", "3", "--budget-minutes", "0")
    assert call(begun, monkeypatch, capsys)[0] == 0
    good = load_checkpoint(out)
    again = ["fit", "--resume", "--compile", "off", "--bf16", "off", "--out", str(out)]
    full = subprocess.run(
        [sys.executable, "-c", FULL, str(200_000), *again],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=100,
    )
    assert full.returncode == 1
    assert re.search(r"error: The checkpoint of step \d+ could not be written", full.stderr)
    assert "step-00000001): make room there and use --resume" in full.stderr
    assert "Traceback" not in full.stderr
    kept = load_checkpoint(out)
    assert kept.step == good.step
    assert kept.faults == ()
    assert all(torch.equal(kept.model[name], good.model[name]) for name in good.model)
    code, said = call(again, monkeypatch, capsys)
    assert code == 0, said
    assert "done: step 9 of 9" in said


def test_a_place_that_cannot_be_written_to_is_named(photos, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    arguments = words(photos, tmp_path / "file" / "run", "--epochs", "1")
    code, said = call(arguments, monkeypatch, capsys)
    assert code == 1
    assert "cannot be written to" in said
    assert "--out" in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_torchrun_saves_and_stops(photos, tmp_path, number):
    out = tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    process = subprocess.Popen(
        [
            *(sys.executable, *launcher, str(free_port()), "-m", "training"),
            *words(photos, out, "--epochs", "100000"),
        ],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until_it_trains(out, [process])
    process.send_signal(number)
    (said,) = ended([process])
    assert f"{number.name}: step" in said
    assert said.count("stopping after this step") == 1
    step = load_checkpoint(out).step
    assert step > 0
    assert f"{number.name}: step {step} of" in said


@pytest.mark.slow
def test_a_killed_process_ends_the_others_with_a_checkpoint_and_a_message(photos, tmp_path):
    out = tmp_path / "run"
    processes = started(words(photos, out, "--epochs", "100000"), 2)
    until_it_trains(out, processes)
    processes[1].kill()
    said, _ = ended(processes)
    assert processes[0].returncode == 1
    assert "error: process 0: lost the other 1 process(es)" in said
    assert "Traceback" not in said
    checkpoint = load_checkpoint(out)
    assert checkpoint.step > 0
    assert checkpoint.faults == ()
