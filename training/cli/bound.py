"""`iafvae-train bound`: how the bound on log p(x) tightens with K."""

from dataclasses import dataclass
from pathlib import Path

from training.cli.measure import MEASURED, ModelOptions, keep, resumable, show
from training.cli.options import Measured, numbers, one_of, option, with_options

__all__ = ["bound"]


@dataclass(frozen=True, kw_only=True)
class BoundOptions(ModelOptions):
    """The numbers of draws, on how many images, and where the results go."""

    split: Measured = "test"
    out: Path | None = option(
        None, "A directory for the results; default: the run's, where export finds them."
    )
    k: str = option("1,16,128,1000", "Numbers of importance samples, commas between.", "--k")
    images: int | None = option(
        None, "Measure the largest K on the first N images alone: it is long.", min=1
    )
    limit: int | None = option(None, "Every K on the first N images only.", min=1)


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
    from training.evaluate.subject import told_apart

    plan = BoundPlan(
        ks=tuple(sorted(set(numbers("--k", options.k, int)))),
        images=options.images,
        limit=options.limit,
        split=one_of("--split", options.split, MEASURED),
        seed=options.seed,
    )
    subject = options.subject()
    folder = subject.place_for_results(options.out)
    with resumable("bound") as progress:
        document, partial = measure_bound(
            subject, plan, folder, memory_gib=options.memory_gib, progress=progress
        )
    some = "" if plan.images is None else f"-of{plan.images}"
    some += told_apart(options.limit, options.seed)
    name = f"bound-{options.split}-k{'-'.join(map(str, plan.ks))}-{subject.stem}{some}"
    keep(folder, name, document, bound_markdown(document), bound_picture(document))
    partial.remove()
    show(document, bound_table, as_json=options.as_json)
