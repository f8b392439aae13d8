"""The command `iafvae`: serve a model, or use one from the command line.

Only what every command needs is imported here: `iafvae --help` answers at once.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer

from service.cli import images as cli_images
from service.cli.help import PLAIN, plain_help
from service.cli.options import (
    AsJson,
    ProviderName,
    is_reported,
    made,
    option,
    path,
    print_json,
    print_lines,
    reported,
    to_file,
)
from service.server.signals import follow, leave
from service.streams import occupy_standard_streams

__all__ = ["app", "main"]

app = typer.Typer(name="iafvae", no_args_is_help=True, **PLAIN)
bundle_app = typer.Typer(no_args_is_help=True, help="Check and show bundles.", **PLAIN)
app.add_typer(bundle_app, name="bundle")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"iafvae {version('iafvae')}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = option(
        False, "Show the version.", "--version", callback=_show_version, is_eager=True
    ),
) -> None:
    """Density models of images: draw, score, encode, serve.

    \b
    Examples:
      iafvae serve
      iafvae sample -n 64 --seed 0 -o sheet.png
      iafvae score photos/ --resize --csv > scores.csv
      iafvae doctor
    """


@app.command()
@reported
def serve(
    host: str | None = option(None, "Address to listen on [default: 127.0.0.1]."),
    port: int | None = option(None, "Port; 0 takes a free one [default: 8000].", min=0, max=65535),
    models: Path | None = option(
        None, "A bundle, or a directory of bundles [default: those that ship].", parser=path
    ),
    provider: ProviderName = None,
    log_format: Literal["text", "json"] | None = option(None, "Form of the logs [default: text]."),
) -> None:
    """Serve models over HTTP; the page is at /, the API's at /docs.

    Every setting is also an environment variable, such as IAFVAE_PORT; options win. SIGTERM turns
    /readyz to 503, finishes what is in flight, and exits with 0.

    \b
    Examples:
      iafvae serve --port 9000
      iafvae serve --models runs/bundles --provider cuda --host 0.0.0.0
    """
    follow(leave)  # what is imported next takes seconds on a busy machine
    try:
        from service.server.run import serve as run
        from service.settings import load_settings

        given = {"host": host, "port": port, "models": models, "provider": provider}
        run(load_settings(**given, log_format=log_format))
    except Exception as error:
        if (log_format or os.environ.get("IAFVAE_LOG_FORMAT")) != "json":
            raise
        from service.logs import configure_logging

        configure_logging("info", "json")
        logging.getLogger("iafvae").error("%s", error, exc_info=not is_reported(error))
        raise typer.Exit(1) from None


for _command in (
    cli_images.sample,
    cli_images.score,
    cli_images.anomaly_map,
    cli_images.report,
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
    file: Path | None = option(
        None, "Append the line to this file instead of printing it.", parser=path
    ),
    as_json: bool = option(False, "Print key and line as JSON.", "--json"),
) -> None:
    """Make a key for callers, and the line that lets it in.

    The file that IAFVAE_KEYS_FILE names has a line for each key: its SHA-256 and a name. A running
    server reads the file again when it changes. The key itself is stored nowhere; it is shown once.

    \b
    Examples:
      iafvae key ada
      iafvae key ada --file keys.txt
    """
    from service.api.security.keys import append_line, key_line, new_key

    fresh = new_key()
    line = key_line(fresh, name)
    if file is not None:
        from service.cli.files import naming

        with naming(file):
            append_line(file, line)
    if as_json:
        place = None if file is None else str(file)
        print_json({"name": name, "key": fresh, "line": line, "file": place})
        return
    typer.echo("The key, shown this once; it is sent as 'Authorization: Bearer KEY':", err=True)
    typer.echo(fresh)
    if file is not None:
        print_lines(f"Its line is in {file}.", aside=True)
        return
    typer.echo("Its line in the file that IAFVAE_KEYS_FILE names:", err=True)
    typer.echo(line)


@app.command()
@reported
def settings(
    as_json: bool = option(False, "Print JSON.", "--json"),
    as_markdown: bool = option(False, "Print docs/settings.md: the defaults alone.", "--markdown"),
) -> None:
    """Show every setting: in force, default, meaning.

    \b
    Examples:
      iafvae settings
      IAFVAE_PORT=9000 iafvae settings --json
    """
    from service.cli import settings as table

    if as_markdown:
        typer.echo(table.markdown_page(), nl=False)
        return
    from service.settings import load_settings

    table.print_settings(load_settings(), as_json=as_json)


@app.command()
@reported
def doctor(
    models: Path | None = option(
        None, "A bundle, or a directory [default: IAFVAE_MODELS].", parser=path
    ),
    provider: ProviderName = None,
    as_json: bool = option(False, "Print JSON.", "--json"),
) -> None:
    """Say what this machine has, and what is missing.

    That is: versions, cores, each bundle, which provider computes and why, address, keys.

    The exit code is 1 where `iafvae serve` would not start, or would leave a bundle out.

    \b
    Examples:
      iafvae doctor
      iafvae doctor --provider cuda --models bundles
    """
    from service.cli.doctor import examine, print_findings
    from service.cli.progress import shown
    from service.settings import load_settings

    with shown("looking"):
        findings = list(examine(load_settings(models=models, provider=provider)))
    print_findings(findings, as_json=as_json)
    if any(one.state == "missing" for one in findings):
        raise typer.Exit(1)


@bundle_app.command()
@reported
def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(parser=path, metavar="DIR", help="Bundles, or directories of bundles."),
    ],
    canaries: bool = option(True, "Also compute the canaries' answers on this machine."),
    provider: ProviderName = None,
    as_json: bool = option(False, "Print JSON.", "--json"),
) -> None:
    """Check bundles: hashes, shapes, and what this machine computes.

    All of them are checked, whatever is found; the exit code is 1 where one is not sound.

    \b
    Examples:
      iafvae bundle verify service/bundles
      iafvae bundle verify bundles/a bundles/b --no-canaries
    """
    from service.cli.verify import print_checks, verify_bundles
    from service.settings import load_settings

    engine = load_settings(provider=provider).engine if canaries else None
    if not print_checks(verify_bundles(paths, engine), as_json=as_json):
        raise typer.Exit(1)


@bundle_app.command()
@reported
def show(
    path: Annotated[Path, typer.Argument(parser=path, help="Directory of the bundle.")],
    as_json: bool = option(False, "Print the manifest.", "--json"),
) -> None:
    """Show what a bundle holds: shapes, figures, calibration."""
    from service.cli.output import show_bundle

    show_bundle(path, as_json=as_json)


@bundle_app.command()
@reported
def pull(
    url: Annotated[str, typer.Argument(help="Directory of the bundle: https, s3, gs, az, file.")],
    sha256: str = option(..., "SHA-256 of its manifest, as `iafvae bundle verify` prints it."),
    out: Path = to_file(..., "Directory that the bundle becomes."),
    offline: bool = option(False, "Only check what is there; fetch nothing.", "--offline"),
    as_json: AsJson = False,
) -> None:
    """Fetch a bundle; it appears once all of it is verified.

    A bundle that is there already is not fetched again. An interrupted call goes on where it
    stopped.

    \b
    Examples:
      iafvae bundle pull s3://models/mnist-1.4.0 --sha256 H -o models/mnist
      iafvae bundle pull https://example.org/mnist --sha256 H -o models/mnist
    """
    from service.bundle.transfer import pull as fetch
    from service.cli.progress import shown

    with shown("fetching"):
        bundle = fetch(url, sha256.lower(), out, offline=offline)
    name, version = bundle.manifest.name, bundle.manifest.version
    facts = {"path": str(out), "model": name, "version": version, "sha256": bundle.hash}
    made(f"{out}: {name} {version} ({bundle.hash})", facts, as_json=as_json, aside=False)


@bundle_app.command()
@reported
def push(
    path: Annotated[Path, typer.Argument(parser=path, help="Directory of the bundle.")],
    url: Annotated[str, typer.Argument(help="Where to put it: s3, gs, az, file.")],
    as_json: AsJson = False,
) -> None:
    """Copy a bundle to where `pull` finds it.

    One that is there already is not replaced.

    \b
    Examples:
      iafvae bundle push runs/mnist/bundle s3://models/mnist-1.4.0
    """
    from service.bundle.transfer import push as copy
    from service.cli.progress import shown

    with shown("copying"):
        digest = copy(path, url).hash
    made(digest, {"path": str(path), "sha256": digest}, as_json=as_json, aside=False)


plain_help(app)


def _end(_: int, frame: FrameType | None) -> None:
    """End a command as Ctrl-C does: what is half written is removed."""
    interrupt = signal.getsignal(signal.SIGINT)  # asyncio's own while it runs
    if not callable(interrupt):  # a shell's background jobs ignore it
        raise KeyboardInterrupt
    interrupt(signal.SIGINT, frame)


def main() -> None:
    """Entry point of the console command."""
    occupy_standard_streams()
    follow(_end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file may have any name
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except OSError as error:  # of what no command wrote: help, on a disk that is full
        raise SystemExit(f"iafvae: error: {error}") from None


def score_dataset() -> None:
    """Entry point of `iafvae-score-dataset`, which takes the extra `ray`."""
    try:
        from service.cli.score_dataset import run
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"iafvae-score-dataset: error: {error.name} is not installed: pip install -e '.[ray]' "
            "-c constraints.txt"
        ) from None
    run()


if __name__ == "__main__":
    main()
