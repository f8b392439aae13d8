"""The commands of `iafvae` that use a model: draw, score, encode, rebuild, go between.

Only what every command needs is imported here: `iafvae --help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service.cli.options import (
    Alpha,
    AsJson,
    BundlePath,
    Convert,
    Fdr,
    ModelName,
    OutputKind,
    Paths,
    ProviderName,
    Resize,
    Samples,
    SeedOption,
    Url,
    made,
    option,
    path,
    print_json,
    reported,
    to_file,
)
from service.codecs.folders import printable

if TYPE_CHECKING:
    from service.cli.inputs import Backend
    from service.client import Computed

__all__ = ["anomaly_map", "encode", "interpolate", "reconstruct", "report", "sample", "score"]

MOST = 2**31 - 1  # images of one command


@reported
def sample(
    n: int | None = option(
        None,
        "How many images [default: 64, or one for each row of --prior-eps].",
        "-n",
        min=1,
        max=MOST,
    ),
    seed: SeedOption = None,
    temperature: list[float] | None = option(
        None, "One number, or one per latent group.", "--temperature", "-t", min=0
    ),
    output: OutputKind = "mean",
    prior_eps: Path | None = option(
        None, "FILE.npy of `iafvae encode --prior-eps`: change these images.", parser=path
    ),
    resample: list[str] | None = option(None, "Latent group of --prior-eps to draw anew."),
    keep: list[str] | None = option(None, "Latent group to keep; all others are drawn anew."),
    out: Path = to_file("samples.png", "FILE.png: a sheet; FILE.npy; a directory: n PNG files."),
    as_json: AsJson = False,
    bundle: BundlePath = None,
    url: Url = None,
    model: ModelName = None,
    provider: ProviderName = None,
) -> None:
    """Draw images, or variations of given ones.

    Variations keep a part of the latents and draw the rest anew.

    More than 1024 images into an .npy file are written as they are computed, in little memory.

    \b
    Examples:
      iafvae sample -n 64 --seed 0 -o sheet.png
      iafvae sample -n 100000 -t 0.8 -o samples.npy --url http://127.0.0.1:8000
      iafvae sample -n 16 --prior-eps one.npy --keep z20 -o variations.png
    """
    from service.cli import files, inputs, progress
    from service.cli.output import counted
    from service.operations.checks import drawn_seed

    files.check(out)
    given = None if prior_eps is None else inputs.read_latents(prior_eps)
    if given is None:
        n = n or 64
        files.check_pictures(out, n)
    elif given.ndim:  # without an axis it is refused where it is used
        files.check_pictures(out, n or len(given))
    heats = temperature or [1.0]
    scale = heats[0] if len(heats) == 1 else heats
    with inputs.open_backend(bundle, url, model, provider) as backend:
        changed = given is not None or resample or keep
        if n is not None and n > inputs.STREAMED and out.suffix == ".npy" and not changed:
            chosen = drawn_seed() if seed is None else seed
            pieces = backend.stream(n, seed=chosen, temperature=scale, output=output)
            files.write_stream(pieces, n, out)
            who = _answering(backend) | {"seed": chosen}
            text = f"{out}: {n} images by {who['model']} {who['version']}, seed {chosen}"
            made(text, {"file": str(out), "images": n, **who}, as_json=as_json)
            return
        with progress.shown("drawing"):
            drawn = backend.sample(
                n,
                seed=seed,
                temperature=scale,
                output=output,
                prior_eps=given,
                resample=resample or None,
                keep=keep or None,
            )
    files.write_images(drawn.images, out)
    count = len(drawn.images)
    text = f"{out}: {counted(count, 'image')} by {drawn.model} {drawn.version}, seed {drawn.seed}"
    made(text, {"file": str(out), "images": count, **_who(drawn)}, as_json=as_json)


def _answering(backend: Backend) -> dict[str, Any]:
    """As `_who`, before anything is computed or of several answers."""
    told = backend.model()
    return {
        "model": told["name"],
        **{name: told[name] for name in ("version", "bundle", "provider")},
    }


def _who(drawn: Computed) -> dict[str, Any]:
    """Who computed, for programs."""
    names = ("model", "version", "bundle", "provider", "seed")
    return {name: getattr(drawn, name) for name in names}


@reported
def score(
    paths: Paths,
    importance_samples: Samples = None,
    seed: SeedOption = None,
    alpha: Alpha = None,
    fdr: Fdr = None,
    resize: Resize = False,
    convert: Convert = False,
    as_json: bool = option(False, "Print JSON.", "--json"),
    as_csv: bool = option(False, "Print CSV.", "--csv"),
    fail_on_anomalous: bool = option(
        False,
        "Exit with 3 if an image is anomalous, with 4 if none is known to be, but one could not be "
        "decided.",
        "--fail-on-anomalous",
    ),
    bundle: BundlePath = None,
    url: Url = None,
    model: ModelName = None,
    provider: ProviderName = None,
) -> None:
    """Score images: log-likelihood, p-value, verdict.

    Log-likelihoods are in nats and, by their number of pixels and colours, in bits.

    Files that cannot be scored are listed with the reason; the exit code is then 1.

    \b
    Examples:
      iafvae score digit.png
      iafvae score photos/ --resize --convert --csv > scores.csv
    """
    from service.cli import inputs
    from service.cli.output import csv_text, print_scores

    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other")
    with inputs.open_backend(bundle, url, model, provider) as backend:
        fit = inputs.Fit(resize=resize, convert=convert)
        how = {"importance_samples": importance_samples, "seed": seed, "alpha": alpha, "fdr": fdr}
        rows = inputs.score_files(backend, paths, fit, **how)
    if as_json:
        print_json(rows)
    elif as_csv:
        sys.stdout.write(csv_text(rows))
    else:
        print_scores(rows)
    if any("error" in row for row in rows):
        raise typer.Exit(1)
    if fail_on_anomalous and any(row["anomalous"] for row in rows):
        raise typer.Exit(3)
    if fail_on_anomalous and any(row["anomalous"] is None for row in rows):
        raise typer.Exit(4)


@reported
def anomaly_map(
    paths: Paths,
    out: Path = to_file("anomalies.png", "FILE.png: images under their maps; FILE.npy: numbers."),
    as_json: AsJson = False,
    seed: SeedOption = None,
    resize: Resize = False,
    convert: Convert = False,
    bundle: BundlePath = None,
    url: Url = None,
    model: ModelName = None,
    provider: ProviderName = None,
) -> None:
    """Show where images are unlike what the model expects of each.

    In standard deviations of what is usual at each pixel: red is brighter than expected, blue
    darker, on one scale for all images. An .npy file is float32 [n, H, W]. The largest box of
    each image is printed with its p-value; --json prints all of them.

    \b
    Example:
      iafvae anomaly-map photos/ --resize -o anomalies.png
    """
    from service.cli import files, inputs
    from service.cli.output import box_text, counted
    from service.codecs.overlay import overlay
    from service.codecs.png import encode_png

    files.check(out, (".png", ".npy"))
    with inputs.open_backend(bundle, url, model, provider) as backend:
        found = inputs.find_images(paths)
        images = inputs.read_all(backend, found, inputs.Fit(resize=resize, convert=convert))
        who = _answering(backend)
        maps, boxes = inputs.mapped(backend, images, seed)
    if out.suffix == ".png":
        files.write_bytes(encode_png(overlay(images, maps)), out)
    else:
        files.write_array(maps, out)
    results = [{"file": str(file), "boxes": each} for file, each in zip(found, boxes, strict=True)]
    facts = {"file": str(out), "images": len(images), **who, "seed": seed, "results": results}
    # Names on a line each, whatever they hold.
    lines = [f"{printable(str(f))}: {box_text(b[0])}" for f, b in zip(found, boxes, strict=True)]
    lines.append(f"{out}: maps of {counted(len(images), 'image')}")
    made("\n".join(lines), facts, as_json=as_json)


@reported
def report(
    folder: Annotated[Path, typer.Argument(parser=path, help="A folder of image files.")],
    out: Path = to_file("report.html", "FILE.html; FILE.csv and FILE.json too."),
    as_json: AsJson = False,
    importance_samples: Samples = None,
    seed: SeedOption = None,
    alpha: Alpha = None,
    fdr: Fdr = None,
    normal: list[str] | None = option(
        None, "Sub-folder of usual images [default: good, normal, ok, ordinary, usual]."
    ),
    pictures: int = option(2000, "Show at most this many images, the most unusual ones.", min=0),
    resize: Resize = False,
    convert: Convert = False,
    bundle: BundlePath = None,
    url: Url = None,
    model: ModelName = None,
    provider: ProviderName = None,
) -> None:
    """Judge a folder: one page of all images.

    The page shows each image with its map, p-value and verdict, the most unusual first. Where
    sub-folders name classes and one of them is "good", it has the AUROC of each of the others. It
    needs no network; CSV and JSON are written beside it. An interrupted report goes on when the
    command is called again.

    \b
    Examples:
      iafvae report photos/ --resize -o photos.html
      iafvae report bottle/test --alpha 0.05 --url http://127.0.0.1:8000
    """
    from rich.console import Console
    from rich.progress import Progress

    from service.cli import inputs
    from service.cli.output import counted, fault_text
    from service.cli.report import ReportOptions, write_report
    from service.codecs.folders import USUAL

    options = ReportOptions(
        fit=inputs.Fit(resize=resize, convert=convert),
        importance_samples=importance_samples,
        seed=seed,
        alpha=alpha,
        fdr=fdr,
        normal=tuple(normal or USUAL),
        pictures=pictures,
    )
    console = Console(stderr=True)
    with (
        inputs.open_backend(bundle, url, model, provider) as backend,
        Progress(console=console, disable=not console.is_terminal) as progress,
    ):
        found = write_report(backend, folder, out, options, progress=progress)
    kinds = ("anomalous", "ordinary", "undecided")
    counts = ", ".join(f"{found[kind]} {kind}" for kind in kinds)
    facts = {"file": str(out), **{kind: found[kind] for kind in ("images", *kinds, "unreadable")}}
    text = f"{out}: {counted(found['images'], 'image')}, {counts}"
    made(text, facts, as_json=as_json, aside=False)
    inputs.say_undecided(found["results"])
    if faults := found["unreadable"]:
        count = "1 file was" if len(faults) == 1 else f"{len(faults)} files were"
        text = f"{count} not judged, listed there: {fault_text(faults[0])}"
        typer.echo(printable(text), err=True)


@reported
def encode(
    paths: Paths,
    out: Path = to_file("latents.npy", "FILE.npy, float32 [n, D]."),
    as_json: AsJson = False,
    seed: SeedOption = None,
    prior_eps: bool = option(
        False, "Write the prior's noise that gives the latents instead.", "--prior-eps"
    ),
    resize: Resize = False,
    convert: Convert = False,
    bundle: BundlePath = None,
    url: Url = None,
    model: ModelName = None,
    provider: ProviderName = None,
) -> None:
    """Encode images to latents.

    Without --seed they are the centre of the posterior (eps = 0), with it a draw from it.

    \b
    Examples:
      iafvae encode digits/ -o latents.npy
      iafvae encode digit.png --prior-eps -o one.npy
    """
    from service.cli import files, inputs

    files.check(out, (".npy",))
    with inputs.open_backend(bundle, url, model, provider) as backend:
        images = inputs.read_all(backend, paths, inputs.Fit(resize=resize, convert=convert))
        who = _answering(backend)
        what: Literal["latents", "prior_eps"] = "prior_eps" if prior_eps else "latents"
        latents = inputs.in_chunks(
            backend, images, lambda part: backend.encode(part, seed=seed, output=what).latents
        )
    files.write_array(latents, out)
    facts = {"file": str(out), "holds": what, "shape": list(latents.shape), **who, "seed": seed}
    made(f"{out}: {what} {list(latents.shape)}", facts, as_json=as_json)


@reported
def reconstruct(
    paths: Paths,
    out: Path = to_file(
        "reconstructions.png", "FILE.png: pairs side by side; FILE.npy; directory."
    ),
    as_json: AsJson = False,
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

    \b
    Example:
      iafvae reconstruct digits/ -o reconstructions.png
    """
    from service.cli import files, inputs
    from service.cli.output import counted

    files.check(out)
    with inputs.open_backend(bundle, url, model, provider) as backend:
        images = inputs.read_all(backend, paths, inputs.Fit(resize=resize, convert=convert))
        files.check_pictures(out, len(images))
        who = _answering(backend)
        again = inputs.in_chunks(
            backend,
            images,
            lambda part: backend.reconstruct(part, seed=seed, output=output).images,
        )
    files.write_pairs(images, again, out)
    facts = {"file": str(out), "images": len(images), **who, "seed": seed}
    made(f"{out}: {counted(len(images), 'reconstruction')}", facts, as_json=as_json)


