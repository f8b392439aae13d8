"""Help of both commands: for each command, in 80 columns, without a word that is cut off."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from service.cli.help import plain_help
from service.cli.main import app as iafvae
from training.cli.main import app as iafvae_train


def commands(app, name):
    """Every command below `app`, as it is typed."""
    found, waiting = [], [((), typer.main.get_command(app))]
    while waiting:
        path, command = waiting.pop()
        found.append((name, path))
        for child, below in getattr(command, "commands", {}).items():
            waiting.append(((*path, child), below))
    return found


APPS = {"iafvae": iafvae, "iafvae-train": iafvae_train}
ALL = [case for name, app in APPS.items() for case in commands(app, name)]


@pytest.mark.parametrize(("name", "path"), ALL, ids=[" ".join((n, *p)) for n, p in ALL])
def test_help_fits_80_columns(name, path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    texts = []
    for option in ("-h", "--help"):
        result = CliRunner().invoke(APPS[name], [*path, option], prog_name=name)
        assert result.exit_code == 0, result.output
        texts.append(result.output)
    assert texts[0] == texts[1]
    for line in texts[0].splitlines():
        assert len(line) <= 80, line
        assert not line.endswith(("...", "…")) or line.startswith("Usage") or ">..." in line, line
        assert line == line.rstrip()
    assert "[bold]" not in texts[0]


@pytest.mark.parametrize(("name", "path"), ALL, ids=[" ".join((n, *p)) for n, p in ALL])
def test_values_are_named_alike(name, path, monkeypatch):
    """As `<path>`, `<int>`, `<a|b>`, `<str>...`; never as Python names its types."""
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(APPS[name], [*path, "--help"], prog_name=name)
    for value in re.findall(r"<[^>\n]*>", result.output):
        assert re.fullmatch(r"<[a-z0-9]+(\|[a-z0-9]+)*>", value), value
    assert "...}" not in result.output
    assert "...]" not in result.output.replace("[ARGS]...", "")


def test_the_types_of_python_are_replaced():
    @(app := typer.Typer(rich_markup_mode=None)).command()
    def command(
        one: Annotated[Path, typer.Option(parser=Path)],
        many: Annotated[list[int] | None, typer.Option(min=0)] = None,
    ) -> None: ...

    before = CliRunner().invoke(app, ["--help"]).output
    plain_help(app)
    after = CliRunner().invoke(app, ["--help"]).output
    assert "--one <path>" in after
    assert "--many <int>..." in after
    assert before != after


def test_all_commands_are_seen():
    assert ("iafvae", ("bundle", "verify")) in ALL
    assert ("iafvae-train", ("reproduce", "table4")) in ALL
