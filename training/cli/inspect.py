"""`iafvae-train inspect`: from a folder of good images to verdicts."""

import math
from dataclasses import dataclass
from pathlib import Path

import typer

from model.config import ConfigError
from training.cli.measure import progress_bar
from training.cli.options import (
    AsJson,
    RuntimeOptions,
    argument,
    console,
    errors,
    option,
    say,
    stopping,
    with_options,
)
from training.fit.signals import EXIT_CODES, stoppable

__all__ = ["inspect"]


@dataclass(frozen=True, kw_only=True)
class InspectOptions(RuntimeOptions):
    """All options of `inspect`."""

    folder: Path = argument(..., "Good images; or a set laid out as MVTec's are.")
    out: Path = option(..., "The directory to write.")
    test: Path | None = option(
        None, "Images to be judged; their sub-folders name classes (good: usual)."
    )
    false_alarms: float = option(0.01, "How many usual images may be called anomalous, in 1.")
    minutes: float = option(
        15.0, "For about all of it, at least some minutes; seven tenths train the model."
    )
    as_json: AsJson = False


@with_options(InspectOptions)
def inspect(options: InspectOptions) -> None:
    """From a folder of good images to verdicts.

    It looks at the images, chooses a model and its size by what this machine can train in the
    minutes, trains, calibrates on images that were set aside, tries planted defects, judges the
    images held out (and those of --test), and says what the model can be trusted with. Called
    again with the same --out it trains further on the images as they were divided, and judges by
    the options of that call; a larger model takes another --out.

    \b
    Examples:
      iafvae-train inspect good/ --out parts
      iafvae-train inspect good/ --test returned/ --minutes 60 --out parts
      iafvae-train inspect bottle/ --false-alarms 0.05 --out bottle-model
    """
    if not 0 < options.false_alarms < 1:
        raise ConfigError(f"--false-alarms is between 0 and 1, not {options.false_alarms:g}")
    if not 0 < options.minutes < math.inf:
        raise ConfigError(f"--minutes must be positive and finite, not {options.minutes:g}")
    from training.inspect.run import inspect_folder

    loud = errors if options.as_json else console
    with stopping("stopped: call it again to go on"), stoppable():
        found = inspect_folder(
            options.folder,
            options.out,
            test=options.test,
            false_alarms=options.false_alarms,
            minutes=options.minutes,
            runtime=options.runtime(),
            console=loud,
            progress=progress_bar(),
        )
    for line in found.lines:
        say(line, loud)
    if options.as_json:
        facts = {"out": str(options.out), "reason": found.reason, "findings": list(found.lines)}
        console.print_json(data=facts)
    raise typer.Exit(EXIT_CODES.get(found.reason, 0))
