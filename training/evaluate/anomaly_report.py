"""What a model makes of other images, for people: a table, Markdown for cards, histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from training.plots import INK, PALETTE, rendered

__all__ = ["anomaly_markdown", "anomaly_picture", "anomaly_tables", "failures"]

Document = Mapping[str, Any]

BAR = "\\|"  # within a cell of Markdown
AREAS = (
    "For each score the area under the ROC curve (AUROC) against the model's own images; low or "
    "high is the side that counts as anomalous."
)
HEADINGS = {
    "log_likelihood": "IW-{k}",
    "elbo": "ELBO",
    "reconstruction": "log p(x|z)",
    "kl": "KL",
    "norm": "norm",
    "typicality": "two-sided p",
}


def _columns(document: Document) -> dict[str, str]:
    """The scores of the main table and their headings; a ladder's groups have their own."""
    names = [name for name in document["scores"] if not name.startswith("kl/")]
    k = document["importance_samples"]
    return {
        name: f"{HEADINGS[name].format(k=k)} ({document['scores'][name]['anomalous']})"
        for name in names
    }


def _rows(document: Document) -> list[tuple[str, ...]]:
    rows = []
    for entry in (document["own"], *document["sets"]):
        areas = entry.get("auroc")
        cells = [_area(areas[name]) if areas else "" for name in _columns(document)]
        flagged = entry["flagged"]
        shares = [f"{100 * flagged[name]:.1f}%" for name in flagged]
        seen = _shown(entry, document)
        rows.append((entry["name"], f"{entry['images']:,}", seen, *cells, *shares))
    return rows


def _header(document: Document) -> tuple[str, ...]:
    flagged = [f"p <= {document['alpha']}", f"two-sided <= {document['alpha']}"]
    shares = flagged if document["own"]["flagged"] else []
    return ("set", "images", document["unit"], *_columns(document).values(), *shares)


def _shown(entry: Mapping[str, Any], document: Document) -> str:
    digits = 3 if document["unit"] == "bits/dim" else 1
    mean, error = (entry["shown"][name] for name in ("mean", "standard_error"))
    if mean is None:
        return "not finite"
    return f"{mean:.{digits}f}" if error is None else f"{mean:.{digits}f} ± {error:.{digits}f}"


def _area(area: Mapping[str, Any]) -> str:
    error = area["standard_error"]
    return f"{area['value']:.3f}" if error is None else f"{area['value']:.3f} ± {error:.3f}"


def _groups(document: Document) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A ladder's areas by the KL of each group alone: header and rows; none of one group."""
    names = [name for name in document["scores"] if name.startswith("kl/")]
    header = ("set", *(name.removeprefix("kl/") for name in names))
    rows = [
        (entry["name"], *(_area(entry["auroc"][name]) for name in names))
        for entry in document["sets"]
    ]
    return (header, rows) if names else ((), [])


def anomaly_tables(document: Document) -> list[Table]:
    """The tables for a terminal, narrow enough for one."""
    areas = _columns(document)
    header, rows = _header(document), _rows(document)
    first = [i for i, name in enumerate(header) if i == 0 or name in areas.values()]
    second = [i for i in range(len(header)) if i == 0 or i not in first]
    own = f"{document['dataset']}, {document['split']}"
    tables = [
        _table(f"{document['model']}: {own}", _picked(header, second), rows, second),
        _table("AUROC (anomalous side)", _picked(header, first), rows[1:], first),
    ]
    tables[-1].caption = f"{failures(document)} {_sides(document)}"
    header, rows = _groups(document)
    if header:
        title = "AUROC of the KL of each group (high)"
        tables.append(_table(title, header, rows, range(len(header))))
    return tables


def _picked(row: Sequence[str], places: Sequence[int]) -> list[str]:
    return [row[place] for place in places]


def _table(
    title: str, header: Sequence[str], rows: Sequence[tuple[str, ...]], places: Sequence[int]
) -> Table:
    """A table of the cells at `places` of each row; errors stand under their figures."""
    headings = (name.replace(" (", "\n(") for name in header)
    table = Table(*headings, title=title, caption_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*(cell.replace(" ± ", "\n± ") for cell in _picked(row, places)))
    return table


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

    Beyond two standard errors; nearer to 0.5 nothing is told apart.
    """
    likelier, unseen = [], []
    for entry in document["sets"]:
        area = entry["auroc"]["log_likelihood"]
        margin = 2 * (area["standard_error"] or 0.0)
        if area["value"] + margin < 0.5:
            likelier.append(f"{entry['name']} ({area['value']:.2f})")
        elif area["value"] - margin <= 0.5:
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
    table = _markdown(_header(document), _rows(document))
    parts = [failures(document), AREAS, table, _sides(document)]
    header, rows = _groups(document)
    if header:
        parts += ["By the KL of each group alone (high is anomalous):", _markdown(header, rows)]
    sets = "; ".join(f"{entry['name']}: {entry['description']}" for entry in document["sets"])
    parts += [f"Sets: {sets}.", str(document["protocol"]), f"    {document['command']}"]
    return "\n\n".join(parts) + "\n"


def _markdown(header: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', BAR) for cell in line)} |" for line in lines)


def anomaly_picture(document: Document) -> bytes:
    """Histograms of the log-likelihood, a line for each set before that of the own, as PNG."""
    drawn = rendered(lambda: _figure(document))
    if drawn is None:  # never: there is always the model's own set
        raise ValueError("nothing to draw")
    return drawn


def _figure(document: Document) -> Figure:
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
