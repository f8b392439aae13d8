"""What a model makes of other images, for people: a table, Markdown for cards, histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from training.evaluate.report import markdown_table
from training.plots import INK, PALETTE, rendered

__all__ = ["anomaly_markdown", "anomaly_picture", "anomaly_tables", "failures"]

Document = Mapping[str, Any]

FIGURES = {"auroc": "AUROC", "aupr": "AUPR", "fpr95": "FPR at 95% TPR"}
EXPLAINED = (
    "For each score the area under the ROC curve (AUROC) against the model's own images, average "
    "precision (AUPR) and the false-positive rate at 95% recall (FPR at 95% TPR); low or high is "
    "the side that counts as anomalous."
)
HEADINGS = {
    "log_likelihood": "IW-{k}",
    "elbo": "ELBO",
    "reconstruction": "log p(x|z)",
    "kl": "KL",
    "norm": "norm",
    "typicality": "two-sided p",
}

Lines = tuple[str, Sequence[Sequence[str]]]  # a title, then a header and rows of cells


def _columns(document: Document) -> dict[str, str]:
    """The scores of the main tables and their headings; a ladder's groups have their own."""
    k = document["importance_samples"]
    return {
        name: f"{HEADINGS[name].format(k=k)} ({score['anomalous']})"
        for name, score in document["scores"].items()
        if not name.startswith("kl/")
    }


def _tables(document: Document) -> list[Lines]:
    """All tables: the sets, each figure of detection by score, and by the KL of each group."""
    columns = _columns(document)
    groups = {name: name[3:] for name in document["scores"] if name.startswith("kl/")}
    tables: list[Lines] = [
        (f"{document['model']}: {document['dataset']}, {document['split']}", _sets(document))
    ]
    tables += [(title, _figures(document, name, columns)) for name, title in FIGURES.items()]
    if groups:
        title = "By the KL of each group alone: AUROC (high is anomalous)"
        tables.append((title, _figures(document, "auroc", groups)))
    return tables


def _sets(document: Document) -> list[list[str]]:
    """How many images a set has, how likely they are, and how many of them are flagged."""
    alpha, own = document["alpha"], document["own"]
    shares = [f"p <= {alpha}", f"two-sided <= {alpha}"] if own["flagged"] else []
    rows = [["set", "images", document["unit"], *shares]]
    for entry in (own, *document["sets"]):
        flagged = [f"{100 * share:.1f}%" for share in entry["flagged"].values()]
        rows.append([entry["name"], f"{entry['images']:,}", _shown(entry, document), *flagged])
    return rows


def _shown(entry: Mapping[str, Any], document: Document) -> str:
    digits = 3 if document["unit"] == "bits/dim" else 1
    mean, error = (entry["shown"][name] for name in ("mean", "standard_error"))
    if mean is None:
        return "not finite"
    return f"{mean:.{digits}f}" if error is None else f"{mean:.{digits}f} ± {error:.{digits}f}"


def _figures(document: Document, figure: str, columns: Mapping[str, str]) -> list[list[str]]:
    """A figure of detection of each set, by the scores in `columns`."""
    return [["set", *columns.values()]] + [
        [entry["name"], *(_cell(entry[figure][name]) for name in columns)]
        for entry in document["sets"]
    ]


def _cell(figure: Mapping[str, Any]) -> str:
    if figure["interval"] is None:
        return f"{figure['value']:.3f}"
    low, high = figure["interval"]
    return f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"


