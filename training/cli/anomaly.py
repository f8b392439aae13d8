"""`iafvae-train evaluate-anomaly`: does a bundle tell other images from its own?"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from training.cli.measure import MEASURED, keep, resumable, show
from training.cli.options import DataDir, Measured, one_of, option, say, with_options, words

__all__ = ["evaluate_anomaly"]

USUAL = 300  # images of each set
LONGEST = 60  # letters of a file's name for the sets


@dataclass(frozen=True, kw_only=True)
class AnomalyOptions:
    """A served model, other images, and how they are scored."""

    bundle: Path = option(..., "The bundle to measure, as it is served.")
    data: str | None = option(
        None, "Other images of its own kind than it was trained on, or folder:PATH."
    )
    against: list[str] | None = option(
        None,
        "Sets to compare with, commas between: mnist, fashion-mnist, cifar10, "
        "folder:PATH; constants, noise, draws (the model's own), and of the model's own "
        "images blurred[:PIXELS], noisy[:LEVELS], inverted, flipped, thresholded, "
        "shuffled[:SIDE], defects[:SIDE]. Default: data sets at hand (but the model's own), "
        "and all that are made.",
    )
    limit: int = option(USUAL, "How many images of each set, the first ones; 0: all.", min=0)
    importance_samples: int | None = option(
        None, "K, draws of the latents for each image; default: the bundle's.", min=1
    )
    seed: int = option(0, "Of the latents and of made images.", min=0)
    split: Measured = "test"
    data_dir: DataDir = None
    out: Path = option(Path(), "A directory for the results; a run's: export finds them there.")
    into_card: bool = option(False, "Put them into the bundle's card, too.", "--into-card")
    as_json: bool = option(False, "Print JSON, not tables.", "--json")


@with_options(AnomalyOptions)
def evaluate_anomaly(options: AnomalyOptions) -> None:
    """Say whether verdicts tell other images from its own.

    By AUROC, AUPR and the false-positive rate at 95% recall, with bootstrap intervals, of the
    verdict, of each of its statistics alone, of the largest box and of the plain likelihood, and
    by the share that is called anomalous.

    Images go the way of the service: scores are those that it answers. Both directions of a pair
    are two calls. To measure a run, export it first. After Ctrl-C the same command goes on where
    it stopped.

    \b
    Examples:
      iafvae-train evaluate-anomaly --bundle bundles/mnist --out results
      iafvae-train evaluate-anomaly --bundle bundles/photos --limit 0 \\
        --data folder:photos --against folder:known-bad,blurred:2,defects
      iafvae-train evaluate-anomaly --bundle bundles/mnist --into-card
    """
    from training.data import FOLDER_PREFIX
    from training.evaluate.anomaly import AnomalyPlan, measure_anomaly
    from training.evaluate.anomaly_report import anomaly_markdown, anomaly_picture, anomaly_table
    from training.evaluate.subject import data_stem, told_apart, writable
    from training.export.revise import into_card

    plan = AnomalyPlan(
        data=options.data,
        against=tuple(words(options.against)),
        limit=options.limit or None,
        importance_samples=options.importance_samples,
        seed=options.seed,
        split=one_of("--split", options.split, MEASURED),
    )
    folder = writable(options.out)
    with resumable("evaluate-anomaly") as progress:
        document, partials = measure_anomaly(
            options.bundle,
            plan,
            folder,
            data_dir=options.data_dir,
            progress=progress,
        )
    model = "-".join(document["model"].split())
    # Sets that were chosen take no whole table's place; no name has a path of this machine.
    some = "".join(f"-{PurePath(each).name}" for each in plan.against)
    some = re.sub(r"[^\w.-]", "", some)
    if len(some) > LONGEST or any(each.startswith(FOLDER_PREFIX) for each in plan.against):
        told = hashlib.sha256(",".join(plan.against).encode(errors="surrogateescape"))
        some = f"{some[:LONGEST]}-{told.hexdigest()[:8]}"
    images = {USUAL: "", 0: "-all"}.get(options.limit, f"-first{options.limit}")
    some += images + told_apart(None, plan.seed) + data_stem(plan.data)
    name = f"verdicts-{plan.split}-k{document['importance_samples']}-{model}{some}"
    text, picture = anomaly_markdown(document), anomaly_picture(document)
    keep(folder, name, document, text, picture)
    for partial in partials:
        partial.remove()
    if options.into_card:
        made = into_card(options.bundle, document["sha256"], text, picture)
        say(f"written into the card of {made.path}")
    show(document, anomaly_table, as_json=options.as_json)
