"""The table and the plot of `flows.py`, from the rows of its results."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import table

Row = dict[str, Any]
Value = Callable[[Row], float]

# Families whose best member is compared with the best IAF.
FAMILIES = {"planar": ("planar",), "coupling": ("coupling",), "flat IAF": ("IAF",)}
IAF = ("IAF", "conv IAF")


def _unique(rows: list[Row], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def common_step(rows: list[Row], target: str, dim: int) -> int:
    """The most steps after which every posterior that ran was measured."""
    done = [
        {point["step"] for point in row["points"]}
        for row in rows
        if row["run"] and (row["target"], row["dim"]) == (target, dim)
    ]
    shared = set.intersection(*done) if done else set()
    return max(shared, default=0)


def after_seconds(row: Row) -> float:
    """Nats a latent at the end of a fit, nan where it was not run."""
    return row["points"][-1]["gap_nats"] / row["dim"] if row["run"] else math.nan


def after_steps(rows: list[Row]) -> Value:
    """Nats a latent after the steps that all posteriors of a target and dimension have taken."""

    def value(row: Row) -> float:
        if not row["run"]:
            return math.nan
        step = common_step(rows, row["target"], row["dim"])
        gaps = {point["step"]: point["gap_nats"] / row["dim"] for point in row["points"]}
        return float(gaps.get(step, math.nan))

    return value


def _cell(row: Row | None, value: Value, form: str) -> str:
    if row is None:
        return ""
    return format(value(row), form) if row["run"] else f"{row['parameters'] / 1e6:.0f}M weights"


def _grid(rows: list[Row], value: Value, form: str) -> str:
    """Posteriors down, dimensions across."""
    dims = _unique(rows, "dim")
    found = {(row["posterior"], row["dim"]): row for row in rows}
    lines = [
        [name, *(_cell(found.get((name, dim)), value, form) for dim in dims)]
        for name in _unique(rows, "posterior")
    ]
    return table(["", *map(str, dims)], lines)


def _best(rows: list[Row], dim: int, starts: tuple[str, ...], value: Value) -> float:
    found = [
        value(row) for row in rows if row["dim"] == dim and row["posterior"].startswith(starts)
    ]
    return min((v for v in found if math.isfinite(v)), default=math.nan)


def _behind(rows: list[Row], value: Value) -> str:
    """How many times the best IAF's gap the best of each other family has."""
    dims = _unique(rows, "dim")
    lines = [
        [
            f"best {name}",
            *(f"{_best(rows, d, starts, value) / _best(rows, d, IAF, value):.2f}" for d in dims),
        ]
        for name, starts in FAMILIES.items()
    ]
    return table(["times the best IAF's gap", *map(str, dims)], lines)


def markdown(rows: list[Row]) -> str:
    """Cost, then for every target both comparisons."""
    first = [row for row in rows if row["target"] == rows[0]["target"]]
    parts = [
        "Milliseconds of a forward and backward pass, by the number of latents:",
        _grid(first, lambda row: row["cost_ms"], ".2f"),
        "Weights, in thousands:",
        _grid([{**row, "run": True} for row in first], lambda r: r["parameters"] / 1e3, ",.0f"),
    ]
    for target in _unique(rows, "target"):
        own = [row for row in rows if row["target"] == target]
        seconds = {row["dim"]: f"{row['seconds']:.0f} s" for row in own}
        steps = {dim: str(common_step(own, target, dim)) for dim in seconds}
        for what, limits, value in (
            ("equal seconds", seconds, after_seconds),
            ("equal steps", steps, after_steps(own)),
        ):
            limited = ", ".join(f"{dim}: {limit}" for dim, limit in limits.items())
            parts += [
                f"KL(q || p) in nats a latent, target `{target}`, after {what} ({limited}):",
                _grid(own, value, ".4f"),
                _behind(own, value),
            ]
    return "\n\n".join(parts)


def plot(rows: list[Row], path: Path) -> None:
    """Cost and weights on the left; a column for each target, equal seconds above equal steps."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    targets = _unique(rows, "target")
    first = [row for row in rows if row["target"] == targets[0]]
    figure, axes = plt.subplots(
        2, 1 + len(targets), figsize=(5 * (1 + len(targets)), 8), squeeze=False
    )
    _lines(axes[0, 0], first, lambda row: row["cost_ms"], "ms, forward and backward")
    _lines(axes[1, 0], first, lambda row: max(1, row["parameters"]), "weights of the flow")
    for column, target in enumerate(targets, 1):
        own = [row for row in rows if row["target"] == target]
        _lines(axes[0, column], own, after_seconds, f"{target}: nats a latent, equal seconds")
        _lines(axes[1, column], own, after_steps(own), f"{target}: nats a latent, equal steps")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(path)
    plt.close(figure)


def _lines(axes: Any, rows: list[Row], value: Value, title: str) -> None:
    for number, name in enumerate(_unique(rows, "posterior")):
        own = [row for row in rows if row["posterior"] == name and row["run"]]
        style = {"planar": ":", "coupling": "--"}.get(name.split(",")[0], "-")
        # Gaps near zero are noise around it: a floor keeps them on a logarithmic axis.
        values = [max(value(row), 1e-4) for row in own]
        axes.plot([row["dim"] for row in own], values, style, marker="o", color=f"C{number}")
        axes.lines[-1].set_label(name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("latents")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
