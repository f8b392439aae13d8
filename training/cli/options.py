"""What the commands of `iafvae-train` share: consoles, common options, checks of choices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from model.config import ConfigError

__all__ = ["Accumulate", "DataDir", "Weights", "console", "errors", "one_of"]

console = Console()
errors = Console(stderr=True)

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Where data sets lie (MNIST/raw/*.gz, cifar-10-batches-py/, ...) or are downloaded "
        "to; default: the user's cache.",
    ),
]
Accumulate = Annotated[
    int | None,
    typer.Option(
        help="Compute a step's batch as so many micro-batches, one after another, for less memory "
        "(1). Their gradients add up to the batch's, but not under free bits: each micro-batch "
        "then has its own mean, which is another objective."
    ),
]
Weights = Annotated[str, typer.Option(help="ema (the average) or raw (the last).")]


def one_of(option: str, value: str, choices: tuple[str, ...]) -> Any:
    """Check a choice; raises `ConfigError` listing what there is."""
    if value not in choices:
        raise ConfigError(f"{option} is one of {', '.join(choices)}, not {value!r}")
    return value
