"""The rows of the paper's tables, each with the run that reproduces it and the paper's figures.

What the paper's text gives illegibly is None here, never guessed.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from model.config import (
    ConfigError,
    ConvIafPosterior,
    DiagonalPosterior,
    Direction,
    MapPosterior,
    require,
)
from model.priors import CouplingPrior
from training.config import RunConfig, overridden, run_preset

__all__ = [
    "FREE_BITS",
    "SIZES",
    "Experiment",
    "Published",
    "Row",
    "figure7",
    "priors",
    "selected",
    "table1",
    "table3",
    "table4",
]

SIZES: tuple[str, ...] = ("small", "mixture", "medium", "paper")
FREE_BITS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # the paper's lambda (C.8)
FIGURE7_DEPTH = {"small": 8, "mixture": 8, "medium": 12, "paper": 24}

Overrides = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Published:
    """A figure of the paper, with its standard deviation over runs where it gives one."""

    value: float
    deviation: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: its key (also its run's directory), its cells, its run, what the paper reports.

    `paper` holds figures by measure: "elbo", "importance_weighted".
    """

    key: str
    cells: tuple[str, ...]
    config: RunConfig
    paper: Mapping[str, Published] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One of the paper's tables or figures as rows under `columns`.

    `unit` is "nats" (higher is better) or "bits/dim" (lower is better); `measures` are the columns
    of figures with their headings; the rows' cells under `across` become columns of an overview.
    `dataset` is the paper's.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    unit: Literal["nats", "bits/dim"]
    measures: Mapping[str, str]
    dataset: str
    across: str | None = None
    notes: tuple[str, ...] = ()


