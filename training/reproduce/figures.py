"""The pictures of reproductions, drawn from their documents alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Circle
from numpy.typing import NDArray

from training.plots import PALETTE, rendered
from training.reproduce.report import summary

__all__ = ["picture"]

Document = Mapping[str, Any]

# Of figure 1, the toy.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc4778")
GREY = "#9a9a9a"
EXTENT = 3.75  # of the latents shown
ICON_RADIUS = 3.4
NAMES = {"diagonal": "diagonal Gaussian posteriors", "iaf": "IAF posteriors"}


def picture(document: Document) -> bytes | None:
    """A document's picture as PNG; None where there is nothing to show yet."""
    if document["kind"] == "table":
        return rendered(lambda: _table(document))
    if document["kind"] == "toy":
        return rendered(lambda: _toy(document)) if document["shown"] else None
    # Of each row's first run, if it has two points at least.
    series = [
        (row["cells"][0], run["measured"]["points"], run["steps_per_epoch"])
        for row in document["rows"]
        for run in row["runs"][:1]
        if run["measured"] and len(run["measured"]["points"]) > 1
    ]
    return rendered(lambda: _layers(series)) if series else None


def _table(document: Document) -> Figure:
    """The paper's figures on the left, ours on the right, row by row, each on its own scale."""
    rows, unit = document["rows"], document["unit"]
    figure = Figure(figsize=(9.5, 1.6 + 0.28 * len(rows)), layout="constrained")
    paper, ours = figure.subplots(1, 2, sharey=True)
    for colour, (measure, heading) in zip(PALETTE, document["measures"].items(), strict=False):
        published = [row["paper"].get(measure) for row in rows]
        measured = [summary(row, measure, unit) for row in rows]
        _dots(paper, published, "deviation", colour, heading)
        _dots(ours, measured, "error", colour, heading)
    paper.set_yticks(range(len(rows)), [_label(document, row) for row in rows])
    paper.invert_yaxis()
    paper.set_title("paper")
    ours.set_title("ours")
    for axes in (paper, ours):
        axes.set_xlabel(f"{unit} ({'higher' if unit == 'nats' else 'lower'} is better)")
        axes.grid(visible=True)
    if len(document["measures"]) > 1:
        paper.legend(frameon=False, fontsize=8)
    if not any(run["measured"] for row in rows for run in row["runs"]):
        ours.text(0.5, 0.5, "not run", transform=ours.transAxes, ha="center", color="#888888")
    figure.suptitle(f"{document['title']}\nours: {document['plan']}", fontsize=10)
    return figure


def _label(document: Document, row: Mapping[str, Any]) -> str:
    """A row's cells; a bare number says of what it is one."""
    named = zip(document["columns"], row["cells"], strict=True)
    return " · ".join(f"{name.lower()} {cell}" if cell.isdigit() else cell for name, cell in named)


def _dots(
    axes: Axes, figures: Sequence[Mapping[str, Any] | None], error: str, colour: str, label: str
) -> None:
    """The figures that there are, row by row; `error` names half the error bar."""
    known = {place: figure for place, figure in enumerate(figures) if figure is not None}
    axes.errorbar(
        [figure["value"] for figure in known.values()],
        list(known),
        xerr=[figure[error] or 0.0 for figure in known.values()],
        fmt="o",
        color=colour,
        markersize=5,
        capsize=2,
        linewidth=1,
        label=label,
    )


Series = tuple[str, Sequence[Mapping[str, Any]], int]  # lambda, points, steps an epoch


def _layers(rows: Sequence[Series]) -> Figure:
    """The paper's stack plots: nats of the reconstruction (white), then of each layer upwards."""
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


def _toy(document: Document) -> Figure:
    """The prior, then the four posteriors under a diagonal Gaussian and under IAF."""
    shown = document["shown"]
    figure = Figure(figsize=(9.6, 3.75), layout="constrained")
    prior, *others = figure.subplots(1, 1 + len(document["posteriors"]))
    _prior(prior, sum(len(point) for point in next(iter(shown.values()))["samples"]))
    for letter, axes, name in zip("bc", others, document["posteriors"], strict=True):
        fit = shown[name]
        _posteriors(axes, fit["samples"])
        axes.set_title(f"({letter}) {NAMES[name]}")
        figures = next(
            run["figures"]
            for run in document["runs"]
            if (run["posterior"], run["seed"]) == (name, fit["seed"])
        )
        axes.set_xlabel(
            f"ELBO {_nats(figures['elbo'])}, log p(x) {_nats(figures['log_px'])} nats\n"
            f"KL(q(z) || p(z)) {figures['aggregate_kl']:.3f} nats",
            fontsize=8.5,
        )
    return figure


def _nats(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _latents(axes: Axes) -> None:
    """A square of latents with circles at 1, 2 and 3 standard deviations of the prior."""
    axes.set_aspect("equal")
    axes.set_xlim(-EXTENT, EXTENT)
    axes.set_ylim(-EXTENT, EXTENT)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    for radius in (1, 2, 3):
        axes.add_patch(Circle((0, 0), radius, fill=False, color="#555555", lw=0.7, alpha=0.45))


def _scatter(axes: Axes, z: NDArray[np.float64], colours: Any) -> None:
    axes.scatter(z[:, 0], z[:, 1], s=5, c=colours, alpha=0.6, linewidths=0, zorder=0)


def _prior(axes: Axes, count: int) -> None:
    z = np.random.default_rng(0).standard_normal((count, 2))
    _latents(axes)
    _scatter(axes, z, GREY)
    axes.set_title("(a) prior")
    axes.set_xlabel("circles: 1, 2 and 3 standard deviations\n", fontsize=8.5)


def _posteriors(axes: Axes, samples: Sequence[Sequence[Sequence[float]]]) -> None:
    """Every point's samples in its colour, mixed, so that none covers another; its icon outside."""
    points = np.asarray(samples)  # [4, n, 2]
    _latents(axes)
    z = points.reshape(-1, 2)
    colours = np.repeat([to_rgb(colour) for colour in COLOURS], points.shape[1], axis=0)
    order = np.random.default_rng(0).permutation(len(z))
    _scatter(axes, z[order], colours[order])
    for index, mean in enumerate(points.mean(axis=1)):
        angle = math.atan2(mean[1], mean[0])
        place = (ICON_RADIUS * math.cos(angle), ICON_RADIUS * math.sin(angle))
        axes.add_artist(AnnotationBbox(_icon(index), place, frameon=False))


def _icon(index: int) -> OffsetImage:
    """The data point itself: 2x2 pixels, the lit one in its posterior's colour."""
    image = np.full((4, 3), 0.87)
    image[index] = to_rgb(COLOURS[index])
    edged = np.ones((2 * 9 + 1, 2 * 9 + 1, 3))
    for place, colour in enumerate(image):
        y, x = 9 * (place // 2), 9 * (place % 2)
        edged[y + 1 : y + 9, x + 1 : x + 9] = colour
    return OffsetImage(edged, zoom=0.75, interpolation="nearest")
