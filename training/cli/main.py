"""`iafvae-train`: fit a model, evaluate it, export it as a bundle, strip it for carrying."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from model.config import ConfigError
from training.cli.fit import fit
from training.cli.measure import anomaly, bound, curve
from training.cli.options import DataDir, Weights, console, errors, one_of
from training.cli.reproduce import app as reproduce
from training.errors import TrainingError

app = typer.Typer(
    name="iafvae-train",
    help="Train variational autoencoders with inverse autoregressive flow, measure their "
    "likelihood, and export them for the service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

# Commands that have a module of their own.
app.command()(fit)
app.command()(anomaly)
app.command()(bound)
app.command()(curve)
app.add_typer(reproduce, name="reproduce")

Run = Annotated[Path, typer.Argument(help="A run directory, or one checkpoint in it.")]


@app.command()
def evaluate(
    run: Annotated[
        Path | None, typer.Argument(help="A run directory, or one checkpoint in it.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Measure an exported bundle instead of a run.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="With --bundle: other images than it was trained on.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation, calibration or test.")] = "test",
    importance_samples: Annotated[
        int, typer.Option(help="K of the importance-weighted bound.", min=1)
    ] = 128,
    seed: Annotated[int, typer.Option(help="Of the binarisation and of the latents.", min=0)] = 0,
    weights: Weights = "ema",
    limit: Annotated[int | None, typer.Option(help="Only the first N images.", min=1)] = None,
    data_dir: DataDir = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    memory_gib: Annotated[
        float, typer.Option(help="About how much memory the draws may take at once.", min=0.01)
    ] = 2.0,
    report: Annotated[
        Path | None, typer.Option(help="Also write the figures as JSON to this file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Measure a run's likelihood: ELBO, IW-K bound, KL per group, active units.

    Writes the figures as JSON into the run directory too, where `export` finds them. Choose
    models on the validation split; the test split is for final figures. A bundle is measured
    through the engine that serves it, with the same noise, and gives the same figures.

    [bold]Examples[/bold]

      iafvae-train evaluate runs/mnist --split test --importance-samples 128

      iafvae-train evaluate --bundle bundles/mnist --limit 1000
    """
    from training.data import SPLITS
    from training.evaluate.evaluate_bundle import evaluate_bundle, write_report

    if (run is None) == (bundle is None):
        raise ConfigError("evaluate takes either a run directory or --bundle DIRECTORY")
    if bundle is None and data is not None:
        raise ConfigError("--data goes with --bundle: a run is measured on its own images")
    chosen = one_of("--split", split, SPLITS)
    kept: Path | None = None
    with Progress(console=errors, disable=not errors.is_terminal) as progress:
        if bundle is not None:
            found = evaluate_bundle(
                bundle,
                data=data,
                split=chosen,
                importance_samples=importance_samples,
                seed=seed,
                limit=limit,
                data_dir=data_dir,
                device=device,
                memory_gib=memory_gib,
                progress=progress,
            )
        elif run is not None:
            from training.evaluate.run import evaluate_run
            from training.fit.device import choose_device

            found, kept = evaluate_run(
                run,
                split=chosen,
                importance_samples=importance_samples,
                seed=seed,
                weights=one_of("--weights", weights, ("ema", "raw")),
                limit=limit,
                data_dir=data_dir,
                device=str(choose_device(device)),
                memory_gib=memory_gib,
                progress=progress,
            )
    if report is not None:
        write_report(found, report)
    if as_json:
        console.print_json(data=found.to_dict())
    else:
        console.print(found.table())
    for path in filter(None, (kept, report)):
        errors.print(f"written to {path}", highlight=False, soft_wrap=True)


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="The bundle directory to write.")],
    name: Annotated[
        str | None,
        typer.Option(
            help="The model's name in the service; default: the preset's, of a folder's images "
            "the run directory's."
        ),
    ] = None,
    version: Annotated[str, typer.Option(help="The bundle's version.")] = "1.0.0",
    description: Annotated[
        str | None, typer.Option(help="A sentence on what the model is, for the service's pages.")
    ] = None,
    license_name: Annotated[
        str, typer.Option("--license", help="Under which the model may be used.")
    ] = "MIT",
    weights: Weights = "ema",
    data_dir: DataDir = None,
    calibration: Annotated[
        bool, typer.Option(help="Without it no images are needed, and there are no p-values.")
    ] = True,
) -> None:
    """Write a run as a bundle of ONNX graphs for `iafvae serve`.

    The graphs are compared with the model through the service's own engine first; nothing is
    published unless they agree. Figures of earlier `evaluate`, `bound` and `anomaly` calls of
    the same weights go into the bundle, with the curve of the training.

    [bold]Example[/bold]

      iafvae-train export runs/mnist --out bundles/mnist
    """
    from training.export.run import export_run

    with Progress(console=errors, disable=not errors.is_terminal) as progress:
        bundle = export_run(
            run,
            out,
            name=name,
            version=version,
            description=description,
            license_name=license_name,
            weights=one_of("--weights", weights, ("ema", "raw")),
            data_dir=data_dir,
            calibrate=calibration,
            progress=progress,
        )
    console.print(
        f"{bundle.path}  {bundle.manifest.name} {bundle.manifest.version}\n"
        f"serve it with: iafvae serve --models {bundle.path}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def strip(
    run: Run,
    out: Annotated[Path, typer.Option(help="The run directory to write, new or empty.")],
    ema_only: Annotated[
        bool, typer.Option("--ema-only", help="Keep the averaged weights alone, not the last too.")
    ] = False,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Keep the averaged weights in bfloat16, rounded.")
    ] = False,
) -> None:
    """Copy a run's newest checkpoint without the optimiser's state, for carrying.

    What it writes is a run: it is evaluated and exported as any other, and resumed with a fresh
    optimiser, which is close to an uninterrupted run, not equal to it. A full checkpoint holds
    four numbers a weight; stripped it holds two, with --ema-only one, with --bf16 too a half.

    [bold]Example[/bold]

      iafvae-train strip runs/paper --ema-only --out carried/paper
    """
    from training.runs.strip import size_in_bytes, strip_run

    path = strip_run(run, out, ema_only=ema_only, bf16=bf16)
    megabytes = size_in_bytes(path) / 1e6
    console.print(f"{out}: {path.name}, {megabytes:.1f} MB", highlight=False, soft_wrap=True)


def _place() -> str:
    """Which of several processes speaks, for its messages; "" where there is one."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    return f"process {os.environ.get('RANK', '?')}: " if several else ""


def main() -> None:
    """Run the command line; faults that people can mend are one line, not a traceback."""
    try:
        app()
    except (TrainingError, ConfigError, OSError) as error:  # OSError: a disk, a permission
        text = f"error: {_place()}{error}"
        errors.print(text, style="red", highlight=False, markup=False, soft_wrap=True)
        if _place():
            from training.fit.distributed import leave

            leave(1)
        raise SystemExit(1) from None


__all__ = ["app", "main"]
