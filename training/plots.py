"""The pictures of reproductions, drawn from their documents alone."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from training.reproduce.report import summary
from training.reproduce.toy_picture import toy_figure

__all__ = ["INK", "PALETTE", "picture", "rendered"]

Document = Mapping[str, Any]

# Okabe & Ito's palette: told apart by colour-blind readers too.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
INK = "#222222"
DPI = 150
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 10,
}


def picture(document: Document) -> bytes | None:
    """A document's picture as PNG; None where there is nothing to show yet."""
    return rendered(lambda: _PICTURES[document["kind"]](document))


def rendered(draw: Callable[[], Figure | None]) -> bytes | None:
    """What `draw` draws, in the pictures' common style, as PNG; None where it draws nothing."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = draw()
        if figure is None:
            return None
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=DPI)
    # A palette of 256 colours is all that these pictures need, and a third of the size. What is
    # written anew carries no date and no program's version: the same document, the same bytes.
    image = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    written = io.BytesIO()
    image.save(written, format="png", optimize=True)
    return written.getvalue()


def _figures_picture(document: Document) -> Figure:
    """The paper's figures on the left, ours on the right, row by row, each on its own scale."""
    rows, unit = document["rows"], document["unit"]
    figure = Figure(figsize=(9.5, 1.6 + 0.28 * len(rows)), layout="constrained")
    paper, ours = figure.subplots(1, 2, sharey=True)
    for place, (measure, heading) in enumerate(document["measures"].items()):
        colour = PALETTE[place]
        published = [_published(row, measure) for row in rows]
        measured = [_measured(row, measure, unit) for row in rows]
        _dots(paper, published, colour, heading)
        _dots(ours, measured, colour, heading)
    paper.set_yticks(range(len(rows)), [_label(document, row) for row in rows])
    paper.invert_yaxis()
    paper.set_title("paper")
    ours.set_title("ours")
    for axes in (paper, ours):
        axes.set_xlabel(f"{unit} ({'higher' if unit == 'nats' else 'lower'} is better)")
        axes.grid(axis="both", color="#eeeeee")
        axes.set_axisbelow(True)
    if len(document["measures"]) > 1:
        paper.legend(frameon=False, fontsize=8)
    if not any(_measured(row, name, unit) for row in rows for name in document["measures"]):
        ours.text(0.5, 0.5, "not run", transform=ours.transAxes, ha="center", color="#888888")
    figure.suptitle(f"{document['title']}\nours: {document['plan']}", fontsize=10)
    return figure


def _label(document: Document, row: Mapping[str, Any]) -> str:
    """A row's cells; a bare number says of what it is one."""
    named = zip(document["columns"], row["cells"], strict=True)
    return " · ".join(f"{name.lower()} {cell}" if cell.isdigit() else cell for name, cell in named)


Dot = tuple[float, float] | None  # value, half the error bar


def _published(row: Mapping[str, Any], measure: str) -> Dot:
    figure = row["paper"].get(measure)
    return None if figure is None else (figure["value"], figure["deviation"] or 0.0)


def _measured(row: Mapping[str, Any], measure: str, unit: str) -> Dot:
    found = summary(row, measure, unit)
    return None if found is None else (found["value"], found["error"] or 0.0)


def _dots(axes: Axes, dots: Sequence[Dot], colour: str, label: str) -> None:
    known = [(place, dot) for place, dot in enumerate(dots) if dot is not None]
    axes.errorbar(
        [dot[0] for _, dot in known],
        [place for place, _ in known],
        xerr=[dot[1] for _, dot in known],
        fmt="o",
        color=colour,
        markersize=5,
        capsize=2,
        linewidth=1,
        label=label,
    )


def _layers_picture(document: Document) -> Figure | None:
    """The paper's stack plots: nats of the reconstruction (white), then of each layer upwards."""
    rows = [
        (row["cells"][0], run["measured"]["points"], run["steps_per_epoch"])
        for row in document["rows"]
        for run in row["runs"][:1]
        if run["measured"] and len(run["measured"]["points"]) > 1
    ]
    if not rows:
        return None
    columns = min(4, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(2.9 * columns + 0.6, 2.5 * lines + 0.7), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (minimum, points, per_epoch) in zip(grid.flat, rows, strict=False):
        _stack(axes, points, per_epoch)
        axes.set_title(f"λ = {minimum}")
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("nats an image")
    for axes in grid[-1]:
        axes.set_xlabel("epochs")
    figure.suptitle(
        "white: reconstruction; above it the stochastic layers, the lowest first", fontsize=9
    )
    return figure


def _stack(axes: Axes, points: Sequence[Mapping[str, Any]], per_epoch: int) -> None:
    epochs = [point["step"] / max(1, per_epoch) for point in points]
    layers = list(reversed(points[0]["kl_nats"]))  # the lowest first
    series = [[point["reconstruction_nats"] for point in points]]
    series += [[max(0.0, point["kl_nats"][name]) for point in points] for name in layers]
    colours = mpl.colormaps["viridis"]
    shades = [colours(i / max(1, len(layers) - 1)) for i in range(len(layers))]
    axes.stackplot(epochs, series, colors=["white", *shades], edgecolor="black", linewidth=0.3)
    axes.set_xlim(epochs[0], epochs[-1])
    axes.set_ylim(bottom=0)
    if epochs[-1] / epochs[0] > 10:
        axes.set_xscale("log")


_PICTURES: dict[str, Callable[[Document], Figure | None]] = {
    "table": _figures_picture,
    "layers": _layers_picture,
    "toy": toy_figure,
}
