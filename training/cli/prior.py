"""`iafvae-train fit-prior`: a flow for a trained model's prior."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from model.config import CouplingPrior
from training.cli.options import (
    AsJson,
    DataDir,
    Device,
    Run,
    Threads,
    console,
    errors,
    option,
    say,
    with_options,
)
from training.config import Runtime
from training.fit.signals import EXIT_CODES, Interrupts

if TYPE_CHECKING:
    from training.fit.prior_run import PriorResult

__all__ = ["fit_prior"]

SHAPE = CouplingPrior()


@dataclass(frozen=True, kw_only=True)
class PriorOptions:
    """Of which run, for how long, and the flow's size."""

    run: Run
    out: Path = option(..., "The run directory to write, new or empty.")
    minutes: float = option(2.0, "How long to fit.")
    couplings: int | None = option(None, f"Couplings of the flow ({SHAPE.couplings}).", min=1)
    width: int | None = option(None, f"Width of its hidden layers ({SHAPE.hidden[0]}).", min=1)
    seed: int = option(0, "Seed of the weights and the draws.", min=0)
    data_dir: DataDir = None
    device: Device = "auto"
    threads: Threads = 0
    as_json: AsJson = False

    def prior(self) -> CouplingPrior | None:
        """The flow that is asked for; None: the run's own, or the default."""
        if self.couplings is None and self.width is None:
            return None
        width = self.width or SHAPE.hidden[0]
        return CouplingPrior(couplings=self.couplings or SHAPE.couplings, hidden=(width, width))


@with_options(PriorOptions)
def fit_prior(options: PriorOptions) -> None:
    """Fit a coupling flow as the prior of a trained run.

    The flow is the prior of the top latents; the rest of the model stays as it is.

    It is fitted to latents of the training images, and the weights that are best on latents of the
    validation images are kept. What it writes is a run, which `fit --resume` trains on with all its
    parts, and `evaluate` and `export` take. Given a run that has a flow, it goes on from that one.
    Ctrl-C ends it early, with what it has.

    \b
    Examples:
      iafvae-train fit-prior runs/mnist --minutes 2 --out runs/mnist-flow
      iafvae-train fit --resume --epochs 300 --out runs/mnist-flow
    """
    from training.fit.prior import PriorObserver, PriorPlan  # torch takes seconds to import
    from training.fit.prior_run import fit_prior as run_fit_prior

    plan = PriorPlan(minutes=options.minutes, seed=options.seed)
    interrupts = Interrupts()
    loud = errors if options.as_json else console
    columns = (
        TextColumn("fitting the prior"),
        BarColumn(),
        TextColumn("step {task.fields[step]}  {task.fields[gain]}"),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=loud, disable=not loud.is_terminal) as progress,
        interrupts.watched(),
    ):
        task = progress.add_task("prior", total=options.minutes, step=0, gain="")
        observer = PriorObserver(
            stop=lambda: interrupts.reason,
            step=lambda step, spent: progress.update(task, completed=spent, step=step),
            checked=lambda gain: progress.update(task, gain=f"{gain:+.3f} nats over N(0, 1)"),
        )
        result = run_fit_prior(
            options.run,
            options.out,
            plan,
            prior=options.prior(),
            runtime=Runtime(device=options.device, threads=options.threads),
            data_dir=options.data_dir,
            tell=say,
            observer=observer,
        )
    say(_ending(options.out, result), loud)
    if options.as_json:
        found = {name: dict(getattr(result, name)) for name in ("before", "after")}
        facts = {"run": str(options.out), "reason": result.reason, **found}
        console.print_json(data=facts)
    raise typer.Exit(EXIT_CODES.get(result.reason, 0))


def _ending(out: Path, result: PriorResult) -> str:
    before, after = result.before, result.after
    return (
        f"{result.reason}: validation ELBO {before['elbo_nats']:.2f} -> {after['elbo_nats']:.2f} "
        f"nats, KL {before['kl_nats']:.2f} -> {after['kl_nats']:.2f}\n"
        f"{out}: {result.path.name}; train it on with: iafvae-train fit --resume --epochs N --out "
        f"{out}"
    )
