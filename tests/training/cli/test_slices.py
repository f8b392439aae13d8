"""The script of slices: what it would run is what the program takes, in the right order."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from model.config import preset_names
from training.cli.main import app

SCRIPT = Path(__file__).resolve().parents[3] / "training" / "slices.sh"
MODELS = {
    *("mnist", "mnist-iaf-8x1920", "mnist-ladder", "fashion-mnist-mixture"),
    *("cifar10-small", "cifar10-mixture", "cifar10-medium", "cifar10-paper"),
}


@pytest.fixture
def tree(tmp_path):
    """A checkout in which nothing has been trained, but for checkpoints of `mnist`."""
    (tmp_path / "training" / "checkpoints" / "mnist").mkdir(parents=True)
    (tmp_path / "training" / "checkpoints" / "mnist" / "config.json").write_text("{}")
    shutil.copy(SCRIPT, tmp_path / "training")
    return tmp_path


def slices(tree, *arguments, dry="1", train="iafvae-train"):
    done = subprocess.run(
        ["bash", "training/slices.sh", *arguments],
        cwd=tree,
        env={**os.environ, "SLICES_DRY": dry, "IAFVAE_TRAIN": train, "IAFVAE_DATA_DIR": "sets"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [shlex.split(line.removeprefix("+ ")) for line in done.stdout.splitlines()]
    return done, lines


def parsed(command):
    """The options of a command line of ours, as the program would get them; nothing runs."""
    assert command[0] == "iafvae-train"
    group = typer.main.get_command(app)
    context = typer.Context(group)
    name, subcommand, rest = group.resolve_command(context, command[1:])
    with subcommand.make_context(name, list(rest), parent=context) as made:
        return name, made.params


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_fresh_model_is_trained_and_finished(tree, model):
    assert model in preset_names()
    (tree / "training" / "checkpoints" / "mnist" / "config.json").unlink()
    (tree / "training" / "checkpoints" / "mnist").rmdir()
    _, (fit,) = slices(tree, model, "20.5", "--compile", "off")
    name, options = parsed(fit)
    assert name == "fit"
    assert (options["preset"], str(options["out"])) == (model, f"runs/{model}")
    assert (options["budget_minutes"], options["compile"]) == (20.5, "off")
    _, commands = slices(tree, model, "finish")
    measured = ["bound"] if model.startswith("mnist") else []
    made = dict(parsed(command) for command in commands)
    assert list(made) == ["evaluate", *measured, "curve", "export", "evaluate-anomaly"]
    assert made["evaluate"]["split"] == "test"
    assert made["evaluate-anomaly"]["bundle"] == made["export"]["out"]
    assert made["evaluate-anomaly"]["into_card"]
    for options in (parsed(fit)[1], *(made[name] for name in made if name != "curve")):
        assert str(options["data_dir"]) == "sets"


def test_slices_go_on_from_what_ships_and_then_from_themselves(tree):
    _, commands = slices(tree, "mnist", "20")
    assert [command[0] for command in commands] == ["mkdir", "rm", "cp", "mv", "iafvae-train"]
    assert parsed(commands[-1])[1]["resume"] is True
    done, _ = slices(tree, "mnist", "20", dry="", train="true")
    assert done.returncode == 0, done.stderr
    assert (tree / "runs" / "mnist" / "config.json").read_text() == "{}"
    _, again = slices(tree, "mnist", "20")
    assert again == commands[-1:]


def test_a_copy_that_was_interrupted_is_made_anew(tree):
    (tree / "runs" / "mnist.part" / "checkpoints").mkdir(parents=True)
    done, _ = slices(tree, "mnist", "20", dry="", train="true")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tree / "runs").iterdir()] == ["mnist"]
    assert [path.name for path in (tree / "runs" / "mnist").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "arguments", [(), ("mnist",), ("vae", "20"), ("mnist", "soon"), ("mnist", "finish", "--k")]
)
def test_what_it_does_not_understand_it_says(tree, arguments):
    done, lines = slices(tree, *arguments)
    assert done.returncode == 2
    assert "training/slices.sh MODEL MINUTES" in done.stderr
    assert not lines
