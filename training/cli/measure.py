"""`iafvae-train anomaly`, `bound` and `curve`: results as JSON, Markdown and a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from model.config import ConfigError
from training.cli.options import DataDir, Weights, console, errors, one_of, words

__all__ = ["anomaly", "bound", "curve"]

Run = Annotated[Path | None, typer.Argument(help="A run directory, or one checkpoint in it.")]
BundleDir = Annotated[
    Path | None, typer.Option("--bundle", help="Measure an exported bundle instead of a run.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="A directory for the results; default: the run's, where export finds them."),
]
SplitName = Annotated[
    str, typer.Option("--split", help="test (final figures) or validation (while you choose).")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Memory = Annotated[
    float, typer.Option(help="About how much memory the draws may take at once.", min=0.01)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")]
MEASURED = ("test", "validation")


def anomaly(
    run: Run = None,
    bundle: BundleDir = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Sets to compare with, commas between: mnist, fashion-mnist, cifar10, "
            "folder:PATH, constants, blurred[:PIXELS], noisy[:LEVELS]. Default: mnist and "
            "fashion-mnist (but the model's own), constants, blurred and noisy."
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(help="How many images of each set, the first ones; 0: all.", min=0)
    ] = 1000,
    importance_samples: Annotated[
        int, typer.Option(help="K, draws of the latents for each image.", min=1)
    ] = 16,
    seed: Annotated[int, typer.Option(help="Of the latents and of the noisy images.", min=0)] = 0,
    split: SplitName = "test",
    weights: Weights = "ema",
    data_dir: DataDir = None,
    device: Device = "auto",
    memory_gib: Memory = 2.0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Can the model tell other images from its own? AUROC of likelihoods, norms and KLs.

    Scores held-out images of the model's own data and of other sets, each made to its shape, and
    writes the areas under the ROC curve with their standard errors, histograms of the likelihood
    and all that is needed to read them. Low likelihood, or high KL and norm, count as anomalous:
    an area below 0.5 says that the score has it backwards, which is a known failure of
    likelihoods. After Ctrl-C the same command goes on where it stopped.

    [bold]Examples[/bold]

      iafvae-train anomaly runs/fashion --against mnist,constants

      iafvae-train anomaly runs/cifar --images 0 --against mnist,fashion-mnist,noisy:50

      iafvae-train anomaly --bundle bundles/mnist --out results
    """
    from training.evaluate.anomaly import AnomalyPlan, measure_anomaly
    from training.evaluate.anomaly_report import anomaly_markdown, anomaly_picture, anomaly_tables
    from training.evaluate.subject import subject_of
    from training.runs.directory import known_data_dir

    plan = AnomalyPlan(
        against=tuple(words(against)),
        images=images or None,
        importance_samples=importance_samples,
        seed=seed,
        split=one_of("--split", split, MEASURED),
    )
    subject = subject_of(
        run,
        bundle,
        weights=one_of("--weights", weights, ("ema", "raw")),
        data_dir=data_dir,
        device=device,
    )
    folder = subject.place_for_results(out)
    data_dir = data_dir if subject.home is None else known_data_dir(subject.home, data_dir)
    with _resumable("iafvae-train anomaly"), _progress() as progress:
        document, partials = measure_anomaly(
            subject, plan, folder, data_dir=data_dir, memory_gib=memory_gib, progress=progress
        )
    name = f"anomaly-{split}-k{importance_samples}-{subject.stem}"
    _keep(folder, name, document, anomaly_markdown(document), anomaly_picture(document))
    for partial in partials:
        partial.remove()
    _show(document, anomaly_tables, as_json=as_json)


