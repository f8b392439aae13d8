"""`iafvae-train evaluate`: the likelihood of a run or a bundle on a split."""

from dataclasses import dataclass
from pathlib import Path

from training.cli.measure import ModelOptions, progress_bar
from training.cli.options import console, one_of, option, say, with_options

__all__ = ["evaluate"]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ModelOptions):
    """The likelihood on a split."""

    split: str = option("test", "train, validation, calibration or test.")
    importance_samples: int = option(128, "K of the importance-weighted bound.", min=1)
    limit: int | None = option(None, "Only the first N images.", min=1)
    report: Path | None = option(None, "Also write the figures as JSON to this file.")


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
    from training.data import SPLITS
    from training.evaluate.run import evaluate_subject
    from training.evaluate.subject import writable
    from training.files import write_json

    split = one_of("--split", options.split, SPLITS)
    subject = options.subject()
    if options.report is not None:
        writable(options.report.parent)  # before the work, not after it
    with progress_bar() as progress:
        found, path = evaluate_subject(
            subject,
            split=split,
            importance_samples=options.importance_samples,
            seed=options.seed,
            limit=options.limit,
            memory_gib=options.memory_gib,
            progress=progress,
        )
    if path is not None:
        say(f"written to {path}")
    if options.as_json:
        console.print_json(data=found.to_dict())
    else:
        console.print(found.table())
    if options.report is not None:
        write_json(options.report, found.to_dict())
        say(f"written to {options.report}")
