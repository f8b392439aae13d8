"""What each posterior costs and how tight it becomes, as the latent grows from 32 to 4096.

    python -m benchmarks.flows --out DIR [--budget-minutes 30] [--dims 32 128 ...]

Every posterior is fitted by stochastic optimisation to densities whose normaliser is known
(benchmarks/flow_fits.py): the posterior of a linear VAE with a local decoder, and the same bent
out of Gaussian shape. So E_q[log q - log p] = KL(q || p) is absolute: nats that a VAE's bound would
lose; 0 is perfect. All have the same batch, optimiser, learning rate and seed.

A fit takes the same processor seconds whatever the posterior, more at larger dimensions, so that
all fits together take about --budget-minutes. The cost is the time of a forward and a backward pass
of the flow, its conditions computed for every row, as in training.

DIR gets results.json (rewritten after every fit: interrupted, the same command goes on where it
stopped), flows.md and flows.png. A posterior of more than --most-parameters weights is not run,
and the table says so: such are the full-covariance Gaussian and long planar flows of many latents,
whose encoder would have to give D (D - 1) / 2 and 2 D K numbers.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.flow_fits import (
    ROWS,
    TARGETS,
    Posterior,
    Target,
    candidates,
    cost_ms,
    fit,
    lattice,
    parameters_of,
)
from benchmarks.harness import parser_of, read_json, table, write_json
from benchmarks.timing import machine, machine_line
from model.config import PosteriorConfig
from training.files import write_text

DIMS = [32, 128, 512, 1024, 4096]
RESULTS = "results.json"
# Families whose best member is compared with the best IAF.
FAMILIES = {"planar": ("planar",), "coupling": ("coupling",), "flat IAF": ("IAF",)}
IAF = ("IAF", "conv IAF")

Found = dict[str, Any]  # a row of the results
Value = Callable[[Found], float]


@dataclass(frozen=True)
class Row:
    """One fit to be made."""

    target: str
    dim: int
    posterior: str
    config: PosteriorConfig
    parameters: int
    seconds: float

    @property
    def key(self) -> str:
        return f"{self.target}/{self.dim}/{self.posterior}"


def rows_of(options: argparse.Namespace) -> list[Row]:
    """All fits, the smallest latents first; a fit's share of the budget grows as sqrt(D)."""
    chosen = [
        (target, dim, name, config, parameters_of(config, lattice(dim)))
        for dim in options.dims
        for target in options.targets
        for name, config in candidates(options.width).items()
        if options.posteriors is None or name in options.posteriors
    ]
    runs = [c for c in chosen if c[4] <= options.most_parameters]
    unit = 60 * options.budget_minutes / max(1e-9, sum(dim**0.5 for _, dim, *_ in runs))
    return [Row(*c, seconds=round(unit * c[1] ** 0.5, 3)) for c in chosen]


def measure(row: Row, target: Target) -> dict[str, Any]:
    torch.manual_seed(0)
    posterior = Posterior(row.config, target.shape)
    return {"cost_ms": cost_ms(posterior, ROWS), **fit(posterior, target, row.seconds)}


def results(options: argparse.Namespace) -> dict[str, Any]:
    """The document, written after each fit; fits that it already holds are not made again."""
    path = options.out / RESULTS
    here = machine(torch.device("cpu"))
    kept = (read_json(path) or {}).get("rows", {})  # also rows that are not asked for now
    document: dict[str, Any] = {**here, "rows": {}}
    target_of = cache(lambda name, dim: TARGETS[name](dim))
    rows = rows_of(options)
    for n, row in enumerate(rows, 1):
        of = {name: value for name, value in vars(row).items() if name != "config"}
        of |= {"run": row.parameters <= options.most_parameters, "width": options.width}
        of["machine"] = here["machine"]
        found = kept.get(row.key)
        if found is None or any(found.get(k) != v for k, v in of.items()):
            found = dict(of)
            if of["run"]:
                found |= measure(row, target_of(row.target, row.dim))
                gap = f"{gap_a_latent(found):.4f} nats a latent after {found['step']} steps"
                print(f"[{n}/{len(rows)}] {row.key}: {found['cost_ms']:.2f} ms, {gap}", flush=True)
        document["rows"][row.key] = kept[row.key] = found
        write_json(path, {**here, "rows": kept})
    return document


# ------------------------------------------------------------------ the table and the plot


