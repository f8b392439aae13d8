"""This service and its peers, the same graph, images and loads, in one run.

    python -m benchmarks.peers --envs DIR [--peers NAME ...] [--loads NAME ...] [--json FILE]

Systems: the bare graph (ONNX Runtime in this process), this service (npy, v2 binary, JSON with
PNGs), Triton (nvidia-pytriton), LitServe, BentoML, MLServer, Ray Serve. The peers are installed
below DIR at the first run, each in an environment of its own, with the versions that are pinned in
`benchmarks/peers/`; one that cannot be installed, or whose answers are wrong, is named with the
reason. All of them score images at K = 1; answers are compared with the graph's beforehand.

Loads: `closed` (64 images from 4 clients, one image from 32 and from 1) and `arrivals` (one image
each, at 20, 50 and 80% of the best peer's capacity). One server runs at a time, for idle ones cost
processor time, too; each is started anew for its turn, which begins with the bare graph, so that it
is compared with what the machine could do at that minute. All take turns in each of `--rounds`, and
medians over rounds are printed. With `--add`, what a file holds is kept, so that a run can be made
in slices. What the service alone must stand is in `serving.py`.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import parser_of, read_json, table, write_json
from benchmarks.load import Figures, LoadError, arriving, closed
from benchmarks.score_graph import ScoreGraph, drawn_images, graph_file
from benchmarks.server import Server, ServerError, stop_servers_when_ended
from benchmarks.serving import CLOSED, CROWD, MANY, Bare
from benchmarks.systems import (
    OURS,
    PEERS,
    SHIPPED,
    CannotInstall,
    Protocol,
    System,
    WrongAnswerError,
    service,
)

FRACTIONS = (0.2, 0.5, 0.8)
CROWDED = next(iter(CLOSED))


def short(system: System) -> str:
    """What a system is called on the command line."""
    return system.environment.name if system.environment else "service"


@dataclass(frozen=True)
class Run:
    """Takes measurements and adds them to `document`; save: called after every turn."""

    bundle: Path
    envs: Path
    seconds: float
    document: dict[str, Any]
    save: Callable[[], None]

    def closed(self, system: System, round_: int) -> None:
        """Closed loops in every protocol of `system`, over the bare graph of that minute."""
        images = drawn_images(self.bundle, MANY)
        bare = Bare.measured(ScoreGraph(graph_file(self.bundle, "score")), images, self.seconds)

        def measure(server: Server) -> None:
            for protocol in system.protocols:
                for load, (size, clients) in CLOSED.items():
                    found = closed(server, protocol.request(images[:size]), clients, self.seconds)
                    found |= bare.under(found, clients)
                    found["memory_mib"] = server.memory_mib()
                    self._add(system, protocol, load, round_, found)

        self._turn(system, measure)

    def arrivals(self, system: System, round_: int) -> None:
        """One-image requests at fractions of the best peer's capacity."""
        top = capacity(self.document, best_peer(self.document) or OURS)
        if top is None:
            raise SystemExit("arrivals need a capacity: measure closed loops before, or as well")
        protocol = system.protocols[0]
        request = protocol.request(drawn_images(self.bundle, 1))

        def measure(server: Server) -> None:
            closed(server, request, CROWD, 1.0)  # warm
            for fraction in FRACTIONS:
                found = arriving(server, request, fraction * top, self.seconds)
                self._add(system, protocol, f"arrivals, {fraction:.0%}", round_, found)

        self._turn(system, measure)

    def _turn(self, system: System, measure: Callable[[Server], None]) -> None:
        """Measure a server whose answers are right; what goes wrong with a peer is a result."""

        def served() -> None:
            with system.running(self.bundle, python) as server:
                graph = ScoreGraph(graph_file(self.bundle, "score"))
                system.check(server, graph, drawn_images(self.bundle, MANY))
                measure(server)

        try:
            python = system.environment.make(self.envs) if system.environment else sys.executable
            try:
                served()
            except ServerError:  # Triton gives its parts a second to meet, which may be too little
                served()
        except (CannotInstall, LoadError, ServerError, WrongAnswerError, OSError) as error:
            if system.name == OURS:
                raise
            self.document["failures"][system.name] = f"{type(error).__name__}: {error}"
            print(f"{system.name}: {error}", file=sys.stderr, flush=True)
        else:
            self.document["failures"].pop(system.name, None)
        self.save()

    def _add(
        self, system: System, protocol: Protocol, load: str, round_: int, found: Figures
    ) -> None:
        who = {"system": system.name, "protocol": protocol.name, "load": load, "round": round_}
        self.document["entries"].append({**who, "figures": found})
        print(f"{system.name}, {protocol.name}, {load}: {found}", file=sys.stderr, flush=True)


def capacity(document: dict[str, Any], system: str) -> float | None:
    """Images/s of one-image requests from many clients, of a system's first protocol."""
    own = [e for e in document["entries"] if e["system"] == system and e["load"] == CROWDED]
    first = [e for e in own if e["protocol"] == own[0]["protocol"]]
    return median(e["figures"]["images_per_second"] for e in first)


