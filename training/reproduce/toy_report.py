"""Figure 1's numbers in words and a table, from its document."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

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
    lines = [
        f"# {document['title']}",
        "",
        "| posterior | seed | " + " | ".join(COLUMNS.values()) + " |",
        "|" + "---|" * (2 + len(COLUMNS)),
    ]
    for posterior in document["posteriors"]:
        name = NAMES[posterior]
        runs = [run for run in document["runs"] if run["posterior"] == posterior]
        lines += [_line(name, str(run["seed"]), run["figures"]) for run in runs]
        lines += [] if len(runs) < 2 else [_means(name, [run["figures"] for run in runs])]
        lines += [] if runs else [f"| {name} | not run |" + " |" * len(COLUMNS)]
    return [*lines, "", *(f"- {note}" for note in _notes(document))]


def _line(name: str, seed: str, figures: Mapping[str, float]) -> str:
    cells = [f"{figures[key]:.4f}" for key in COLUMNS]
    cells[0] += f" ± {figures['elbo_standard_error']:.4f}"
    return " | ".join([f"| {name}", seed, *cells]) + " |"


def _means(name: str, figures: list[Mapping[str, float]]) -> str:
    cells = []
    for key in COLUMNS:
        values = [of_one[key] for of_one in figures]
        cells.append(f"**{statistics.fmean(values):.3f}** ± {statistics.stdev(values):.3f}")
    return " | ".join([f"| {name}", f"mean ± sd of {len(figures)}", *cells]) + " |"


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
