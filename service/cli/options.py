"""What the commands of `iafvae` share: options, and errors told in one line."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from service.codecs.folders import printable
from service.engine.options import Provider

__all__ = [
    "Alpha",
    "AsJson",
    "BundlePath",
    "Convert",
    "Fdr",
    "ModelName",
    "OutputKind",
    "Paths",
    "ProviderName",
    "Resize",
    "Samples",
    "SeedOption",
    "Url",
    "is_reported",
    "made",
    "option",
    "path",
    "print_json",
    "print_lines",
    "reported",
    "to_file",
]


def path(text: str | Path) -> Path:
    """What is named on the command line; an empty name would be the current directory, and what
    others mean by "-" a file of that name."""
    if str(text) in ("", "-"):
        said = "empty" if not str(text) else "standard input or output"
        raise typer.BadParameter(f"it is {said}: name a file or folder")
    return Path(text)


def option(default: Any, text: str, *names: str, **how: Any) -> Any:
    """An option: its default, what it is, its names."""
    return typer.Option(default, *names, help=text, **how)


def to_file(default: Any, text: str) -> Any:
    """The option ``--out`` of a command that writes what `text` says."""
    return option(default, text, "-o", "--out", parser=path)


Paths = Annotated[
    list[Path], typer.Argument(parser=path, metavar="PATH", help="Image files, or folders of them.")
]
BundlePath = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        "-b",
        parser=path,
        help="Bundle to use [default: IAFVAE_MODELS, or one that ships].",
    ),
]
Url = Annotated[
    str | None, typer.Option(help="Ask the server at this URL instead of computing here.")
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Name, or name@version [default: the default one].")
]
ProviderName = Annotated[
    Provider | None,
    typer.Option(help="cuda demands a GPU, auto takes one [default: IAFVAE_PROVIDER, or auto]."),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--importance-samples",
        "-k",
        min=1,
        help="K, draws of the latents for each image: at most 10000 here, 1024 on a server "
        "[default: the model's].",
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(help="Anomalous if the p-value is at most this [default: the model's, 0.01]."),
]
Fdr = Annotated[
    float | None,
    typer.Option(help="Also mark discoveries, of which about this share at most is false."),
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Seed of the noise, below 2^63.")]
Resize = Annotated[bool, typer.Option("--resize", help="Resize images of another size.")]
Convert = Annotated[bool, typer.Option("--convert", help="Convert colour images to grey.")]
OutputKind = Annotated[
    Literal["mean", "draw"], typer.Option("--output", help="The pixels' mean, or drawn pixels.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print what was made as JSON, on standard output.")
]


def made(text: str, facts: Mapping[str, Any], *, as_json: bool, aside: bool = True) -> None:
    """Say what a command has made: `facts` as JSON, or `text` (`aside`: on standard error)."""
    if as_json:
        print_json(facts)
    else:
        print_lines(text, aside=aside)


def print_lines(text: str, *, aside: bool = False) -> None:
    """Each line as `printable` makes it, on standard output or `aside` on standard error."""
    for line in text.split("\n"):
        typer.echo(printable(line), err=aside)


def print_json(value: Any) -> None:
    """On standard output, on lines as people read them."""
    typer.echo(json.dumps(value, indent=1))


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Errors that a user can act on become one line and exit code 1, without a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BrokenPipeError:  # `iafvae score ... | head`
            sys.stderr.close()
            raise typer.Exit(1) from None
        except Exception as error:
            if not is_reported(error):
                raise
            for line in _words(error).splitlines() or ["unknown error"]:
                typer.echo(printable(f"iafvae: error: {line}"), err=True)
            raise typer.Exit(1) from None

    return run


def _words(error: Exception) -> str:
    """An error for people: of the system's without its number."""
    if isinstance(error, MemoryError):
        return "there is not enough memory: ask for fewer images, or for fewer at once"
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        return f"{name}{error.strerror}"
    return str(error)


def is_reported(error: Exception) -> bool:
    """Whether a user can act on `error`; any other is a fault of the program."""
    from service.api.security.keys import KeyFileError
    from service.bundle import BundleError
    from service.client import ProblemError, ServiceUnreachable
    from service.errors import IafvaeError
    from service.settings import SettingsError, StartError

    ours = (BundleError, IafvaeError, KeyFileError, ProblemError, ServiceUnreachable)
    return isinstance(error, (*ours, SettingsError, StartError, MemoryError, OSError))
