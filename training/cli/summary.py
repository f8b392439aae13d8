"""What a reproduction says to people at its end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from training.reproduce.call import Outcome
from training.reproduce.report import markdown

__all__ = ["exit_code", "show"]

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


def exit_code(outcome: Outcome) -> int:
    """The process's exit status: as shells expect it after a signal, else 0."""
    return EXIT_CODES.get(outcome.reason, 0)


def show(console: Console, out: Path, outcome: Outcome) -> None:
    """Show the report, where it lies, and how to go on where it is not complete."""
    if console.is_terminal:
        console.print(Markdown(markdown(outcome.document)))
    path = out / outcome.document["experiment"]
    written = [f"{path}.md", f"{path}.json"]
    if path.with_suffix(".png").exists():
        written.append(f"{path}.png")
    console.print(f"{outcome.reason}: {', '.join(written)}", highlight=False, soft_wrap=True)
    if outcome.reason != "done":
        console.print(
            "all is kept; the same command goes on where it stopped",
            highlight=False,
            soft_wrap=True,
        )
