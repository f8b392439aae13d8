"""What was measured, as tables and as targets that were met or missed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

OURS, MAIN = "this service", "npy"
Figures = dict[str, float]


@dataclass(frozen=True)
class Entry:
    """One measurement of one system; bare: the bare graph's at the same time, by load."""

    system: str
    protocol: str
    load: str
    round: int
    figures: Figures
    bare: dict[str, Figures] = field(default_factory=dict)

    def best_bare(self) -> Figures:
        """The bare graph's best: of 64 images and of the batch that suits a CPU."""
        return max(self.bare["64x4"], self.bare["best"], key=lambda f: f["images_per_second"])


@dataclass
class Results:
    """All measurements of a run, and why some could not be made."""

    entries: list[Entry] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, document: Any) -> Results:
        """From what `document` gave."""
        entries = [Entry(**entry) for entry in document["entries"]]
        return cls(entries, dict(document["failures"]))

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {"entries": [asdict(entry) for entry in self.entries], "failures": self.failures}

    def of_load(self, load: str, system: str = OURS, protocol: str | None = MAIN) -> list[Entry]:
        """The measurements of a system under a load; protocol None: any."""
        return [
            e
            for e in self.entries
            if (e.system, e.load) == (system, load) and protocol in (None, e.protocol)
        ]

    def median(self, load: str, figure: str, system: str = OURS) -> float | None:
        """Over the rounds, of a system's first protocol."""
        protocol = MAIN if system == OURS else None
        found = [e.figures.get(figure) for e in self.of_load(load, system, protocol)]
        return middle(found)


def ratio(value: float | None, by: float | None) -> float | None:
    """`value / by`, None where either is unknown or `by` is nothing."""
    return value / by if value is not None and by else None


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what is known, None where nothing is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def capacity(results: Results, system: str) -> float | None:
    """Images/s of one-image requests from many clients."""
    return results.median("1x32", "images_per_second", system)


def best_peer(results: Results) -> str | None:
    """The peer with the highest capacity; None without peers."""
    peers = {e.system for e in results.entries if e.system != OURS}
    known = {peer: c for peer in peers if (c := capacity(results, peer)) is not None}
    return max(known, key=known.__getitem__) if known else None


@dataclass(frozen=True)
class Target:
    """A figure and its bound; value None: not measured."""

    name: str
    value: float | None
    bound: float
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it is; None where nobody knows."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "met", False: "MISSED", None: "not measured"}[self.met]

    def line(self) -> str:
        """For people."""
        shown = "-" if self.value is None else f"{self.value:.3g}"
        wanted = f"{'at least' if self.at_least else 'at most'} {self.bound:g}"
        return f"{self.name:76}{shown:>8}   {wanted:14} {self.verdict}"


def targets(results: Results) -> list[Target]:
    """What was promised."""
    return [
        *_against_the_graph(results),
        *_against_peers(results),
        *_under_stress(results),
    ]


def _against_the_graph(results: Results) -> list[Target]:
    def to_bare(load: str, figure: str, bare: Callable[[Entry], Figures]) -> float | None:
        entries = [e for e in results.of_load(load) if e.bare]
        return middle(ratio(e.figures.get(figure), bare(e)[figure]) for e in entries)

    rate, best = "images_per_second", Entry.best_bare
    single = lambda e: e.bare["1x1"]  # noqa: E731
    return [
        Target(
            "64-image requests: throughput / bare graph", to_bare("64x4", rate, best), 0.9, True
        ),
        Target(
            "64-image requests: CPU an image / bare graph", to_bare("64x4", "cpu_us", best), 1.1
        ),
        Target(
            "one-image requests, 32 clients: throughput / bare",
            to_bare("1x32", rate, best),
            0.45,
            True,
        ),
        Target(
            "one-image requests, 32 clients: CPU an image / bare",
            to_bare("1x32", "cpu_us", best),
            1.5,
        ),
        Target("one client, one image: p50 / bare graph", to_bare("1x1", "p50_ms", single), 1.8),
    ]


def _against_peers(results: Results) -> list[Target]:
    peer = best_peer(results)
    rate = ratio(capacity(results, OURS), capacity(results, peer) if peer else None)
    p99 = "p99_ms"
    wait = ratio(
        results.median("poisson 80%", p99),
        results.median("poisson 80%", p99, peer) if peer else None,
    )
    return [
        Target(f"one-image requests, 32 clients: throughput / best peer ({peer})", rate, 1.3, True),
        Target(f"p99 at 80% of the best peer's capacity / its p99 ({peer})", wait, 0.7),
    ]


def _under_stress(results: Results) -> list[Target]:
    of = results.median
    found = [
        Target(
            "small requests beside a huge one: p99 / alone",
            ratio(of("beside", "beside_p99_ms"), of("beside", "alone_p99_ms")),
            2.0,
        ),
        Target("80% load for a minute: requests that failed", of("steady", "failed"), 0),
    ]
    for size in (64, 1):
        load, what = f"overload {size}", f"300% load, {size}-image requests"
        goodput = ratio(of(load, "goodput"), of(load, "capacity"))
        found += [
            Target(f"{what}: goodput / capacity", goodput, 0.9, True),
            Target(f"{what}: p99 of refusals, ms", of(load, "refused_p99_ms"), 50),
        ]
    growth = ratio(of("memory", "last_mib"), of("memory", "first_mib"))
    found.append(Target("memory after 100,000 requests / after the first tenth", growth, 1.05))
    return found
