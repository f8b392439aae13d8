"""Figure 1 as a picture: the prior, then the four posteriors under a diagonal Gaussian and IAF."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Circle
from numpy.typing import NDArray

__all__ = ["toy_figure"]

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc4778")
GREY = "#9a9a9a"
EXTENT = 3.75  # of the latents shown
ICON_RADIUS = 3.4
NAMES = {"diagonal": "diagonal Gaussian posteriors", "iaf": "IAF posteriors"}


def toy_figure(document: Mapping[str, Any]) -> Figure | None:
    """Three panels; None until both posteriors are fitted from one seed."""
    shown = document["shown"]
    if not shown:
        return None
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


def _frame(axes: Axes) -> None:
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
    _frame(axes)
    _scatter(axes, z, GREY)
    axes.set_title("(a) prior")
    axes.set_xlabel("circles: 1, 2 and 3 standard deviations\n", fontsize=8.5)


def _posteriors(axes: Axes, samples: Sequence[Sequence[Sequence[float]]]) -> None:
    """Every point's samples in its colour, mixed, so that none covers another; its icon outside."""
    points = np.asarray(samples)  # [4, n, 2]
    _frame(axes)
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
