"""Minutes of chaos on a real server: who asked what, and what became of it.

    python benchmarks/chaos.py [--seconds 120] [--clients 24] [--seed 0] [--json FILE]

A server process on a free loopback port serves three small models while clients ask, hurry, hang
up anywhere, send garbage or too much or too slowly; models are swapped by the administrator and by
the watched directory (broken ones too), unloaded and loaded again; engine threads are killed; and
in the end SIGTERM comes while all ask. Every answer is compared with the bare graphs' (ONNX Runtime
alone on the same files with the same noise). Exits with 1 if anything happened that may not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Run as a file, this folder comes first on the path, where other programs' names could hide ours.
sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "tests"))  # the small model of the tests is written without training

from tiny_bundle import TinyModel, write_tiny_bundle  # noqa: E402

from benchmarks.chaos_run import HABITS, Report, Storm, storm  # noqa: E402

MODELS = ("tiny", "watched", "passing")


def write_editions(folder: Path) -> dict[str, list[Path]]:
    """Two bundles of each model, all with weights of their own."""
    editions = {}
    for number, name in enumerate(MODELS):
        editions[name] = [folder / f"{name}-{edition}" for edition in range(2)]
        for edition, path in enumerate(editions[name]):
            weights = TinyModel.create(1 + 2 * number + edition)
            write_tiny_bundle(path, weights, name=name, version="1.9.0")
    return editions


def show(report: Report, seconds: float) -> None:
    """The tables."""
    print("\n| what clients did | what became of it | times |\n|---|---|---|")
    for (doing, outcome), times in sorted(report.tally.told.items()):
        print(f"| {doing.replace('_', ' ')} | {outcome} | {times} |")
    print("\n| change of a model | times |\n|---|---|")
    for change, times in sorted(report.changes.items()):
        print(f"| {change} | {times} |")
    before, after = (size / 2**20 for size in report.resident_bytes)
    print(f"\nengine threads killed: {report.kills}")
    print(f"slowest answer: {report.tally.slowest:.2f} s")
    print(f"resident memory: {before:.0f} MiB before, {after:.0f} MiB after")
    print(f"{seconds:.0f} s in all; {sum(report.faults.values())} faults")
    for fault, times in report.faults.most_common():
        print(f"FAULT ({times}x): {fault}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="of chaos (default: 120)")
    parser.add_argument("--last-seconds", type=float, default=3.0, help="of load before SIGTERM")
    parser.add_argument(
        "--clients", type=int, default=24, help=f"at least {len(HABITS)}, one for each habit"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what clients choose")
    parser.add_argument("--swap-seconds", type=float, default=0.5, help="between two swaps")
    parser.add_argument("--kill-seconds", type=float, default=2.0, help="between killed threads")
    parser.add_argument("--json", type=Path, help="write the outcome to this file")
    given = parser.parse_args()
    if given.clients < len(HABITS):
        parser.error(f"--clients must be at least {len(HABITS)}, one for each habit")
    return given


def main() -> None:
    given = vars(arguments())
    destination = given.pop("json")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        report = asyncio.run(storm(write_editions(folder), folder, Storm(**given)))
    show(report, time.monotonic() - began)
    if destination is not None:
        told = {" ".join(key): times for key, times in sorted(report.tally.told.items())}
        outcome = {"options": given, "told": told, "faults": dict(report.faults)}
        destination.write_text(json.dumps(outcome, indent=2) + "\n")
    sys.exit(1 if report.faults else 0)


if __name__ == "__main__":
    main()