def anomaly_tables(document: Document) -> list[Table]:
    """The tables for a terminal, errors under their figures; what they say under the last."""
    tables = []
    for title, (header, *rows) in _tables(document):
        headings = (name.replace(" (", "\n(") for name in header)
        table = Table(*headings, title=title, caption_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            broken = (cell.replace(" ± ", "\n± ").replace(" [", "\n[") for cell in row)
            table.add_row(*(escape(cell) for cell in broken))
        tables.append(table)
    tables[-1].caption = f"{failures(document)} {_sides(document)}"
    return tables


def _sides(document: Document) -> str:
    """Which side of each score is taken for anomalous, and what the scores are."""
    sentences = [
        f"{heading.split(' (')[0]}: {document['scores'][name]['meaning']}; "
        f"{document['scores'][name]['anomalous']} is anomalous."
        for name, heading in _columns(document).items()
    ]
    if document["own"]["flagged"]:
        sentences.append(
            f"p <= {document['alpha']}: the share that the service calls anomalous by its "
            "(one-sided) p-value, and by a two-sided one."
        )
    return " ".join(sentences)


def failures(document: Document) -> str:
    """The known failure in words: which sets are likelier than the model's own images.

    Where the interval lies below 0.5; where it holds 0.5 nothing is told apart.
    """
    likelier, unseen = [], []
    for entry in document["sets"]:
        area = entry["auroc"]["log_likelihood"]
        low, high = area["interval"] or (area["value"], area["value"])
        if high < 0.5:
            likelier.append(f"{entry['name']} ({area['value']:.2f})")
        elif low <= 0.5:
            unseen.append(f"{entry['name']} ({area['value']:.2f})")
    sentences = []
    if likelier:
        sentences.append(
            "The known failure: the model finds these likelier than its own images, so that a low "
            f"likelihood does not give them away (AUROC below 0.5): {', '.join(likelier)}."
        )
    if unseen:
        sentences.append(
            f"The likelihood does not tell from the model's own images: {', '.join(unseen)}."
        )
    return " ".join(sentences) or "Each of these sets is less likely than the model's own images."


def anomaly_markdown(document: Document) -> str:
    """The tables in Markdown, with what must be known beside them."""
    parts = [failures(document), EXPLAINED]
    for title, (header, *rows) in _tables(document):
        parts += [f"{title}:", markdown_table(header, rows)]
    sets = "; ".join(f"{entry['name']}: {entry['description']}" for entry in document["sets"])
    parts += [_sides(document), f"Sets: {sets}."]
    parts += [str(document["protocol"]), f"    {document['command']}"]
    return "\n\n".join(parts) + "\n"


def anomaly_picture(document: Document) -> bytes:
    """Histograms of the log-likelihood, a line for each set before that of the own, as PNG."""
    return rendered(lambda: _histograms(document))


def _histograms(document: Document) -> Figure:
    entries = document["sets"]
    edges = np.array(document["histogram_edges"])
    figure = Figure(figsize=(7.2, 0.9 + 0.75 * max(1, len(entries))), layout="constrained")
    lines = figure.subplots(max(1, len(entries)), 1, sharex=True, squeeze=False)[:, 0]
    own = _shares(document["own"])
    for axes, entry in zip(lines, entries, strict=False):
        axes.stairs(own, edges, fill=True, color="#c8c8c8")
        axes.stairs(_shares(entry), edges, color=PALETTE[1], linewidth=1.3)
        _label(axes, entry)
        _scale(axes, document)
    if not entries:
        lines[0].stairs(own, edges, fill=True, color="#c8c8c8")
    unit = document["unit"]
    better = "lower is likelier" if unit == "bits/dim" else "higher is likelier"
    lines[-1].set_xlabel(f"{unit} at K = {document['importance_samples']} ({better})")
    figure.suptitle(
        f"{document['model']}: {document['dataset']} (grey) and other images (outlined)",
        fontsize=10,
    )
    return figure


def _shares(entry: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    counts = np.array(entry["histogram"], dtype=np.float64)
    shares: np.ndarray[Any, Any] = counts / counts.max()
    return shares


def _label(axes: Axes, entry: Mapping[str, Any]) -> None:
    area = entry["auroc"]["log_likelihood"]["value"]
    text = f"{entry['name']}\nAUROC {area:.3f}"
    axes.text(1.01, 0.5, text, transform=axes.transAxes, va="center", fontsize=8, color=INK)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _scale(axes: Axes, document: Document) -> None:
    """The axis on which the bins are equal; its ticks are round numbers."""
    scale, edges = document["histogram_scale"], document["histogram_edges"]
    axes.set_xlim(edges[0], edges[-1])
    if scale is None:
        return
    centre, width = scale["centre"], scale["width"]

    def forward(x: Any) -> Any:
        return np.arcsinh((np.asarray(x) - centre) / width)

    def backward(place: Any) -> Any:
        return centre + width * np.sinh(place)

    axes.set_xscale("function", functions=(forward, backward))
    places = np.linspace(forward(edges[0]), forward(edges[-1]), 9)[1:-1]
    ticks = sorted({float(f"{x:.2g}") for x in backward(places)})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
