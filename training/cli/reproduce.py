"""`iafvae-train reproduce`: the paper's tables and figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer
from rich.markdown import Markdown

from training.cli.options import console, errors, numbers, one_of, say, with_options, words
from training.cli.reproduce_options import (
    Figure1Options,
    Figure7Options,
    LadderTableOptions,
    Options,
    ReportOptions,
    TableOptions,
    command_line,
)
from training.fit.signals import EXIT_CODES
from training.reproduce.experiments import (
    Experiment,
    figure7,
    priors,
    selected,
    table1,
    table3,
    table4,
)

if TYPE_CHECKING:
    from training.reproduce.measures import Measurement

__all__ = ["app"]

app = typer.Typer(
    help="Reproduce the paper's tables and figures. Trains what is missing, measures it, and "
    "writes the paper's figures beside ours: OUT/NAME.md, .json and .png. After an interruption, "
    "or at the end of its minutes, the same command goes on where it stopped.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _redraw(options: ReportOptions, name: str) -> None:
    """Draw the report again where that is all that was asked for, and end the command."""
    if options.redraw:
        from training.reproduce.report import redraw

        redraw(options.out, name)
        say(f"drawn again: {options.out / name}.md", console)
        raise typer.Exit


def _ended(options: ReportOptions, reason: str, document: Mapping[str, Any]) -> None:
    """Show the report, where it lies, and how to go on where it is not complete."""
    from training.reproduce.report import markdown

    if options.as_json:
        console.print_json(data=document)
        raise typer.Exit(EXIT_CODES.get(reason, 0))
    if console.is_terminal:
        console.print(Markdown(markdown(document)))
    path = options.out / document["experiment"]
    written = [f"{path}.md", f"{path}.json"]
    if path.with_suffix(".png").exists():
        written.append(f"{path}.png")
    say(f"{reason}: {', '.join(written)}", console)
    if reason != "done":
        say("all is kept; the same command goes on where it stopped", console)
    raise typer.Exit(EXIT_CODES.get(reason, 0))


def _reproduce(experiment: Experiment, options: Options, measurement: Measurement) -> None:
    _redraw(options, experiment.name)
    from training.reproduce.reproduction import Reproduction  # torch takes seconds to import

    reproduction = Reproduction(
        experiment=experiment,
        rows=selected(experiment, words(options.rows)),
        out=options.out,
        plan=options.plan(),
        measurement=measurement,
        runtime=options.runtime(),
        console=errors if options.as_json else console,
        seeds=options.seeds,
        data_dir=options.data_dir,
        command=command_line(experiment.name, options),
        row_command=command_line(experiment.name, options, without=("rows", "budget_minutes")),
    )
    _ended(options, *reproduction.run())


def _table(experiment: Experiment, options: TableOptions, importance_samples: int) -> None:
    from training.data import SPLITS
    from training.reproduce.measures import Evaluation

    k = options.importance_samples or importance_samples
    if k > 1 and "importance_weighted" not in experiment.measures:
        measures = {**experiment.measures, "importance_weighted": f"{experiment.unit}, IW-{k}"}
        experiment = replace(experiment, measures=measures)
    measurement = Evaluation(
        split=one_of("--split", options.split, SPLITS),
        importance_samples=k,
        seed=options.evaluation_seed,
        limit=options.limit,
    )
    _reproduce(experiment, options, measurement)


@app.command("table1")
@with_options(TableOptions)
def _table1(options: TableOptions) -> None:
    """MNIST: a diagonal posterior against IAF.

    Of growing depth and width.

    Rows: diagonal, iaf-2x320, iaf-2x1920, iaf-4x1920, iaf-8x1920.

    \b
    Examples:
      iafvae-train reproduce table1 --out runs/table1 --epochs 70 --rows \\
        diagonal,iaf-2x320
      iafvae-train reproduce table1 --out runs/table1 --row-minutes 60 \\
        --budget-minutes 20
    """
    _table(table1(options.overrides()), options, importance_samples=128)


@app.command("priors")
@with_options(TableOptions)
def _priors(options: TableOptions) -> None:
    """MNIST: a flow as the posterior, the prior, or both.

    The posterior is a diagonal Gaussian or IAF, the prior a normal or a coupling flow (Real NVP).

    Rows: diagonal, diagonal-coupling, iaf-2x320, iaf-2x320-coupling. In one --out with table1
    they share runs.

    \b
    Example:
      iafvae-train reproduce priors --out runs/table1 --epochs 25 \\
        --learning-rate 0.006
    """
    _table(priors(options.overrides()), options, importance_samples=128)


@app.command("table3")
@with_options(LadderTableOptions)
def _table3(options: LadderTableOptions) -> None:
    """CIFAR-10: IAF that shifts against IAF that scales, too.

    Rows: DEPTH-DIRECTION-iafH-location and DEPTH-DIRECTION-iafH, of depth 4 or 8, direction
    bottom-up or bidirectional, H = 0 or 1 hidden layers. In one --out with table4 they share runs.

    \b
    Example:
      iafvae-train reproduce table3 --out runs/ladders --row-minutes 30 \\
        --rows '4-*'
    """
    _table(table3(options.size, options.overrides()), options, importance_samples=1)


@app.command("table4")
@with_options(LadderTableOptions)
def _table4(options: LadderTableOptions) -> None:
    """CIFAR-10: depths, directions and posteriors.

    Depth 4, 8, 12; bottom-up or bidirectional; diagonal, linear IAF, IAF.

    Rows: DEPTH-DIRECTION-POSTERIOR; posteriors diagonal, iaf0 (linear), iaf1 (one hidden layer);
    bidirectional also iaf2 (two hidden layers) and iaf1x2 (one, two steps).

    \b
    Examples:
      iafvae-train reproduce table4 --out runs/ladders --row-minutes 30 \\
        --rows '4-*,8-*'
      iafvae-train reproduce table4 --out runs/tiny --channels 16 \\
        --z-channels 4 --row-minutes 5
    """
    _table(table4(options.size, options.overrides()), options, importance_samples=1)


@app.command("figure7")
@with_options(Figure7Options)
def _figure7(options: Figure7Options) -> None:
    """CIFAR-10: nats of every layer, by free bits.

    Over the epochs, for several minima.

    Rows: lambda-0, lambda-0.125, ... as --free-bits lists them. A point is recorded after each
    epoch and after each slice.

    \b
    Example:
      iafvae-train reproduce figure7 --out runs/figure7 --free-bits \\
        0,0.25,1 --row-minutes 30
    """
    from training.reproduce.measures import LayerNats

    minima = numbers("--free-bits", options.free_bits, float)
    experiment = figure7(options.size, options.overrides(), depth=options.depth, free_bits=minima)
    _reproduce(experiment, options, LayerNats())


@app.command("figure1")
@with_options(Figure1Options)
def _figure1(options: Figure1Options) -> None:
    """A toy: how posteriors fill the prior.

    Four data points, two latents.

    Fits a diagonal Gaussian and an IAF posterior; integrates over the latents on a grid, so that
    log p(x) and the divergences are exact. About two minutes on one core.

    \b
    Example:
      iafvae-train reproduce figure1 --out runs/figure1
    """
    from training.reproduce.toy_run import ToyReproduction

    _redraw(options, "figure1")
    reproduction = ToyReproduction(
        out=options.out,
        seeds=options.seeds,
        steps=options.steps,
        budget_minutes=options.budget_minutes,
        threads=options.threads,
        console=errors if options.as_json else console,
        command=command_line("figure1", options),
    )
    _ended(options, *reproduction.run())
