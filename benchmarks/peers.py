"""This service and its peers, the same graph, images and loads, in one run.

    python benchmarks/peers.py --envs DIR [--peers NAME ...] [--loads NAME ...] [--json FILE]

Systems: the bare graph (ONNX Runtime in this process), this service (npy, JSON with base64 PNGs, v2
binary), Triton (nvidia-pytriton), LitServe, BentoML, MLServer, Ray Serve. The peers are installed
below DIR at the first run, each in an environment of its own, with the versions that are pinned in
`benchmarks/peers/`; one that cannot be installed, or whose answers are wrong, is named with the
reason. All of them score images at K = 1; answers are compared with the graph's beforehand.

Loads: `closed` (64 images from 4 clients, one image from 32 and from 1), `poisson` (open loop, at
20, 50 and 80% of the best peer's capacity), and of the service alone `beside` (small requests
beside a huge one), `steady` (80% of its capacity for a minute), `overload` (300%), `memory`
(100,000 requests), `start`. One server runs at a time and is started anew for each of its turns;
all take turns in each of `--rounds`, and medians over rounds are printed. With `--add`, what a file
holds is kept, so that a run can be made in slices.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

# Run as a file, this folder comes first on the path, where other programs' names could hide ours.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import onnxruntime as ort  # noqa: E402

from benchmarks.peers_bare import drawn_images, graph_of  # noqa: E402
from benchmarks.peers_measure import DIFFERENT, HUGE_IMAGES, MANY, Bench  # noqa: E402
from benchmarks.peers_process import ServerError, adopt_orphans  # noqa: E402
from benchmarks.peers_report import Results, Target, targets  # noqa: E402
from benchmarks.peers_run import MEMORY_REQUESTS, STEADY_SECONDS, Run  # noqa: E402
from benchmarks.peers_systems import PEERS, System, service  # noqa: E402
from benchmarks.peers_tables import tables  # noqa: E402
from service.bundle import Bundle, load_bundle  # noqa: E402
from service.settings import SHIPPED_BUNDLE  # noqa: E402

OURS_ALONE = ("beside", "steady", "overload", "memory", "start")
LOADS = ("closed", "poisson", *OURS_ALONE)
QUICK_SECONDS, QUICK_STEADY, QUICK_REQUESTS = 0.5, 2.0, 2_000


def short(system: System) -> str:
    """What a system is called on the command line."""
    return system.environment.name if system.environment else "service"


def arguments(description: str, peers: bool) -> argparse.ArgumentParser:
    """The options that this program shares with `serving.py`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    loads = LOADS if peers else ("closed", *OURS_ALONE)
    add = parser.add_argument
    add("--bundle", type=Path, default=SHIPPED_BUNDLE, help="default: the shipped one")
    add("--loads", nargs="+", choices=loads, default=loads, help="default: all")
    add("--seconds", type=float, default=5.0, help="of a measurement (default 5)")
    add("--rounds", type=int, default=3, help="turns of every system (default 3)")
    add("--quick", action="store_true", help="one short round: does everything work?")
    add("--json", type=Path, help="write all figures here, after every turn")
    add("--add", action="store_true", help="keep what FILE of --json holds, and add to it")
    return parser


def measured(options: argparse.Namespace, systems: list[System], envs: Path) -> Results:
    """Make the run that the options ask for."""
    bundle = load_bundle(options.bundle)
    results = _earlier(options, bundle)
    images = drawn_images(bundle, max(MANY * DIFFERENT, HUGE_IMAGES))
    quick = options.quick
    seconds = QUICK_SECONDS if quick else options.seconds
    bench = Bench(graph_of(bundle), images, seconds)

    def save(results: Results) -> None:
        if options.json:
            _write(options.json, results, bundle)

    plan = Run(
        bundle=bundle,
        bench=bench,
        envs=envs,
        results=results,
        save=save,
        steady_seconds=QUICK_STEADY if quick else STEADY_SECONDS,
        memory_requests=QUICK_REQUESTS if quick else MEMORY_REQUESTS,
    )
    first = 1 + max((entry.round for entry in results.entries), default=0)
    for round_ in range(first, first + (1 if quick else options.rounds)):
        for load in options.loads:
            if load in OURS_ALONE:
                getattr(plan, "starts" if load == "start" else load)(round_)
                continue
            for system in systems:
                getattr(plan, load)(system, round_)
    return results


def finish(results: Results, goals: list[Target]) -> None:
    """Print tables and targets; exit with 1 if one of these is missed."""
    print(tables(results))
    print()
    for goal in goals:
        print(goal.line())
    sys.exit(1 if any(goal.met is False for goal in goals) else 0)


def prepare() -> None:
    """Whoever ends this program has the servers ended, too."""
    adopt_orphans()
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _earlier(options: argparse.Namespace, bundle: Bundle) -> Results:
    if not options.add:
        return Results()
    if options.json is None:
        raise SystemExit("--add needs --json FILE, which it adds to")
    if not options.json.exists():
        return Results()
    document = json.loads(options.json.read_text())
    if document["bundle"]["hash"] != bundle.hash:
        raise SystemExit(f"{options.json} is of another bundle: give another --json")
    return Results.of(document)


def _write(path: Path, results: Results, bundle: Bundle) -> None:
    document: dict[str, Any] = {
        "bundle": {"name": bundle.manifest.name, "hash": bundle.hash},
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "onnxruntime": ort.__version__,
        "versions": {s.name: s.version() for s in PEERS},
        **results.document(),
        "targets": [
            {"name": t.name, "value": t.value, "bound": t.bound, "met": t.met}
            for t in targets(results)
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(path)


def main() -> None:
    """Measure and print; exits with 1 if a target is missed."""
    names = ["service", *(short(peer) for peer in PEERS)]
    parser = arguments(__doc__, peers=True)
    parser.add_argument("--envs", type=Path, required=True, help="where the peers are installed")
    parser.add_argument(
        "--peers", nargs="+", choices=names, default=names, help="systems to measure (default: all)"
    )
    parser.add_argument("--install", action="store_true", help="install the peers and stop")
    options = parser.parse_args()
    prepare()
    systems = [service(load_bundle(options.bundle)), *PEERS]
    chosen = [system for system in systems if short(system) in options.peers]
    if options.install:
        for system in chosen:
            if system.environment:
                print(system.name, system.environment.make(options.envs.resolve()))
        return
    try:
        results = measured(options, chosen, options.envs.resolve())
    except ServerError as error:
        raise SystemExit(f"this service: {error}") from None
    finish(results, targets(results))


if __name__ == "__main__":
    main()