@reported
def interpolate(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(parser=path, metavar="PATH", help="Image files to start and end at."),
    ] = None,
    seeds: list[int] | None = option(
        None, "Start or end at the image that this seed draws.", "--from-seed", min=0
    ),
    n: int = option(8, "How many images, both ends included.", "-n", min=2, max=MOST),
    seed: SeedOption = None,
    output: OutputKind = "mean",
    out: Path = to_file(
        "interpolation.png", "FILE.png: a strip; FILE.npy; a directory: n PNG files."
    ),
    as_json: AsJson = False,
    resize: Resize = False,
    convert: Convert = False,
    bundle: BundlePath = None,
    url: Url = None,
    model: ModelName = None,
    provider: ProviderName = None,
) -> None:
    """Go from one image to another.

    From and to are two image files, two seeds, or a file and a seed. The path between them is a
    great circle in the prior's noise.

    \b
    Examples:
      iafvae interpolate three.png eight.png -n 10 -o way.png
      iafvae interpolate --from-seed 1 --from-seed 2 -o way.png
    """
    from service.cli import files, inputs
    from service.cli.output import counted

    files.check(out)
    files.check_pictures(out, n)
    with inputs.open_backend(bundle, url, model, provider) as backend:
        fit = inputs.Fit(resize=resize, convert=convert)
        images = inputs.read_all(backend, paths, fit) if paths else None
        way = backend.interpolate(images, n, seeds=tuple(seeds or ()), seed=seed, output=output)
    files.write_images(way.images, out, columns=n)
    text = f"{out}: {counted(n, 'image')} by {way.model} {way.version}"
    made(text, {"file": str(out), "images": n, **_who(way)}, as_json=as_json)
