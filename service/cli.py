"""The command `iafvae`: serve a model, or use one from the command line.

Only what every command needs is imported here: `iafvae --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from service.cli_shared import (
    BundlePath,
    Convert,
    ModelName,
    OutputKind,
    Paths,
    ProviderName,
    Resize,
    SeedOption,
    Url,
    reported,
)

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
    from service.server import serve as run
    from service.settings import load_settings

    run(
        load_settings(host=host, port=port, models=models, provider=provider, log_format=log_format)
    )


@app.command()
@reported
def sample(
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 64,
    seed: SeedOption = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option("--temperature", "-t", min=0, help="One number, or one per latent group."),
    ] = None,
    output: OutputKind = "mean",
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help="FILE.png: a sheet; FILE.npy; a directory: n PNG files."),
    ] = Path("samples.png"),
    bundle: BundlePath = None,
    url: Url = None,
    model: ModelName = None,
    provider: ProviderName = None,
) -> None:
    """Draw images.

    Examples:

        iafvae sample -n 64 --seed 0 -o sheet.png

        iafvae sample -n 1000 -t 0.8 -o samples.npy --url http://127.0.0.1:8000
    """
    from service import commands

    with commands.open_backend(bundle, url, model, provider) as backend:
        drawn = backend.sample(n, seed=seed, temperature=_temperature(temperature), output=output)
    commands.write_images(drawn.images, out)
    typer.echo(f"{out}: {n} images by {drawn.model} {drawn.version}, seed {drawn.seed}", err=True)


def _temperature(given: list[float] | None) -> float | list[float]:
    if not given:
        return 1.0
    return given[0] if len(given) == 1 else given


@app.command()
@reported
def score(
    paths: Paths,
    importance_samples: Annotated[
        int | None, typer.Option("--importance-samples", "-k", min=1, help="K of the bound.")
    ] = None,
    seed: SeedOption = None,
    alpha: Annotated[
        float | None, typer.Option(min=0, max=1, help="Anomalous if the p-value is at most this.")
    ] = None,
    resize: Resize = False,
    convert: Convert = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    fail_on_anomalous: Annotated[
        bool, typer.Option("--fail-on-anomalous", help="Exit with 3 if an image is anomalous.")
    ] = False,
    bundle: BundlePath = None,
    url: Url = None,
    model: ModelName = None,
    provider: ProviderName = None,
) -> None:
    """Score images: log-likelihood in nats, bits per dimension, p-value.

    Files that cannot be scored are listed with the reason; the exit code is then 1.

    Examples:

        iafvae score digit.png

        iafvae score photos/ --resize --convert --csv > scores.csv
    """
    from service import commands, reports

    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other")
    with commands.open_backend(bundle, url, model, provider) as backend:
        fit = commands.Fit(resize=resize, convert=convert)
        rows = commands.score_files(
            backend, paths, fit, importance_samples=importance_samples, seed=seed, alpha=alpha
        )
    reports.print_scores(rows, "json" if as_json else "csv" if as_csv else "table")
    if any("error" in row for row in rows):
        raise typer.Exit(1)
    if fail_on_anomalous and any(row["anomalous"] for row in rows):
        raise typer.Exit(3)


@app.command()
@reported
def encode(
    paths: Paths,
    out: Annotated[Path, typer.Option("-o", "--out", help="FILE.npy, float32 [n, D].")] = Path(
        "latents.npy"
    ),
    seed: SeedOption = None,
    resize: Resize = False,
    convert: Convert = False,
    bundle: BundlePath = None,
    url: Url = None,
    model: ModelName = None,
    provider: ProviderName = None,
) -> None:
    """Encode images to latents; without a seed at the posterior's centre (eps = 0).

    Example:

        iafvae encode digits/ -o latents.npy
    """
    from service import commands

    with commands.open_backend(bundle, url, model, provider) as backend:
        images = commands.read_all(backend, paths, commands.Fit(resize=resize, convert=convert))
        latents = commands.in_chunks(images, lambda part: backend.encode(part, seed=seed).latents)
    commands.write_array(latents, out)
    typer.echo(f"{out}: latents {list(latents.shape)}", err=True)


@app.command()
@reported
def reconstruct(
    paths: Paths,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="FILE.png: pairs side by side; FILE.npy; directory.")
    ] = Path("reconstructions.png"),
    seed: SeedOption = None,
    output: OutputKind = "mean",
    resize: Resize = False,
    convert: Convert = False,
    bundle: BundlePath = None,
    url: Url = None,
    model: ModelName = None,
    provider: ProviderName = None,
) -> None:
    """Send images through their latents and back.

    Example:

        iafvae reconstruct digits/ -o reconstructions.png
    """
    from service import commands

    with commands.open_backend(bundle, url, model, provider) as backend:
        images = commands.read_all(backend, paths, commands.Fit(resize=resize, convert=convert))
        again = commands.in_chunks(
            images, lambda part: backend.reconstruct(part, seed=seed, output=output).images
        )
    commands.write_pairs(images, again, out)
    typer.echo(f"{out}: {len(images)} reconstructions", err=True)


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
    from service import reports

    typer.echo(reports.verify_bundle(path, canaries=canaries, provider=provider or "auto"))


@bundle_app.command()
@reported
def show(
    path: Annotated[Path, typer.Argument(help="Directory of the bundle.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
) -> None:
    """Show what a bundle holds: shapes, figures, calibration."""
    from service import reports

    reports.show_bundle(path, as_json=as_json)


def main() -> None:
    """Entry point of the console command."""
    app()
