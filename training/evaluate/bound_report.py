"""The bound by K for people: a table for terminals, Markdown for cards, a picture."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from rich.table import Table

from training.evaluate.report import markdown_table, number
from training.plots import PALETTE, rendered

__all__ = ["bound_markdown", "bound_picture", "bound_table"]

Document = Mapping[str, Any]

HEADER = ("K", "images", "nats", "± images", "± draws", "bits/dim", "gain (± images)")
NATS_BY_LATENT = (
    "Nats of each latent: the divergence from N(0, 1) of a Gaussian with the posterior's mean and "
    "variance of that latent, averaged over the images; a lower bound on what its own posterior "
    "has (their sum leaves out what the latents tell of each other)."
)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    gain = row.get("gain")
    return (
        str(row["importance_samples"]),
        f"{row['images']:,}",
        f"{row['value_nats']:.3f}",
        number(row["standard_error_nats"], 3),
        number(row["monte_carlo_error"], 4),
        f"{row['bits_per_dim']:.4f}",
        ""
        if gain is None
        else f"{gain['value_nats']:+.3f} ± "
        f"{number(gain['standard_error_nats'], 3)} over K = {gain['over']}",
    )


def bound_table(document: Document) -> Table:
    """The bounds for a terminal."""
    title = f"{document['model']}: {document['dataset']}, {document['split']}"
    notes = "\n".join(_notes(document))
    table = Table(*HEADER, title=title, caption=notes, caption_justify="left")
    for column in table.columns:
        column.justify = "right"
    for row in document["rows"]:
        table.add_row(*_cells(row))
    return table


def bound_markdown(document: Document) -> str:
    """The bounds as a small Markdown table with what must be known beside it."""
    table = markdown_table(HEADER, [_cells(row) for row in document["rows"]])
    notes = "\n\n".join(_notes(document))
    command = f"    {document['command']}"
    return "\n\n".join([table, notes, str(document["protocol"]), command]) + "\n"


def _notes(document: Document) -> list[str]:
    groups = ", ".join(
        f"{name} {nats:.2f} over {document['latents'][name]} latents"
        for name, nats in document["kl_nats"].items()
    )
    elbo = document["elbo"]
    bounds = (
        "Lower bounds on log p(x), higher is better. ELBO (the mean over all draws): "
        f"{elbo['value_nats']:.3f} ± {number(elbo['standard_error_nats'], 3)} nats. "
        f"KL in nats: {groups}. Effective sample size at the largest K: "
        f"{100 * document['effective_share']:.1f}% of the draws."
    )
    notes = [bounds]
    if document["active_units"] is not None:
        active = ", ".join(
            f"{name} {units} of {document['latents'][name]}"
            for name, units in document["active_units"].items()
        )
        notes.append(f"Active units: {active}.")
    if (by_latent := document["latent_kl_nats"]) is not None:
        ordered = " ".join(
            f"{round(nats, 2) + 0.0:.2f}" for nats in sorted(by_latent, reverse=True)
        )
        notes.append(f"{NATS_BY_LATENT} {ordered}; sum {sum(by_latent):.2f}.")
    return notes


def bound_picture(document: Document) -> bytes:
    """The bound against K, and what each latent (or group of latents) holds, as PNG."""
    return rendered(lambda: _figure(document))


def _figure(document: Document) -> Figure:
    figure = Figure(figsize=(8.6, 3.2), layout="constrained")
    bound, latents = figure.subplots(1, 2)
    _tightening(bound, document)
    _nats(latents, document)
    figure.suptitle(f"{document['model']}: {document['dataset']}, {document['split']}", fontsize=10)
    return figure


def _tightening(axes: Axes, document: Document) -> None:
    rows = document["rows"]
    ks = [row["importance_samples"] for row in rows]
    values = [row["value_on_common_nats"] for row in rows]
    scale = [row["images"] / row["common_images"] for row in rows]
    errors = [
        (row["monte_carlo_error"] or 0.0) * factor**0.5
        for row, factor in zip(rows, scale, strict=True)
    ]
    axes.errorbar(ks, values, yerr=errors, fmt="o-", color=PALETTE[0], capsize=3, markersize=4)
    axes.set_xscale("log")
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set_xlabel("K, importance samples (± over draws)")
    axes.set_ylabel("bound on log p(x), nats an image")
    axes.set_title(f"the bound by K, {rows[-1]['common_images']:,} images")
    axes.grid(visible=True)
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))


def _nats(axes: Axes, document: Document) -> None:
    by_latent = document["latent_kl_nats"]
    if by_latent is not None:
        heights, label = sorted(by_latent, reverse=True), "latents, most nats first"
        axes.set_title("nats of each latent")
    else:
        heights, label = list(document["kl_nats"].values()), "groups of latents, top down"
        axes.set_title("nats of each group")
    axes.bar(range(1, len(heights) + 1), heights, color=PALETTE[2])
    axes.set_xlabel(label)
    axes.set_ylabel("KL in nats")
    axes.grid(visible=True, axis="y")
