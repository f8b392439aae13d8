"""Minutes of chaos on a real server, and attacks on it: what became of those who asked in earnest.

    python -m benchmarks.chaos [storm attacks] [--seconds 120] [--seed 0] [--json FILE]

`storm`: a server process serves three small models while clients ask, hurry, hang up anywhere, send
garbage or too much or too slowly; models are swapped by the administrator and by the watched
directory (broken ones too), unloaded and loaded again; and in the end
SIGTERM comes while all ask. Every answer is compared with the bare graphs' (ONNX Runtime alone on
the same files with the same noise).

`attacks`: each of `benchmarks/storm/attacks.py` for some seconds on a server of the shipped mnist:
what became of the attack, of `/livez`, of a polite client with another key, and of the memory.

Exits with 1 if anything happened that may not.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import parser_of, table, write_json
from benchmarks.load import Request
from benchmarks.score_graph import drawn_images
from benchmarks.server import stop_servers_when_ended
from benchmarks.storm.attacks import ATTACKS, Suffered, suffered
from benchmarks.storm.course import HABITS, Report, Storm, storm
from benchmarks.systems import ROOT, SHIPPED, npy, service

MODELS = ("tiny", "watched", "passing")
KEYS = {"rude": "rude", "polite": "polite"}  # key -> holder
CALM = "nothing"
LIVE_P99_MS, POLITE_RATIO, GROWTH_MIB = 100.0, 5.0, 100.0  # the ratio: to the time without attack


def write_editions(folder: Path) -> dict[str, list[Path]]:
    """Two bundles of each model, all with weights of their own."""
    sys.path.append(str(ROOT / "tests"))
    from tiny_bundle import TinyModel, write_tiny_bundle  # written without training

    editions = {}
    for number, name in enumerate(MODELS):
        editions[name] = [folder / f"{name}-{edition}" for edition in range(2)]
        for edition, path in enumerate(editions[name]):
            weights = TinyModel.create(1 + 2 * number + edition)
            write_tiny_bundle(path, weights, name=name, version="1.9.0")
    return editions


def show_storm(report: Report) -> None:
    told = [[*key, str(times)] for key, times in sorted(report.tally.told.items())]
    print(table(["what clients did", "what became of it", "times"], told, left=2), end="\n\n")
    changes = [[change, str(times)] for change, times in sorted(report.changes.items())]
    print(table(["change of a model", "times"], changes))
    before, after = report.memory_mib
    print(f"slowest answer: {report.tally.slowest:.2f} s; /livez p99: {report.live_p99_ms:.0f} ms")
    print(f"resident memory: {before:.0f} MiB before, {after:.0f} MiB after")
    for fault, times in report.faults.most_common():
        print(f"FAULT ({times}x): {fault}")


def attacked(names: list[str], seconds: float, bundle: Path) -> list[Suffered]:
    """Each attack on a server of its own, after a time without any."""
    from service.api.security.keys import key_line

    polite = npy().request(drawn_images(bundle, 1))
    headers = {**polite.headers, "authorization": "Bearer polite"}
    polite = Request(polite.path, polite.body, headers, 1)
    found = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        keys = Path(folder) / "keys"
        keys.write_text("".join(key_line(n, name) + "\n" for n, name in KEYS.items()))
        for name in (CALM, *names):
            with service(bundle, keys_file=keys).running(bundle) as server:
                found.append(suffered(server, name, "rude", polite, seconds))
            print(*line(found[-1], found[0]), sep=" | ", file=sys.stderr, flush=True)
    return found


HEAD = ["attack", "became of it", "/livez p99 ms", "polite p50, p99 ms", "polite failed"]
HEAD += ["MiB, most", "faults"]


def line(one: Suffered, calm: Suffered) -> list[str]:
    return [
        one.name,
        ", ".join(f"{what}: {times}" for what, times in one.outcomes.most_common(4)),
        f"{one.live_p99_ms:.0f}",
        " and ".join(f"{one.polite.get(f'{p}_ms', float('nan')):.0f}" for p in ("p50", "p99")),
        f"{unanswered(one):.0f}",
        f"{one.memory_mib[0]:.0f}, {max(one.memory_mib):.0f}",
        "; ".join(faults(one, calm)),
    ]


def unanswered(one: Suffered) -> float:
    """Requests of the polite client without a right answer."""
    return sum(one.polite.get(kind, 0.0) for kind in ("failed", "refused", "unanswered"))


def faults(one: Suffered, calm: Suffered) -> list[str]:
    most = POLITE_RATIO * calm.polite.get("p99_ms", 0.0)
    grown = max(one.memory_mib) - one.memory_mib[0]
    return [
        *["/livez is late"] * (one.live_p99_ms > LIVE_P99_MS),
        *["the polite wait"] * (one.polite.get("p99_ms", 1e9) > most),
        *["the polite are not answered"] * (unanswered(one) > 0),
        *["memory grows"] * (grown > GROWTH_MIB),
    ]


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    add, parts = parser.add_argument, ("storm", "attacks")
    add("parts", nargs="*", metavar="storm|attacks", help="default: both")
    add("--seconds", type=float, default=120.0, help="of the storm (default 120)")
    add("--clients", type=int, default=24, help=f"at least {len(HABITS)}, one for each habit")
    add("--seed", type=int, default=0, help="of what clients choose")
    add("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), help="default: all")
    add("--attack-seconds", type=float, default=5.0, help="of each (default 5)")
    add("--bundle", type=Path, default=SHIPPED / "mnist", help="that is attacked")
    add("--json", type=Path, help="write the outcome to this file")
    given = parser.parse_args()
    if not set(given.parts) <= set(parts):
        parser.error(f"what there is to run: {' and '.join(parts)}")
    given.parts = given.parts or list(parts)
    if given.clients < len(HABITS):
        parser.error(f"--clients must be at least {len(HABITS)}, one for each habit")
    return given


def main() -> None:
    given = arguments()
    stop_servers_when_ended()
    document: dict[str, Any] = {}
    wrong = False
    if "storm" in given.parts:
        how = Storm(
            seconds=given.seconds,
            last_seconds=3.0,
            clients=given.clients,
            seed=given.seed,
            swap_seconds=0.5,
        )
        with tempfile.TemporaryDirectory(prefix="chaos-") as name:
            report = asyncio.run(storm(write_editions(Path(name)), Path(name), how))
        show_storm(report)
        told = {" ".join(key): times for key, times in sorted(report.tally.told.items())}
        live = report.live_p99_ms
        document["storm"] = {"told": told, "faults": dict(report.faults), "live_p99_ms": live}
        wrong |= bool(report.faults) or live > LIVE_P99_MS
    if "attacks" in given.parts:
        found = attacked(given.attacks, given.attack_seconds, given.bundle)
        calm = found[0]
        print(table(HEAD, [line(one, calm) for one in found], left=2))
        document["attacks"] = {n.name: {**vars(n), "faults": faults(n, calm)} for n in found}
        wrong |= any(faults(one, calm) for one in found)
    if given.json is not None:
        write_json(given.json, document)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
