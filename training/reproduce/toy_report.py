"""Figure 1's numbers in words and a table, from its document."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from training.evaluate.report import markdown_table

__all__ = ["command_note", "toy_markdown"]

NAMES = {"diagonal": "diagonal Gaussian", "iaf": "IAF"}
COLUMNS = {
    "elbo": "ELBO",
    "log_px": "log p(x)",
    "kl_to_posterior": "KL(q(z&#124;x) ‖ p(z&#124;x))",
    "information": "I(x; z)",
    "aggregate_kl": "KL(q(z) ‖ p(z))",
    "overlap": "overlap",
}
EXPLAINED = (
    (
        "Data: the four images of 2x2 binary pixels with one pixel lit; no model can do better "
        f"than log p(x) = -log 4 = {-math.log(4):.3f} nats. Model: the program's own convolutional "
        "VAE at its smallest, with 2 latents and a standard normal prior."
    ),
    (
        "log p(x) and the divergences are integrals over a grid of latents, without sampling; the "
        "ELBO is sampled, ± its standard error. log p(x) - ELBO and KL(q(z|x) ‖ p(z|x)) are the "
        "same number by two independent ways (paper, eq. 3)."
    ),
    (
        "q(z) is the mean of the four posteriors: KL(q(z) ‖ p(z)) is what the gaps and the "
        f"overlaps between them cost. I(x; z) is at most log 4 = {math.log(4):.3f}. Overlap is the "
        "chance of guessing x wrongly from z."
    ),
)


def toy_markdown(document: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown: every fit, then the means over the seeds."""
    rows = []
    for posterior in document["posteriors"]:
        runs = [run for run in document["runs"] if run["posterior"] == posterior]
        found = [[str(run["seed"]), *_figures(run["figures"])] for run in runs]
        if len(runs) > 1:
            found.append([f"mean ± sd of {len(runs)}", *_means([run["figures"] for run in runs])])
        found = found or [["not run", *[""] * len(COLUMNS)]]
        rows += [[NAMES[posterior], *cells] for cells in found]
    table = markdown_table(["posterior", "seed", *COLUMNS.values()], rows)
    return [f"# {document['title']}", "", table, "", *(f"- {n}" for n in _notes(document))]


def _figures(figures: Mapping[str, float]) -> list[str]:
    cells = [f"{figures[key]:.4f}" for key in COLUMNS]
    cells[0] += f" ± {figures['elbo_standard_error']:.4f}"
    return cells


def _means(figures: list[Mapping[str, float]]) -> list[str]:
    columns = [[of_one[key] for of_one in figures] for key in COLUMNS]
    return [f"**{statistics.fmean(c):.3f}** ± {statistics.stdev(c):.3f}" for c in columns]


def _notes(document: Mapping[str, Any]) -> list[str]:
    runs, notes = document["runs"], list(EXPLAINED)
    if document["shown"]:
        seed = next(iter(document["shown"].values()))["seed"]
        notes.append(f"The picture shows seed {seed}: 1,000 draws of each posterior.")
    if runs:
        error = max(run["figures"]["mass_error"] for run in runs)
        seconds = sum(run["cpu_seconds"] for run in runs)
        machines = "; ".join(dict.fromkeys(run["machine"] for run in runs))
        notes.append(
            f"{document['steps']} steps a fit; all fits and integrals took {seconds:.0f} seconds "
            f"of CPU time ({machines}). On the grid every posterior integrates to 1 within "
            f"{error:.0e}."
        )
    return [*notes, command_note(document)]


def command_note(document: Mapping[str, Any]) -> str:
    """What made a report: the command and the program's commit, "+" where files differ from it."""
    revision = str(document["git_revision"])
    commit, changed = revision.removesuffix("+"), revision.endswith("+")
    return f"`{document['command']}`, program {commit[:12]}{'+' if changed else ''}"
