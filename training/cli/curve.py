"""`iafvae-train curve`: validation bounds against minutes."""

from pathlib import Path
from typing import Annotated

import typer

from model.config import ConfigError
from training.cli.options import AsJson, console, errors, say

__all__ = ["curve"]


def curve(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, drawn together.")],
    out: Annotated[
        Path | None,
        typer.Option(help="A directory for the results; default, of one run: the run's."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the validation bound against minutes.

    Of one run, or of several together.

    Minutes are those of the steps, by the speeds that a run records; slices add up. Writes
    curve.png and curve.json. `export` draws a run's curve for its card by itself.

    \b
    Examples:
      iafvae-train curve runs/mnist
      iafvae-train curve runs/diagonal runs/iaf --out results
    """
    from training.evaluate.curve import curve_document, curve_picture
    from training.files import write_bytes, write_json

    if out is None and len(runs) > 1:
        raise ConfigError("the curves of several runs belong to none of them: give --out")
    folder = out or runs[0]
    document = curve_document(runs)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "curve.json", document)
    picture = curve_picture(document)
    if picture is not None:
        write_bytes(folder / "curve.png", picture)
    else:
        errors.print("too few figures for a picture yet", style="yellow")
    if as_json:
        console.print_json(data=document)
    for found in () if as_json else document["runs"]:
        say(
            f"{found['run']}: {found['minutes']:.1f} minutes, step {found['step']}, "
            f"{found['epochs']} epoch{'' if found['epochs'] == 1 else 's'}",
            console,
        )
    say(f"written to {folder / 'curve.json'}")