def gap_a_latent(found: Found) -> float:
    """Nats a latent at the end of a fit, nan where it was not run."""
    return found["gap_nats"] / found["dim"] if found["run"] else math.nan


def _unique(rows: list[Found], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def _grid(rows: list[Found], value: Value, form: str) -> str:
    """Posteriors down, dimensions across."""
    dims = _unique(rows, "dim")
    cells: dict[tuple[str, int], str] = {}
    for row in rows:
        told = format(value(row), form) if row["run"] else f"{row['parameters'] / 1e6:.0f}M weights"
        cells[row["posterior"], row["dim"]] = told
    names = _unique(rows, "posterior")
    lines = [[name, *(cells.get((name, dim), "") for dim in dims)] for name in names]
    return table(["", *map(str, dims)], lines)


def _behind(rows: list[Found]) -> str:
    """How many times the best IAF's gap the best of each other family has."""

    def best(dim: int, starts: tuple[str, ...]) -> float:
        own = [row for row in rows if row["dim"] == dim and row["posterior"].startswith(starts)]
        return min((v for v in map(gap_a_latent, own) if math.isfinite(v)), default=math.nan)

    dims = _unique(rows, "dim")
    lines = [
        [f"best {name}", *(f"{best(d, starts) / best(d, IAF):.2f}" for d in dims)]
        for name, starts in FAMILIES.items()
    ]
    return table(["times the best IAF's gap", *map(str, dims)], lines)


def markdown(rows: list[Found]) -> str:
    """Cost and weights, then the gaps for every target."""
    first = [row for row in rows if row["target"] == rows[0]["target"]]
    parts = [
        "Milliseconds of a forward and backward pass, by the number of latents:",
        _grid(first, lambda row: row["cost_ms"], ".2f"),
        "Weights, in thousands:",
        _grid([{**row, "run": True} for row in first], lambda r: r["parameters"] / 1e3, ",.0f"),
    ]
    for target in _unique(rows, "target"):
        own = [row for row in rows if row["target"] == target]
        seconds = {row["dim"]: f"{row['dim']}: {row['seconds']:.0f} s" for row in own}
        limits = ", ".join(seconds.values())
        parts += [
            f"KL(q || p) in nats a latent, target `{target}`, after equal seconds ({limits}):",
            _grid(own, gap_a_latent, ".4f"),
            _behind(own),
        ]
    return "\n\n".join(parts)


def plot(rows: list[Found], path: Path) -> None:
    """Cost, weights, and the gap to each target, by the number of latents."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    targets = _unique(rows, "target")
    first = [row for row in rows if row["target"] == targets[0]]
    panels: list[tuple[str, list[Found], Value]] = [
        ("ms, forward and backward", first, lambda row: row["cost_ms"]),
        ("weights of the flow", first, lambda row: max(1, row["parameters"])),
    ]
    for target in targets:
        own = [row for row in rows if row["target"] == target]
        # Gaps near zero are noise around it: a floor keeps them on a logarithmic axis.
        title = f"{target}: nats a latent, equal seconds"
        panels.append((title, own, lambda row: max(gap_a_latent(row), 1e-4)))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 4.5))
    for ax, (title, own, value) in zip(axes, panels, strict=True):
        for name in _unique(own, "posterior"):
            line = [row for row in own if row["posterior"] == name and row["run"]]
            style = {"planar": ":", "coupling": "--"}.get(name.split(",")[0], "-")
            xs, ys = [row["dim"] for row in line], [value(row) for row in line]
            ax.loglog(xs, ys, style, marker="o", label=name)
        ax.set(title=title, xlabel="latents")
        ax.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    names = list(candidates(1))
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--budget-minutes", type=float, default=30.0, help="of all fits together")
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS, help=f"default {DIMS}")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--posteriors", nargs="+", choices=names, metavar="NAME", help=f"{names}")
    parser.add_argument("--width", type=int, default=320, help="of hidden layers (default 320)")
    parser.add_argument("--most-parameters", type=int, default=20_000_000)
    parser.add_argument("--threads", type=int, default=1, help="default 1; 0: torch's choice")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        document = results(options)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(
            f"stopped; the same command goes on from {options.out / RESULTS}"
        ) from None
    rows = list(document["rows"].values())
    text = markdown(rows)
    write_text(options.out / "flows.md", f"{machine_line(document)}\n\n{text}\n")
    plot(rows, options.out / "flows.png")
    print(f"\n{text}\n\n{machine_line(document)}\nwritten to {options.out}")


if __name__ == "__main__":
    main()
