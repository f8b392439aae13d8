"""What the tests of training's commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from training.cli.main import main

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Call `iafvae-train` with arguments: its exit code, and what it wrote in one line."""

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["iafvae-train", *arguments])
            patch.setenv("COLUMNS", "200")
            with pytest.raises(SystemExit) as stopped:
                main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), " ".join((out + err).split())

    return run
