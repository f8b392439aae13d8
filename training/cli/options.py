"""What the commands of `iafvae-train` share: consoles, common options, checks of choices.

A command with many options takes a dataclass of them (`with_options`), whose fields are made by
`option` and `argument`, or annotated as typer's parameters are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer
from rich.console import Console

from model.config import ConfigError
from training.config import Runtime
from training.fit.signals import EXIT_CODES, signal_name

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "AsJson",
    "DataDir",
    "Device",
    "Measured",
    "Run",
    "RuntimeOptions",
    "Threads",
    "Weights",
    "argument",
    "console",
    "data_name",
    "errors",
    "numbers",
    "one_of",
    "option",
    "say",
    "stopping",
    "with_options",
    "words",
]

T = TypeVar("T", bound="DataclassInstance")
N = TypeVar("N", int, float)

console = Console(markup=False)  # names of files may hold brackets
errors = Console(stderr=True, markup=False)

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Where data sets lie (MNIST/raw/*.gz, cifar-10-batches-py/, ...) or are downloaded "
        "to; default: where `fit` found them, else the user's cache.",
    ),
]
Run = Annotated[Path, typer.Argument(help="A run directory, or one checkpoint in it.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch.")]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print what came of it as JSON; the rest on standard error."),
]
Measured = Annotated[
    str, typer.Option(help="test (final figures) or validation (while you choose).")
]
Weights = Annotated[str, typer.Option(help="ema (the average) or raw (the last).")]


def option(default: Any, text: str, *names: str, **how: Any) -> Any:
    """A field that is an option: its default (...: it must be given), what it is, its names."""
    return _field(default, typer.Option(default, *names, help=text, **how))


def argument(default: Any, text: str) -> Any:
    """A field that is an argument, likewise."""
    return _field(default, typer.Argument(default, help=text))


def _field(default: Any, parameter: Any) -> Any:
    return field(default=MISSING if default is ... else default, metadata={"typer": parameter})


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How a training is computed."""

    device: Device = "auto"
    compile: str = option("auto", "auto, on or off: torch.compile.")
    bf16: str = option("auto", "auto, on or off: bfloat16 products.")
    threads: Threads = 0

    def runtime(self) -> Runtime:
        """The configuration of these; raises `ConfigError` for what there is not."""
        names = {each.name for each in fields(Runtime)}
        given = {name: value for name, value in vars(self).items() if name in names}
        return Runtime(**given)


def with_options(
    cls: type[T],
) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Make a function of `options` a command that has an option for each field of `cls`."""

    def decorate(handler: Callable[[T], None]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            handler(cls(**given))

        hints = get_type_hints(cls, include_extras=True)
        parameters = [
            inspect.Parameter(
                each.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=each.metadata.get(
                    "typer", inspect.Parameter.empty if each.default is MISSING else each.default
                ),
                annotation=hints[each.name],
            )
            for each in fields(cls)
        ]
        command.__name__, command.__doc__ = handler.__name__, handler.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def say(text: str, to: Console = errors) -> None:
    """Print a line as it is: by default to the terminal beside the results."""
    to.print(text, highlight=False, soft_wrap=True)


@contextmanager
def stopping(words: str) -> Iterator[None]:
    """Answer Ctrl-C and SIGTERM inside with words, and the exit status that shells expect."""
    try:
        yield
    except KeyboardInterrupt as stop:
        say(words)
        raise typer.Exit(EXIT_CODES[signal_name(stop)]) from None


def one_of(option: str, value: str, choices: tuple[str, ...]) -> Any:
    """Check a choice; raises `ConfigError` listing what there is."""
    if value not in choices:
        raise ConfigError(f"{option} is one of {', '.join(choices)}, not {value!r}")
    return value


def data_name(given: str | None, data_dir: Path | None) -> str | None:
    """A folder's path is made absolute: later commands may be started elsewhere."""
    from training.data import FOLDER_PREFIX, folder_path

    if given is None or data_dir or not given.startswith(FOLDER_PREFIX):
        return given
    return f"{FOLDER_PREFIX}{folder_path(given).absolute()}"


def words(values: list[str] | None) -> list[str]:
    """Values of an option that was given several times, or once with commas."""
    return [word for value in values or [] for word in value.split(",") if word]


def numbers(option: str, text: str, kind: type[N]) -> list[N]:
    """Numbers with commas between; raises `ConfigError` naming the option."""
    try:
        return [kind(word) for word in words([text])]
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{option} takes {what} with commas between: {error}") from None