def bound(
    run: Run = None,
    bundle: BundleDir = None,
    k: Annotated[
        str, typer.Option("--k", help="Numbers of importance samples, commas between.")
    ] = "1,16,128,1000",
    images: Annotated[
        int | None,
        typer.Option(help="Measure the largest K on the first N images alone: it is long.", min=1),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Every K on the first N images only.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the binarisation and of the latents.", min=0)] = 0,
    split: SplitName = "test",
    weights: Weights = "ema",
    data_dir: DataDir = None,
    device: Device = "auto",
    memory_gib: Memory = 2.0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """How the bound on log p(x) tightens with K, and what each latent is used for.

    One pass: the first draws of the largest K give every smaller one (nested), on the same
    images, which for a binary model are drawn once to black and white. With standard errors over
    the images and over the draws, KL, active units, nats of each latent. After Ctrl-C the same
    command goes on where it stopped.

    [bold]Examples[/bold]

      iafvae-train bound runs/mnist --k 1,16,128,1000 --images 2000

      iafvae-train bound --bundle bundles/mnist --k 1,16 --limit 500 --out results
    """
    from training.evaluate.bound import BoundPlan, measure_bound
    from training.evaluate.bound_report import bound_markdown, bound_picture, bound_table
    from training.evaluate.subject import subject_of

    plan = BoundPlan(
        ks=_counts(k),
        images=images,
        limit=limit,
        split=one_of("--split", split, MEASURED),
        seed=seed,
    )
    subject = subject_of(
        run,
        bundle,
        weights=one_of("--weights", weights, ("ema", "raw")),
        data_dir=data_dir,
        device=device,
    )
    folder = subject.place_for_results(out)
    with _resumable("iafvae-train bound"), _progress() as progress:
        document, partial = measure_bound(
            subject, plan, folder, memory_gib=memory_gib, progress=progress
        )
    name = f"bound-{split}-k{plan.ks[-1]}-{subject.stem}"
    _keep(folder, name, document, bound_markdown(document), bound_picture(document))
    partial.remove()
    _show(document, lambda found: [bound_table(found)], as_json=as_json)


def curve(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, drawn together.")],
    out: Annotated[
        Path | None,
        typer.Option(help="A directory for the results; default, of one run: the run's."),
    ] = None,
) -> None:
    """Draw the validation bound against minutes of training, of one run or of several.

    Minutes are those of the steps, by the speeds that a run records; slices add up. Writes
    curve.png and curve.json. `export` draws a run's curve for its card by itself.

    [bold]Examples[/bold]

      iafvae-train curve runs/mnist

      iafvae-train curve runs/diagonal runs/iaf --out results
    """
    from training.evaluate.curve import curve_document, curve_picture
    from training.reproduce.state import write_whole

    if out is None and len(runs) > 1:
        raise ConfigError("the curves of several runs belong to none of them: give --out")
    folder = out or runs[0]
    document = curve_document(runs)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "curve.json", _json(document))
    picture = curve_picture(document)
    if picture is not None:
        write_whole(folder / "curve.png", picture)
    else:
        errors.print("too few figures for a picture yet", style="yellow")
    for found in document["runs"]:
        console.print(
            f"{found['run']}: {found['minutes']:.1f} minutes, step {found['step']}, "
            f"{found['epochs']} epochs",
            highlight=False,
            soft_wrap=True,
        )
    errors.print(f"written to {folder / 'curve.json'}", highlight=False, soft_wrap=True)


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(word) for word in words([text])}))
    except ValueError as error:
        raise ConfigError(f"--k takes whole numbers with commas between: {error}") from None


def _progress() -> Progress:
    return Progress(console=errors, disable=not errors.is_terminal)


@contextmanager
def _resumable(command: str) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into words and an exit status: what was measured is on the disk."""
    from training.fit.signals import signal_name, stoppable

    try:
        with stoppable():
            yield
    except KeyboardInterrupt as stop:
        errors.print(
            f"stopped; what was measured is kept: the same {command} goes on from there",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit({"SIGTERM": 143}.get(signal_name(stop), 130)) from None


def _keep(
    folder: Path, name: str, document: Mapping[str, Any], markdown: str, picture: bytes
) -> None:
    """Write NAME.md, NAME.png and, last, NAME.json: where it stands, all of it does."""
    from training.reproduce.state import write_whole

    write_whole(folder / f"{name}.md", markdown)
    write_whole(folder / f"{name}.png", picture)
    write_whole(folder / f"{name}.json", _json(document))
    errors.print(f"written to {folder / name}.json, .md and .png", highlight=False, soft_wrap=True)


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _show(
    document: dict[str, Any], tables: Callable[[dict[str, Any]], list[Any]], *, as_json: bool
) -> None:
    if as_json:
        console.print_json(data=document)
        return
    for table in tables(document):
        console.print(table)
