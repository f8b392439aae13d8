"""What the commands of `iafvae-train` share: consoles, common options, checks of choices.

A command takes a dataclass of options (`with_options`), whose fields are annotated as typer's
parameters are: commands share what a common base class has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer
from rich.console import Console

from model.config import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "EXIT_CODES",
    "Accumulate",
    "DataDir",
    "Weights",
    "console",
    "errors",
    "one_of",
    "with_options",
    "words",
]

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}  # as shells expect it after a signal

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


def words(values: list[str] | None) -> list[str]:
    """Values of an option that was given several times, or once with commas."""
    return [word for value in values or [] for word in value.split(",") if word]


O = TypeVar("O", bound="DataclassInstance")  # noqa: E741


def with_options(
    cls: type[O],
) -> Callable[[Callable[[O], None]], Callable[..., None]]:
    """Make a function of `options` a command that has an option for each field of `cls`."""

    def decorate(handler: Callable[[O], None]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            handler(cls(**given))

        hints = get_type_hints(cls, include_extras=True)
        parameters = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in fields(cls)
        ]
        command.__name__, command.__doc__ = handler.__name__, handler.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate
