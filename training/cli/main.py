"""`iafvae-train`: fit a model, evaluate it, export it as a bundle, strip it for carrying."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.config import ConfigError
from service.cli.help import PLAIN, plain_help
from training.cli.anomaly import evaluate_anomaly
from training.cli.bound import bound
from training.cli.curve import curve
from training.cli.evaluate import evaluate
from training.cli.fit import fit
from training.cli.inspect import inspect
from training.cli.measure import progress_bar
from training.cli.options import AsJson, DataDir, Run, Weights, console, errors, one_of, say
from training.cli.prior import fit_prior
from training.cli.reproduce import app as reproduce
from training.cli.widen import widen
from training.errors import TrainingError, in_words

if TYPE_CHECKING:
    from service.bundle import Bundle

app = typer.Typer(
    name="iafvae-train",
    help="Train variational autoencoders with inverse autoregressive flow, measure their "
    "likelihood, and export them for the service.",
    no_args_is_help=True,
    **PLAIN,
)

# Commands that have a module of their own.
app.command()(fit)
app.command()(fit_prior)
app.command()(widen)
app.command()(inspect)
app.command()(evaluate)
app.command()(evaluate_anomaly)
app.command("anomaly", hidden=True)(evaluate_anomaly)  # its name before
app.command()(bound)
app.command()(curve)
app.add_typer(reproduce, name="reproduce")


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
        str | None,
        typer.Option(
            "--license",
            help="Under which the model may be used; default: MIT, of a folder's images that "
            "none is stated.",
        ),
    ] = None,
    weights: Weights = "ema",
    data_dir: DataDir = None,
    calibration: Annotated[
        bool, typer.Option(help="Without it no images are needed, and there are no p-values.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Write a run as a bundle for `iafvae serve`.

    The graphs are compared with the model through the service's own engine first; nothing is
    published unless they agree. Figures of earlier `evaluate`, `bound` and `evaluate-anomaly`
    calls of the same weights go into the bundle, with the curve of the training.

    \b
    Example:
      iafvae-train export runs/mnist --out bundles/mnist
    """
    from training.export.run import export_run

    with progress_bar() as progress:
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
    _warn_of_few(bundle)
    _show(bundle, f"\nserve it with: iafvae serve --models {bundle.path}", as_json=as_json)


@app.command()
def calibrate(
    bundle: Annotated[Path, typer.Argument(help="A bundle directory.")],
    data: Annotated[
        str,
        typer.Option(
            help="A folder of usual images that the model was not trained on, or a data set's name."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where the new version goes; default: in its place.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="The new version; default: the last number and one.")
    ] = None,
    resize: Annotated[
        bool,
        typer.Option(
            "--resize",
            help="Fit a folder's images of another size or colour as training did; without it "
            "only where the calibration so far was of such images.",
        ),
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Give a bundle a new calibration, without training.

    That makes a new version of it. Of a data set, its validation and calibration images are taken;
    of a folder, every image, copies once: half make the density of the statistics, the other half
    are those among which others are ranked.

    \b
    Example:
      iafvae-train calibrate bundles/photos --data reviewed/
    """
    from training.export.revise import recalibrate

    with progress_bar() as progress:
        made = recalibrate(
            bundle,
            out or bundle,
            data,
            resize=resize,
            version=version,
            data_dir=data_dir,
            progress=progress,
        )
    _warn_of_few(made)
    _show(made, as_json=as_json)


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
    as_json: AsJson = False,
) -> None:
    """Copy a run without the optimiser's state.

    Of its checkpoints the newest alone, for carrying.

    What it writes is a run: it is evaluated and exported as any other, and resumed with a fresh
    optimiser, which is close to an uninterrupted run, not equal to it. A full checkpoint holds
    four numbers a weight; stripped it holds two, with --ema-only one, with --bf16 too a half.

    \b
    Example:
      iafvae-train strip runs/paper --ema-only --out carried/paper
    """
    from training.runs.strip import size_in_bytes, strip_run

    path = strip_run(run, out, ema_only=ema_only, bf16=bf16)
    size = size_in_bytes(path)
    if as_json:
        console.print_json(data={"run": str(out), "checkpoint": path.name, "bytes": size})
        return
    say(f"{out}: {path.name}, {size / 1e6:.1f} MB", console)


plain_help(app)


def _show(bundle: Bundle, more: str = "", *, as_json: bool) -> None:
    """Which bundle was written."""
    name, version = bundle.manifest.name, bundle.manifest.version
    if as_json:
        facts = {"path": str(bundle.path), "model": name, "version": version, "sha256": bundle.hash}
        console.print_json(data=facts)
        return
    say(f"{bundle.path}  {name} {version}{more}", console)


def _warn_of_few(bundle: Bundle) -> None:
    """Say on the terminal what so few images cannot promise."""
    from service.verdicts.conformal import certified_alpha
    from service.verdicts.decisions import alpha_reachable

    spec, alpha = bundle.manifest.calibration, bundle.manifest.scoring.alpha
    if spec is None:
        return
    if not alpha_reachable(alpha, spec.images):
        words = (
            f"{spec.images} images rank nothing as low as {alpha:g}, so that no decision is ever "
            "possible there: calibrate on more, or ask with a larger alpha"
        )
    elif certified_alpha(alpha, spec.images) is None:
        words = (
            f"{spec.images} images hold {alpha:.1%} of false alarms on the average of calibration "
            "sets; that this one does is not certain: calibrate on more"
        )
    else:
        return
    errors.print(words, style="yellow", soft_wrap=True)


def _place() -> str:
    """Which of several processes speaks, for its messages; "" where there is one."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    return f"process {os.environ.get('RANK', '?')}: " if several else ""


def main() -> None:
    """Run the command line; faults that people can mend are one line, not a traceback."""
    code: object = 0
    try:
        app()
    except SystemExit as end:
        code = end.code
    except (TrainingError, ConfigError, OSError) as error:  # OSError: a disk, a permission
        code, text = 1, f"error: {_place()}{in_words(error)}"
        errors.print(text, style="red", highlight=False, soft_wrap=True)
    if _place():  # Gloo's threads may abort an interpreter that ends in order
        from training.fit.distributed import leave

        leave(code if isinstance(code, int) else int(code is not None))
    raise SystemExit(code)


__all__ = ["app", "main"]

if __name__ == "__main__":
    main()
