"""`iafvae-train evaluate`, `evaluate-anomaly`, `bound` and `curve`: figures of runs and bundles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from model.config import ConfigError
from training.cli.options import (
    DataDir,
    Weights,
    console,
    errors,
    one_of,
    with_options,
    words,
)
from training.fit.signals import EXIT_CODES, signal_name, stoppable

if TYPE_CHECKING:
    from training.evaluate.subject import Subject

__all__ = ["bound", "curve", "evaluate", "evaluate_anomaly"]

MEASURED = ("test", "validation")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model is measured, and how it is computed."""

    run: Annotated[
        Path | None, typer.Argument(help="A run directory, or one checkpoint in it.")
    ] = None
    bundle: Annotated[
        Path | None, typer.Option(help="Measure an exported bundle instead of a run.")
    ] = None
    seed: Annotated[
        int, typer.Option(help="Of the latents, of binarised and of made images.", min=0)
    ] = 0
    weights: Weights = "ema"
    data_dir: DataDir = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto"
    memory_gib: Annotated[
        float, typer.Option(help="About how much memory the draws may take at once.", min=0.01)
    ] = 2.0
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False

    def check(self) -> Any:
        """The choice of weights; raises `ConfigError` for what there is not."""
        if (self.run is None) == (self.bundle is None):
            raise ConfigError("give either a run directory or --bundle DIRECTORY")
        return one_of("--weights", self.weights, ("ema", "raw"))

    def subject(self) -> Subject:
        """The model."""
        from training.evaluate.subject import bundle_subject, run_subject

        weights = self.check()
        shared: dict[str, Any] = {"data_dir": self.data_dir, "device": self.device}
        if self.bundle is not None:
            return bundle_subject(self.bundle, **shared)
        return run_subject(self.run or Path(), weights=weights, **shared)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ModelOptions):
    """The likelihood on a split."""

    data: Annotated[
        str | None, typer.Option(help="With --bundle: other images than it was trained on.")
    ] = None
    split: Annotated[str, typer.Option(help="train, validation, calibration or test.")] = "test"
    importance_samples: Annotated[
        int, typer.Option(help="K of the importance-weighted bound.", min=1)
    ] = 128
    limit: Annotated[int | None, typer.Option(help="Only the first N images.", min=1)] = None
    report: Annotated[
        Path | None, typer.Option(help="Also write the figures as JSON to this file.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class ResultOptions(ModelOptions):
    """A measurement whose results are files, and which goes on after an interruption."""

    split: Annotated[
        str, typer.Option(help="test (final figures) or validation (while you choose).")
    ] = "test"
    out: Annotated[
        Path | None,
        typer.Option(
            help="A directory for the results; default: the run's, where export finds them."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class AnomalyOptions:
    """A served model, other images, and how they are scored."""

    bundle: Annotated[Path, typer.Option(help="The bundle to measure, as it is served.")]
    data: Annotated[
        str | None,
        typer.Option(help="Other images of its own kind than it was trained on, or folder:PATH."),
    ] = None
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Sets to compare with, commas between: mnist, fashion-mnist, cifar10, "
            "folder:PATH; constants, noise, draws (the model's own), and of the model's own "
            "images blurred[:PIXELS], noisy[:LEVELS], inverted, flipped, shuffled[:SIDE], "
            "defects[:SIDE]. Default: data sets at hand (but the model's own), and all that are "
            "made."
        ),
    ] = None
    limit: Annotated[
        int, typer.Option(help="How many images of each set, the first ones; 0: all.", min=0)
    ] = 300
    importance_samples: Annotated[
        int | None,
        typer.Option(help="K, draws of the latents for each image; default: the bundle's.", min=1),
    ] = None
    seed: Annotated[int, typer.Option(help="Of the latents and of made images.", min=0)] = 0
    split: Annotated[
        str, typer.Option(help="test (final figures) or validation (while you choose).")
    ] = "test"
    data_dir: DataDir = None
    out: Annotated[
        Path, typer.Option(help="A directory for the results; a run's: export finds them there.")
    ] = Path()
    into_card: Annotated[
        bool, typer.Option("--into-card", help="Put them into the bundle's card, too.")
    ] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False


@dataclass(frozen=True, kw_only=True)
class BoundOptions(ResultOptions):
    """The numbers of draws, and on how many images."""

    k: Annotated[
        str, typer.Option("--k", help="Numbers of importance samples, commas between.")
    ] = "1,16,128,1000"
    images: Annotated[
        int | None,
        typer.Option(help="Measure the largest K on the first N images alone: it is long.", min=1),
    ] = None
    limit: Annotated[
        int | None, typer.Option(help="Every K on the first N images only.", min=1)
    ] = None


@with_options(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> None:
    """Measure a run's likelihood.

    That is: ELBO, IW-K bound, KL of each group, active units.

    Writes the figures as JSON into the run directory too, where `export` finds them. Choose
    models on the validation split; the test split is for final figures. A bundle is measured
    through the engine that serves it, with the same noise, and gives the same figures.

    \b
    Examples:
      iafvae-train evaluate runs/mnist --split test --importance-samples 128
      iafvae-train evaluate --bundle bundles/mnist --limit 1000
    """
    weights = options.check()
    if options.run is not None and options.data is not None:
        raise ConfigError("--data goes with --bundle: a run is measured on its own images")
    from training.data import SPLITS
    from training.evaluate.evaluate import evaluate_model
    from training.evaluate.run import evaluate_run
    from training.evaluate.subject import bundle_subject
    from training.files import write_json
    from training.fit.device import choose_device

    split = one_of("--split", options.split, SPLITS)
    shared: dict[str, Any] = {
        "importance_samples": options.importance_samples,
        "seed": options.seed,
        "memory_gib": options.memory_gib,
    }
    kept: Path | None = None
    with _progress() as progress:
        if options.run is not None:
            found, kept = evaluate_run(
                options.run,
                split=split,
                weights=weights,
                limit=options.limit,
                data_dir=options.data_dir,
                device=str(choose_device(options.device)),
                progress=progress,
                **shared,
            )
        elif options.bundle is not None:
            subject = bundle_subject(
                options.bundle,
                data=options.data,
                data_dir=options.data_dir,
                device=options.device,
            )
            images = subject.images(split).first(options.limit)
            found = evaluate_model(subject.scorer, images, progress=progress, **shared)
    if options.report is not None:
        write_json(options.report, found.to_dict())
    if options.as_json:
        console.print_json(data=found.to_dict())
    else:
        console.print(found.table())
    for path in filter(None, (kept, options.report)):
        _say(f"written to {path}")


@with_options(AnomalyOptions)
def evaluate_anomaly(options: AnomalyOptions) -> None:
    """Say whether verdicts tell other images from its own.

    By AUROC, AUPR and the false-positive rate at 95% recall, with bootstrap intervals, of the
    verdict, of each of its statistics alone, of the largest box and of the plain likelihood, and
    by the share that is called anomalous.

    Images go the way of the service: scores are those that it answers. Both directions of a pair
    are two calls. A run is exported first. After Ctrl-C the same command goes on where it stopped.

    \b
    Examples:
      iafvae-train evaluate-anomaly --bundle bundles/mnist --out results
      iafvae-train evaluate-anomaly --bundle bundles/photos --limit 0 \\
        --against folder:known-bad,blurred:2,defects
      iafvae-train evaluate-anomaly --bundle bundles/mnist --into-card
    """
    from training.evaluate.anomaly import AnomalyPlan, measure_anomaly
    from training.evaluate.anomaly_report import anomaly_markdown, anomaly_picture, anomaly_tables
    from training.evaluate.subject import writable
    from training.export.revise import into_card

    plan = AnomalyPlan(
        against=tuple(words(options.against)),
        limit=options.limit or None,
        importance_samples=options.importance_samples,
        seed=options.seed,
        split=one_of("--split", options.split, MEASURED),
    )
    folder = writable(options.out)
    with _resumable("evaluate-anomaly") as progress:
        document, partials = measure_anomaly(
            options.bundle,
            plan,
            folder,
            data=options.data,
            data_dir=options.data_dir,
            progress=progress,
        )
    model = "-".join(document["model"].split())
    name = f"verdicts-{plan.split}-k{document['importance_samples']}-{model}"
    text, picture = anomaly_markdown(document), anomaly_picture(document)
    _keep(folder, name, document, text, picture)
    for partial in partials:
        partial.remove()
    if options.into_card:
        _say(f"written into the card of {into_card(options.bundle, text, picture).path}")
    _show(document, anomaly_tables, as_json=options.as_json)


@with_options(BoundOptions)
def bound(options: BoundOptions) -> None:
    """Say how the bound on log p(x) tightens with K.

    And what each latent is used for.

    One pass: the first draws of the largest K give every smaller one (nested), on the same
    images, which for a binary model are drawn once to black and white. With standard errors over
    the images and over the draws, KL, active units, nats of each latent. After Ctrl-C the same
    command goes on where it stopped.

    \b
    Examples:
      iafvae-train bound runs/mnist --k 1,16,128,1000 --images 2000
      iafvae-train bound --bundle bundles/mnist --k 1,16 --limit 500 \\
        --out results
    """
    from training.evaluate.bound import BoundPlan, measure_bound
    from training.evaluate.bound_report import bound_markdown, bound_picture, bound_table

    plan = BoundPlan(
        ks=_counts(options.k),
        images=options.images,
        limit=options.limit,
        split=one_of("--split", options.split, MEASURED),
        seed=options.seed,
    )
    subject = options.subject()
    folder = subject.place_for_results(options.out)
    with _resumable("bound") as progress:
        document, partial = measure_bound(
            subject, plan, folder, memory_gib=options.memory_gib, progress=progress
        )
    name = f"bound-{options.split}-k{plan.ks[-1]}-{subject.stem}"
    _keep(folder, name, document, bound_markdown(document), bound_picture(document))
    partial.remove()
    _show(document, lambda found: [bound_table(found)], as_json=options.as_json)


def curve(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, drawn together.")],
    out: Annotated[
        Path | None,
        typer.Option(help="A directory for the results; default, of one run: the run's."),
    ] = None,
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
    for found in document["runs"]:
        console.print(
            f"{found['run']}: {found['minutes']:.1f} minutes, step {found['step']}, "
            f"{found['epochs']} epochs",
            highlight=False,
            soft_wrap=True,
        )
    _say(f"written to {folder / 'curve.json'}")


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(word) for word in words([text])}))
    except ValueError as error:
        raise ConfigError(f"--k takes whole numbers with commas between: {error}") from None


def _say(text: str) -> None:
    errors.print(text, highlight=False, soft_wrap=True)


def _progress() -> Progress:
    return Progress(console=errors, disable=not errors.is_terminal)


@contextmanager
def _resumable(command: str) -> Iterator[Progress]:
    """Turn Ctrl-C and SIGTERM into words and an exit status: what was measured is on the disk."""
    try:
        with stoppable(), _progress() as progress:
            yield progress
    except KeyboardInterrupt as stop:
        _say(
            "stopped; what was measured is kept: the same iafvae-train "
            f"{command} goes on from there"
        )
        raise typer.Exit(EXIT_CODES[signal_name(stop)]) from None


def _keep(
    folder: Path, name: str, document: Mapping[str, Any], markdown: str, picture: bytes
) -> None:
    """Write NAME.md, NAME.png and, last, NAME.json: where it stands, all of it does."""
    from training.files import write_bytes, write_json, write_text

    write_text(folder / f"{name}.md", markdown)
    write_bytes(folder / f"{name}.png", picture)
    write_json(folder / f"{name}.json", document)
    _say(f"written to {folder / name}.json, .md and .png")


def _show(
    document: dict[str, Any], tables: Callable[[dict[str, Any]], list[Any]], *, as_json: bool
) -> None:
    if as_json:
        console.print_json(data=document)
        return
    for table in tables(document):
        console.print(table)
