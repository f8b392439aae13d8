"""`iafvae-train widen`: more maps or units for a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.cli.options import AsJson, DataDir, Run, Threads, console, option, say, with_options

__all__ = ["widen"]


@dataclass(frozen=True, kw_only=True)
class WidenOptions:
    """Of which run, and what gets wider."""

    run: Run
    out: Path = option(..., "The run directory to write, new or empty.")
    settings: list[str] = option(
        ..., "What gets wider, as PATH=VALUE: model.channels=[16,48,64]; repeatable.", "--set"
    )
    data_dir: DataDir = None
    threads: Threads = 0
    as_json: AsJson = False


@with_options(WidenOptions)
def widen(options: WidenOptions) -> None:
    """Give a trained run more maps or units.

    The wider model computes just what the trained one does: old units keep their weights and read
    none of the new ones. What it writes is a run, which `fit --resume` trains on with all its
    parts. Settings that would change what is computed are refused, and nothing is written.

    \b
    Examples:
      iafvae-train widen runs/mnist --set model.channels=[16,48,64] \\
        --out runs/mnist-wide
      iafvae-train fit --resume --epochs 500 --out runs/mnist-wide
    """
    from training.fit.widen import widen as widen_run  # torch takes seconds to import

    before, after = widen_run(
        options.run,
        options.out,
        options.settings,
        threads=options.threads,
        data_dir=options.data_dir,
        tell=say,
    )
    if options.as_json:
        facts = {"run": str(options.out), "parameters": after, "parameters_before": before}
        console.print_json(data=facts)
        return
    say(
        f"{options.out}: {after:,} parameters, {before:,} before; train it on with: "
        f"iafvae-train fit --resume --epochs N --out {options.out}",
        console,
    )