def best_peer(document: dict[str, Any]) -> str | None:
    """The peer with the highest capacity; None without peers."""
    peers = {e["system"] for e in document["entries"]} - {OURS}
    known = {peer: c for peer in peers if (c := capacity(document, peer)) is not None}
    return max(known, key=known.__getitem__) if known else None


def median(values: Iterable[float | None]) -> float | None:
    """Of what is known, None where nothing is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


COLUMNS = {
    "images/s": ("images_per_second", ",.0f"),
    "/ bare": ("throughput_to_bare", ".2f"),
    "CPU us/image": ("cpu_us", ",.0f"),
    "CPU / bare": ("cpu_to_bare", ".2f"),
    "p50 ms": ("p50_ms", ",.2f"),
    "p50 / bare": ("p50_to_bare", ".2f"),
    "p99 ms": ("p99_ms", ",.2f"),
    "refused": ("refused", ",.0f"),
    "failed": ("failed", ",.0f"),
    "client us": ("client_us", ",.0f"),
    "MiB": ("memory_mib", ",.0f"),
}


def tables(document: dict[str, Any]) -> str:
    """One Markdown table a load, a line a system and protocol; then who is missing, and why."""
    parts = []
    for load in dict.fromkeys(e["load"] for e in document["entries"]):
        own = [e for e in document["entries"] if e["load"] == load]
        rows = []
        for name in dict.fromkeys((e["system"], e["protocol"]) for e in own):
            group = [e["figures"] for e in own if (e["system"], e["protocol"]) == name]
            cells = [
                "" if (value := median(f.get(figure) for f in group)) is None else f"{value:{form}}"
                for figure, form in COLUMNS.values()
            ]
            rows.append([", ".join(name), *cells])
        parts.append(table([load, *COLUMNS], rows))
    parts += [f"- {name}: {why}" for name, why in document["failures"].items()]
    return "\n\n".join(parts)


def verdicts(document: dict[str, Any]) -> list[tuple[str, float, bool]]:
    """What was promised against the best peer: what, the ratio found, whether it is met."""
    peer = best_peer(document)
    if peer is None:
        return []

    def p99(system: str) -> float | None:
        own = [e for e in document["entries"] if e["system"] == system]
        return median(e["figures"].get("p99_ms") for e in own if e["load"] == "arrivals, 80%")

    found = []
    ours, theirs = capacity(document, OURS), capacity(document, peer)
    if ours and theirs:
        found.append((f"one image, 32 clients: throughput / {peer}, >= 1.7", ours / theirs, 1.7))
    ours, theirs = p99(OURS), p99(peer)
    if ours and theirs:
        found.append((f"p99 at 80% of {peer}'s capacity / its p99, <= 0.7", theirs / ours, 1 / 0.7))
    return [(name, r if ">=" in name else 1 / r, r >= bound) for name, r, bound in found]


def arguments() -> argparse.Namespace:
    names = ["service", *(short(peer) for peer in PEERS)]
    parser = parser_of(__doc__)
    add, loads = parser.add_argument, ("closed", "arrivals")
    add("--envs", type=Path, required=True, help="where the peers are installed")
    add("--bundle", type=Path, default=SHIPPED / "mnist", help="default: the shipped mnist")
    add("--peers", nargs="+", choices=names, default=names, help="systems (default: all)")
    add("--loads", nargs="+", choices=loads, default=loads, help="default: all")
    add("--seconds", type=float, default=2.5, help="of a measurement (default 2.5)")
    add("--rounds", type=int, default=3, help="turns of every system (default 3)")
    add("--json", type=Path, help="write all figures here, after every turn")
    add("--add", action="store_true", help="keep what FILE of --json holds, and add to it")
    add("--install", action="store_true", help="install the peers and stop")
    options = parser.parse_args()
    if options.add and not options.json:
        parser.error("--add needs --json FILE, which it adds to")
    return options


def begun(options: argparse.Namespace) -> Any:
    versions = {s.name: s.environment.version() for s in PEERS if s.environment}
    facts = {"bundle": str(options.bundle), "versions": versions}
    if options.add and (document := read_json(options.json)):
        if document | facts != document:
            raise SystemExit(f"{options.json} is of another bundle or other versions of the peers")
        return document
    return {**facts, "entries": [], "failures": {}}


def main() -> None:
    options = arguments()
    stop_servers_when_ended()
    envs = options.envs.resolve()
    chosen = [s for s in (service(options.bundle), *PEERS) if short(s) in options.peers]
    if options.install:
        for system in chosen:
            if system.environment:
                print(system.name, system.environment.make(envs))
        return
    document = begun(options)
    save = (lambda: write_json(options.json, document)) if options.json else lambda: None
    run = Run(options.bundle, envs, options.seconds, document, save)
    first = 1 + max((e["round"] for e in document["entries"]), default=0)
    try:
        for round_ in range(first, first + options.rounds):
            for load in options.loads:
                for system in chosen:
                    getattr(run, load)(system, round_)
    except (ServerError, LoadError, WrongAnswerError) as error:
        raise SystemExit(f"this service: {error}") from None
    print(tables(document), end="\n\n")
    found = verdicts(document)
    for name, ratio, met in found:
        print(f"{name}: {ratio:.3g}{'' if met else ': MISSED'}")
    sys.exit(0 if all(met for _, _, met in found) else 1)


if __name__ == "__main__":
    main()
