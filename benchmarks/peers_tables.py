"""Markdown tables of the measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.load_results import Kind
from benchmarks.peers_measure import LOADS, failed
from benchmarks.peers_report import OURS, Entry, Figures, Results, middle, ratio

FAILURES = tuple(kind.value for kind in Kind if kind is not Kind.OK)


def tables(results: Results) -> str:
    """Everything, one table a load."""
    parts = [_closed(results, load) for load in LOADS]
    parts += [_open(results), _stress(results)]
    if results.failures:
        parts.append("\n".join(f"- {name}: {why}" for name, why in results.failures.items()))
    return "\n\n".join(part for part in parts if part)


def _closed(results: Results, load: str) -> str:
    rows = [
        [
            _name(group[0]),
            _middle(group, lambda e: e.figures["images_per_second"], "{:,.0f}"),
            _middle(group, lambda e: _to_bare(e, "images_per_second"), "{:.2f}"),
            _middle(group, lambda e: e.figures.get("cpu_us"), "{:,.0f}"),
            _middle(group, lambda e: _to_bare(e, "cpu_us"), "{:.2f}"),
            _middle(group, lambda e: e.figures.get("p50_ms"), "{:.2f}"),
            _middle(group, lambda e: e.figures.get("p99_ms"), "{:.2f}"),
            _middle(group, lambda e: failed(e.figures), "{:.0f}"),
            _middle(group, lambda e: e.figures.get("client_us"), "{:.0f}"),
            _middle(group, lambda e: e.figures.get("memory_mib"), "{:,.0f}"),
        ]
        for group in _groups(results, load)
    ]
    if not rows:
        return ""
    bare = [e for group in _groups(results, load) for e in group if e.bare]
    reference = (lambda e: e.bare["1x1"]) if load == "1x1" else Entry.best_bare
    graph = [
        "bare graph" if load == "1x1" else "bare graph, best",
        _middle(bare, lambda e: reference(e)["images_per_second"], "{:,.0f}"),
        "1",
        _middle(bare, lambda e: reference(e)["cpu_us"], "{:,.0f}"),
        "1",
        _middle(bare, lambda e: reference(e)["p50_ms"], "{:.2f}"),
        _middle(bare, lambda e: reference(e)["p99_ms"], "{:.2f}"),
        *("" for _ in range(3)),
    ]
    head = ["images/s", "/ bare", "CPU us/image", "/ bare", "p50 ms", "p99 ms", "failed"]
    head = [LOADS[load], *head, "client us/request", "MiB"]
    return markdown(head, [graph, *rows])


def _open(results: Results) -> str:
    loads = sorted({e.load for e in results.entries if e.load.startswith("poisson")})
    rows = [
        [
            f"{load.removeprefix('poisson ')}: {_name(group[0])}",
            _middle(group, lambda e: e.figures["offered"], "{:,.0f}"),
            _middle(group, lambda e: e.figures["goodput"], "{:,.0f}"),
            _middle(group, lambda e: e.figures.get("p50_ms"), "{:,.2f}"),
            _middle(group, lambda e: e.figures.get("p99_ms"), "{:,.2f}"),
            _middle(group, lambda e: e.figures.get("cpu_us"), "{:,.0f}"),
            _middle(group, lambda e: failed(e.figures), "{:,.0f}"),
            _middle(group, lambda e: e.figures.get("sent_late_p99_ms"), "{:.1f}"),
        ]
        for load in loads
        for group in _groups(results, load)
    ]
    head = ["Poisson arrivals, one image each", "requests/s", "goodput", "p50 ms", "p99 ms"]
    head += ["CPU us/image", "failed", "sent late p99 ms"]
    return markdown(head, rows) if rows else ""


def _stress(results: Results) -> str:
    rows = []
    for load in ("beside", "steady", "overload 64", "overload 1", "memory", "start"):
        for entry in results.of_load(load):
            known = {k: v for k, v in entry.figures.items() if v or k in FAILURES}
            shown = ", ".join(f"{name} {value:,.4g}" for name, value in known.items())
            rows.append([f"{load}, round {entry.round}", shown])
    return markdown([OURS, "figures"], rows) if rows else ""


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    rules = [f"{'-' * (widths[0] + 2)}", *("-" * (width + 1) + ":" for width in widths[1:])]
    return "\n".join([line(head), f"|{'|'.join(rules)}|", *map(line, rows)])


def _groups(results: Results, load: str) -> list[list[Entry]]:
    """The measurements of a load, by system and protocol, in the order they were first made."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in results.entries:
        if entry.load == load:
            groups.setdefault((entry.system, entry.protocol), []).append(entry)
    return list(groups.values())


def _name(entry: Entry) -> str:
    return f"{entry.system}, {entry.protocol}"


def _to_bare(entry: Entry, figure: str) -> float | None:
    if not entry.bare:
        return None
    reference: Figures = entry.bare["1x1"] if entry.load == "1x1" else entry.best_bare()
    return ratio(entry.figures.get(figure), reference[figure])


def _middle(group: Sequence[Entry], value: Callable[[Entry], float | None], form: str) -> str:
    found = middle(value(entry) for entry in group)
    return "" if found is None else form.format(found)
