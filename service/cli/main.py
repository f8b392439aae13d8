"""The command `iafvae`: serve a model, or use one from the command line.

Only what every command needs is imported here: `iafvae --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from service.cli import images as cli_images
from service.cli.options import ProviderName, reported

__all__ = ["app", "main"]

app = typer.Typer(
    name="iafvae",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
bundle_app = typer.Typer(no_args_is_help=True, help="Check and show bundles.")
app.add_typer(bundle_app, name="bundle")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"iafvae {version('iafvae')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Density models of images: draw, score, encode, serve.

    Examples:

        iafvae serve

        iafvae sample -n 64 --seed 0 -o sheet.png

        iafvae score photos/ --resize --csv > scores.csv
    """


@app.command()
@reported
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on [default: 127.0.0.1].")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one [default: 8000].")
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(help="A bundle, or a directory of bundles [default: the shipped one]."),
    ] = None,
    provider: ProviderName = None,
    log_format: Annotated[
        Literal["text", "json"] | None, typer.Option(help="Form of the logs [default: text].")
    ] = None,
) -> None:
    """Serve models over HTTP; the page is at /, the API's at /docs.

    Every setting is also an environment variable, such as IAFVAE_PORT; options win. SIGTERM turns
    /readyz to 503, finishes what is in flight, and exits with 0.

    Examples:

        iafvae serve --port 9000

        iafvae serve --models runs/bundles --provider cuda --host 0.0.0.0
    """
    from service.server.run import serve as run
    from service.settings import load_settings

    run(
        load_settings(
            host=host,
            port=port,
            models=models,
            provider=provider,
            log_format=log_format,
        )
    )


for _command in (
    cli_images.sample,
    cli_images.score,
    cli_images.anomaly_map,
    cli_images.encode,
    cli_images.reconstruct,
    cli_images.interpolate,
):
    app.command()(_command)


@app.command()
@reported
def key(
    name: Annotated[
        str, typer.Argument(help="Who will hold it; one that ends in @admin may change models.")
    ],
    file: Annotated[
        Path | None, typer.Option(help="Append the line to this file instead of printing it.")
    ] = None,
) -> None:
    """Make a key for callers, and the line that lets it in.

    The file that IAFVAE_KEYS_FILE names has a line for each key: its SHA-256 and a name. A running
    server reads the file again when it changes. The key itself is nowhere: it is shown once.

    Examples:

        iafvae key ada

        iafvae key ada --file keys.txt
    """
    from service.api.security.keys import append_line, key_line, new_key

    made = new_key()
    line = key_line(made, name)
    typer.echo("The key, shown this once; it is sent as 'Authorization: Bearer KEY':", err=True)
    typer.echo(made)
    if file is not None:
        append_line(file, line)
        typer.echo(f"Its line is in {file}.", err=True)
        return
    typer.echo("Its line in the file that IAFVAE_KEYS_FILE names:", err=True)
    typer.echo(line)


@bundle_app.command()
@reported
def verify(
    path: Annotated[Path, typer.Argument(help="Directory of the bundle.")],
    canaries: Annotated[
        bool, typer.Option(help="Also compute the canaries' answers on this machine.")
    ] = True,
    provider: ProviderName = None,
) -> None:
    """Check a bundle: every hash and shape, and that this machine computes what it should."""
    from service.cli import output as reports

    typer.echo(reports.verify_bundle(path, canaries=canaries, provider=provider or "auto"))


@bundle_app.command()
@reported
def show(
    path: Annotated[Path, typer.Argument(help="Directory of the bundle.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
) -> None:
    """Show what a bundle holds: shapes, figures, calibration."""
    from service.cli import output as reports

    reports.show_bundle(path, as_json=as_json)


def main() -> None:
    """Entry point of the console command."""
    app()
