"""A run's directory: one writer, one configuration, and words where it cannot be used."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from training.config import RunConfig, run_preset
from training.errors import TrainingError
from training.files import new_folder, write_bytes
from training.runs.checkpoint import run_directory
from training.runs.directory import (
    locked,
    open_run,
    read_config,
    refuse_taken,
    write_config,
)

CONFIG = run_preset("mnist")

OTHER = """
import sys
from pathlib import Path
from training.errors import TrainingError
from training.runs.directory import locked
try:
    with locked(Path(sys.argv[1])):
        print("free")
except TrainingError as error:
    print(error)
"""


def other_process(run_dir: Path) -> str:
    command = [sys.executable, "-c", OTHER, str(run_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_two_processes_cannot_train_in_one_directory(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        assert "is training in" in other_process(tmp_path / "run")
        open_run(tmp_path / "run", CONFIG, resume=False)  # the lock's own file is no obstacle
    assert other_process(tmp_path / "run") == "free\n"


def test_a_configuration_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG, {"torch": "9"})
    assert read_config(tmp_path) == CONFIG
    open_run(tmp_path, replace(CONFIG, train=replace(CONFIG.train, epochs=7)), resume=True)
    changed = replace(CONFIG, optim=replace(CONFIG.optim, batch_size=7))
    with pytest.raises(TrainingError, match=r"optim\.batch_size: 128 then, 7 now"):
        open_run(tmp_path, changed, resume=True)


def test_a_folder_of_images_may_have_been_moved(tmp_path: Path) -> None:
    """Whether they are the same images is seen when the checkpoint is read."""

    def on(name: str) -> RunConfig:
        return replace(CONFIG, data=replace(CONFIG.data, name=name))

    write_config(tmp_path, on("folder:/old"), {})
    open_run(tmp_path, on("folder:/new"), resume=True)
    with pytest.raises(TrainingError, match=r"data\.name: folder:/old then, mnist now"):
        open_run(tmp_path, on("mnist"), resume=True)


def test_what_is_no_run_gets_advice_for_every_command(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="name the directory that") as refused:
        read_config(tmp_path)
    assert "--resume" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not readable JSON"),
        ("[]", "no JSON object"),
        ('{"model": 3}', r"config\.json: model must be"),
        ('{"model": {"kind": "conv_vae"}, "train": {"epochs": "x"}}', r"config\.json: train has"),
    ],
)
def test_a_spoilt_configuration_is_named(tmp_path: Path, content: str, named: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(TrainingError, match=named):
        read_config(tmp_path)


def test_what_is_no_place_for_a_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(TrainingError, match="is a file"):
        open_run(file, CONFIG, resume=False)
    with pytest.raises(TrainingError, match="not empty and not a run"):
        open_run(tmp_path, CONFIG, resume=False)
    with pytest.raises(TrainingError, match="holds no run"):
        open_run(tmp_path, CONFIG, resume=True)
    with pytest.raises(TrainingError, match="holds no run"):
        read_config(file)


def test_what_a_kill_at_the_start_leaves_is_no_obstacle(tmp_path: Path) -> None:
    for name in (".lock", ".writing-7-config.json"):
        (tmp_path / name).touch()
    (tmp_path / ".writing-small").mkdir()  # of `strip`, which wrote a run into this one
    open_run(tmp_path, CONFIG, resume=False)
    with locked(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", ".writing-small"}


def test_a_full_disk_is_told_with_the_file_s_name(tmp_path, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*/card\.md'"):
        write_bytes(tmp_path / "card.md", b"#")
    assert not list(tmp_path.iterdir())


def test_where_a_new_run_cannot_be_is_said_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for fine in (tmp_path / "empty", tmp_path / "link", tmp_path / "a" / "b"):
        refuse_taken(fine)
    assert not list((tmp_path / "empty").iterdir())
    monkeypatch.chdir(tmp_path / "empty")
    for place, words in (
        (tmp_path / "file", "not empty"),
        (tmp_path, "not empty"),
        (tmp_path / "file" / "sub", "cannot be made"),
        (Path(), "give a directory in it"),
        (Path("/proc"), "not empty"),
    ):
        with pytest.raises(TrainingError, match=words):
            refuse_taken(place)
    with new_folder(tmp_path / "link") as folder:
        (folder / "x").touch()
    assert (tmp_path / "empty" / "x").exists()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": 7}, "data must be an object, not 7"),
        ({"optim": None}, "optim must be an object"),
        ({"data": {"name": "mnist", "more": 1}}, "data has no field more"),
    ],
)
def test_configurations_that_are_none(tmp_path, change, words):
    write_config(tmp_path, CONFIG, {})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TrainingError, match=f"config.json: {words}"):
        read_config(tmp_path)


def test_what_a_configuration_leaves_out_has_its_default(tmp_path):
    write_config(tmp_path, CONFIG, {"torch": "9"})
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    del content["data"]
    path.write_text(json.dumps(content))
    assert read_config(tmp_path) == CONFIG


def test_a_checkpoint_is_found_by_a_relative_path(tmp_path, monkeypatch):
    step = tmp_path / "checkpoints" / "step-00000001"
    step.mkdir(parents=True)
    (step / "state.json").touch()
    for place, path in ((step.parent, Path(step.name)), (step, Path()), (tmp_path, Path())):
        monkeypatch.chdir(place)
        assert run_directory(path).resolve() == tmp_path
