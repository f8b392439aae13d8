"""What a model makes of other images, for people: tables, Markdown for cards, histograms."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from training.evaluate.anomaly import PART
from training.evaluate.report import markdown_table
from training.plots import INK, PALETTE, rendered

__all__ = ["anomaly_markdown", "anomaly_picture", "anomaly_table", "failures"]

Document = Mapping[str, Any]
Rows = list[list[str]]  # a header, then lines of cells

# Columns of the main table: a heading, the figure of detection and the score.
FIGURES = (
    ("verdict AUROC", "auroc", "verdict"),
    ("AUPR", "aupr", "verdict"),
    ("FPR at 95% TPR", "fpr95", "verdict"),
    ("log p alone AUROC", "auroc", "log_likelihood"),
    ("largest box AUROC", "auroc", "largest_box"),
)
WEAK = 0.9  # AUROC: what lies below is named as missed
EXPLAINED = (
    "AUROC: how often an image of the set looks more anomalous than one of the model's own, ties "
    "counting half; 0.5 is chance, below it the score has it backwards. AUPR: average precision "
    "with the set's images as positives. FPR at 95% TPR: the share of the model's own images that "
    "is flagged where 95% of the set's are. In brackets 95% bootstrap intervals over the images of "
    "both sets (without width where they do not overlap). p <= 0.01: the share that is called "
    "anomalous at alpha 0.01; of the model's own images, false alarms."
)


def _verdicts(document: Document) -> Rows:
    """How well each set is told apart, and how much of it is called anomalous."""
    own, sets = document["own"], document["sets"]
    called = [f"p <= {alpha}" for alpha in own["called_anomalous"]]
    rows = [["images", "number", document["unit"], *(f[0] for f in FIGURES), *called]]
    for entry in (own, *sets):
        figures = [
            _cell(entry[figure][score]) if figure in entry else "" for _, figure, score in FIGURES
        ]
        name = "own" if entry is own else entry["name"]
        rows.append(
            [name, f"{entry['images']:,}", _mean(entry, document), *figures, *_called(entry)]
        )
    return rows


def _statistics(document: Document) -> Rows:
    """The AUROC of each statistic alone, by set."""
    sets = document["sets"]
    names = [name for name in document["scores"] if name.startswith(PART)]
    rows = [["statistic", *(entry["name"] for entry in sets)]]
    for name in names:
        areas = (entry["auroc"][name]["value"] for entry in sets)
        rows.append([name.removeprefix(PART), *(f"{area:.3f}" for area in areas)])
    return rows


def _called(entry: Mapping[str, Any]) -> list[str]:
    shares = entry["called_anomalous"].values()
    return ["undecided" if share is None else f"{100 * share:.1f}%" for share in shares]


def _mean(entry: Mapping[str, Any], document: Document) -> str:
    digits = 3 if document["unit"] == "bits/dim" else 1
    mean = entry["shown"]["mean"]
    return "not finite" if mean is None else f"{mean:.{digits}f}"


def _cell(figure: Mapping[str, Any]) -> str:
    if figure["interval"] is None:
        return f"{figure['value']:.3f}"
    low, high = figure["interval"]
    return f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"


def anomaly_table(document: Document) -> Table:
    """The main table for a terminal, without intervals, numbers of images and means."""
    header, *rows = ([name, *figures] for name, _, _, *figures in _verdicts(document))
    title = f"{document['model']}: {document['dataset']}, {document['split']}"
    table = Table(title=title, caption=failures(document), caption_justify="left", box=SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    for heading in header:
        first = not table.columns
        table.add_column(
            heading, justify="left" if first else "right", no_wrap=first, overflow="fold"
        )
    for row in rows:
        table.add_row(*(escape(cell.partition(" [")[0]) for cell in row))
    return table


def failures(document: Document) -> str:
    """In words, what the verdict misses, and what the plain likelihood has backwards."""
    missed = [
        f"{entry['name']} ({area:.2f})"
        for entry in document["sets"]
        if (area := entry["auroc"]["verdict"]["value"]) < WEAK
    ]
    likelier = [
        f"{entry['name']} ({area['value']:.2f})"
        for entry in document["sets"]
        if (area := entry["auroc"]["log_likelihood"])
        and (area["interval"] or [area["value"]])[-1] < 0.5
    ]
    sentences = [f"The verdict misses some of (AUROC below {WEAK}): {', '.join(missed)}."]
    if not missed:
        sentences = [f"The verdict tells each of these sets from its own (AUROC at least {WEAK})."]
    if likelier:
        sentences.append(
            "The known failure of a plain likelihood: the model finds these likelier than its own "
            f"images (AUROC below 0.5): {', '.join(likelier)}."
        )
    return " ".join(sentences)


def anomaly_markdown(document: Document) -> str:
    """The tables in Markdown, with what must be known beside them."""
    header, *rows = _verdicts(document)
    columns, *statistics = _statistics(document)
    described = (document["own"], *document["sets"])
    sets = "; ".join(f"{entry['name']}: {entry['description']}" for entry in described)
    parts = [
        failures(document),
        markdown_table(header, rows),
        EXPLAINED,
        "AUROC of each statistic's own two-sided p-value:",
        markdown_table(columns, statistics),
        f"Sets: {sets}.",
        _protocol(document),
        f"    {document['command']}",
    ]
    return "\n\n".join(parts) + "\n"


def _protocol(document: Document) -> str:
    k, split, most = document["importance_samples"], document["split"], document["images"]
    return (
        f"Measured through the bundle's graphs as they are served, {document['model']}: K = {k}, "
        f"seed {document['seed']}; at most {most:,} images of a set (256 constants), made ones "
        f"from images of the {split} split that are not among its own where there are enough; "
        f"p-values rank among {document['calibration_images']:,} calibration images. "
        f"{document['machine']}, {document['date'][:10]}."
    )


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