def selected(experiment: Experiment, patterns: Sequence[str]) -> tuple[Row, ...]:
    """The rows whose keys match one of `patterns` ("4-*"); all where there are none.

    Raises `ConfigError` listing the keys where a pattern matches nothing.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(row.key, pattern) for row in experiment.rows):
            raise ConfigError(
                f"--rows {pattern} matches no row of {experiment.name}; there are "
                f"{', '.join(row.key for row in experiment.rows)}"
            )
    return tuple(
        row
        for row in experiment.rows
        if not patterns or any(fnmatch.fnmatchcase(row.key, pattern) for pattern in patterns)
    )


# Table 1: posterior -> preset, VLB, log p(x) by 128 importance samples (mean, deviation).
_TABLE1 = {
    "diagonal": ("Diagonal Gaussian", "mnist-diagonal", (-84.08, 0.10), (-81.08, 0.08)),
    "iaf-2x320": ("IAF, depth 2, width 320", "mnist-iaf-2x320", (-82.02, 0.08), (-79.77, 0.06)),
    "iaf-2x1920": ("IAF, depth 2, width 1920", "mnist-iaf-2x1920", (-81.17, 0.08), (-79.30, 0.08)),
    "iaf-4x1920": ("IAF, depth 4, width 1920", "mnist-iaf-4x1920", (-80.93, 0.09), (-79.17, 0.08)),
    "iaf-8x1920": ("IAF, depth 8, width 1920", "mnist-iaf-8x1920", (-80.80, 0.07), (-79.10, 0.07)),
}
_TABLE1_NOTE = (
    "The paper's figures are means over 5 runs, ± their standard deviation; log p(x) by 128 "
    "importance samples."
)


def table1(overrides: Overrides | None = None) -> Experiment:
    """MNIST, dynamically binarised: posteriors of growing expressiveness."""
    rows = [
        Row(
            key=key,
            cells=(label,),
            config=overridden(run_preset(preset), overrides or {}),
            paper={"elbo": Published(*vlb), "importance_weighted": Published(*log_px)},
        )
        for key, (label, preset, vlb, log_px) in _TABLE1.items()
    ]
    return Experiment(
        name="table1",
        title="Table 1: MNIST, dynamically binarised",
        columns=("Posterior",),
        rows=tuple(rows),
        unit="nats",
        measures={"elbo": "VLB", "importance_weighted": "log p(x) ≥"},
        dataset="mnist",
        notes=(_TABLE1_NOTE,),
    )


def priors(overrides: Overrides | None = None) -> Experiment:
    """MNIST: a flow as the posterior, as the prior, as both. The paper has the first alone."""
    paper = table1(overrides)
    rows = []
    for row in selected(paper, ("diagonal", "iaf-2x320")):
        coupling = Row(
            key=f"{row.key}-coupling",
            cells=(*row.cells, "coupling flow"),
            config=overridden(row.config, {"model": {"prior": CouplingPrior()}}),
        )
        # With a normal prior it is table 1's row: in one directory they share its run.
        rows += [replace(row, cells=(*row.cells, "normal")), coupling]
    return replace(
        paper,
        name="priors",
        title="MNIST, dynamically binarised: a flow as the posterior, the prior, or both",
        columns=("Posterior", "Prior"),
        rows=tuple(rows),
        across="Prior",
    )


def _ladder(
    size: str,
    depth: int,
    overrides: Overrides | None,
    *,
    inference: Direction = "bidirectional",
    posterior: MapPosterior | None = None,
) -> RunConfig:
    """The CIFAR-10 preset of `size` with all its stochastic layers at one resolution."""
    require(size in SIZES, f"--size is one of {', '.join(SIZES)}, not {size!r}")
    ladder = {"levels": (depth,), "inference": inference, "posterior": posterior}
    config = overridden(run_preset(f"cifar10-{size}"), {"model": ladder})
    return overridden(config, overrides or {})


_DIRECTIONS: dict[Direction, str] = {"bottom_up": "Bottom-up", "bidirectional": "Bidirectional"}

# Table 3: direction, hidden layers -> depth -> location-only, location and scale.
_TABLE3: dict[tuple[Direction, int], dict[int, tuple[float, float]]] = {
    ("bottom_up", 0): {4: (3.67, 3.68), 8: (3.54, 3.55)},
    ("bottom_up", 1): {4: (3.61, 3.61), 8: (3.48, 3.49)},
    ("bidirectional", 0): {4: (3.66, 3.67), 8: (3.51, 3.52)},
    ("bidirectional", 1): {4: (3.58, 3.56), 8: (3.45, 3.42)},
}

# Table 4: direction, posterior -> bits/dim at depth 4, 8, 12.
_TABLE4: dict[tuple[Direction, str], tuple[float | None, float, float]] = {
    ("bottom_up", "diagonal"): (None, 3.55, 3.44),
    ("bottom_up", "iaf0"): (None, 3.55, 3.41),
    ("bottom_up", "iaf1"): (3.61, 3.49, 3.38),
    ("bidirectional", "diagonal"): (3.74, 3.60, 3.46),
    ("bidirectional", "iaf0"): (3.67, 3.52, 3.40),
    ("bidirectional", "iaf1"): (3.56, 3.42, 3.28),
    ("bidirectional", "iaf2"): (3.54, 3.39, 3.27),
    ("bidirectional", "iaf1x2"): (3.53, 3.36, 3.26),
}

_TABLE4_NOTE = (
    "Two of the paper's entries (bottom-up at depth 4: factorised and linear) could not be read; "
    "its Table 3 gives 3.68 for the latter."
)

_POSTERIORS: dict[str, tuple[str, MapPosterior]] = {
    "diagonal": ("Factorised Gaussians", DiagonalPosterior()),
    "iaf0": ("IAF, linear, 1 step", ConvIafPosterior(hidden_layers=0)),
    "iaf1": ("IAF, 1 hidden layer, 1 step", ConvIafPosterior(hidden_layers=1)),
    "iaf2": ("IAF, 2 hidden layers, 1 step", ConvIafPosterior(hidden_layers=2)),
    "iaf1x2": ("IAF, 1 hidden layer, 2 steps", ConvIafPosterior(hidden_layers=1, steps=2)),
}


def _slug(direction: Direction) -> str:
    return direction.replace("_", "-")


def _bits(value: float | None) -> dict[str, Published]:
    return {} if value is None else {"elbo": Published(value)}


def table3(size: str = "small", overrides: Overrides | None = None) -> Experiment:
    """CIFAR-10: IAF that only shifts its latents against IAF that scales them too."""
    rows = []
    for depth in (4, 8):
        for (direction, hidden), figures in _TABLE3.items():
            label, posterior = _POSTERIORS[f"iaf{hidden}"]
            location = ConvIafPosterior(hidden_layers=hidden, update="location")
            key = f"{depth}-{_slug(direction)}-iaf{hidden}"
            # Location and scale is table 4's row: in one directory they share its run.
            for update, name, chosen, value in zip(
                ("location only", "location + scale"),
                (f"{key}-location", key),
                (location, posterior),
                figures[depth],
                strict=True,
            ):
                config = _ladder(size, depth, overrides, inference=direction, posterior=chosen)
                cells = (str(depth), _DIRECTIONS[direction], label, update)
                rows.append(Row(key=name, cells=cells, config=config, paper=_bits(value)))
    return Experiment(
        name="table3",
        title="Table 3: CIFAR-10, location-only against location and scale",
        columns=("Depth", "Inference", "Posterior", "Update"),
        rows=tuple(rows),
        unit="bits/dim",
        measures={"elbo": "bits/dim"},
        dataset="cifar10",
        across="Update",
    )


def table4(size: str = "small", overrides: Overrides | None = None) -> Experiment:
    """CIFAR-10: depth, direction of inference and posterior."""
    rows = []
    for column, depth in enumerate((4, 8, 12)):
        for (direction, name), figures in _TABLE4.items():
            label, posterior = _POSTERIORS[name]
            config = _ladder(size, depth, overrides, inference=direction, posterior=posterior)
            row = Row(
                key=f"{depth}-{_slug(direction)}-{name}",
                cells=(_DIRECTIONS[direction], label, str(depth)),
                config=config,
                paper=_bits(figures[column]),
            )
            rows.append(row)
    return Experiment(
        name="table4",
        title="Table 4: CIFAR-10, posterior, direction of inference and depth",
        columns=("Inference", "Posterior", "Depth"),
        rows=tuple(rows),
        unit="bits/dim",
        measures={"elbo": "bits/dim"},
        dataset="cifar10",
        across="Depth",
        notes=(_TABLE4_NOTE,),
    )


def figure7(
    size: str = "small",
    overrides: Overrides | None = None,
    *,
    depth: int | None = None,
    free_bits: Iterable[float] = FREE_BITS,
) -> Experiment:
    """CIFAR-10: what each stochastic layer encodes under several free-bits minima."""
    base = _ladder(size, FIGURE7_DEPTH.get(size, 1) if depth is None else depth, overrides)
    minima = sorted(set(free_bits))
    require(len(minima) > 0, "--free-bits needs at least one minimum, in nats")
    rows = [
        Row(
            key=f"lambda-{minimum:g}",
            cells=(f"{minimum:g}",),
            config=overridden(base, {"train": {"free_bits_nats": minimum}}),
        )
        for minimum in minima
    ]
    return Experiment(
        name="figure7",
        title="Figure 7: CIFAR-10, nats of each stochastic layer under free bits",
        columns=("λ, nats",),
        rows=tuple(rows),
        unit="bits/dim",
        measures={},
        dataset="cifar10",
    )
