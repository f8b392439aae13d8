"""What serving costs on a CPU beyond the model itself, and how the service behaves under stress.

    python benchmarks/serving.py [--loads NAME ...] [--seconds 5] [--rounds 3] [--json FILE]

A real `iafvae serve` process on a free loopback port scores at K = 1, in each protocol: npy, JSON
with base64 PNGs, v2 binary. The bare graph is the bundle's `score.onnx` in this process with its
inputs ready, as many one-thread callers as cores, measured before each turn of the server, so that
a machine's drift hits both. The server's CPU seconds are those of its whole process tree.

`peers.py` measures the same, and other servers beside it; the loads are explained there.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, this folder comes first on the path, where other programs' names could hide ours.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.peers import arguments, finish, measured, prepare  # noqa: E402
from benchmarks.peers_process import ServerError  # noqa: E402
from benchmarks.peers_report import Results, Target, ratio, targets  # noqa: E402
from benchmarks.peers_systems import service  # noqa: E402
from service.bundle import load_bundle  # noqa: E402

READY_SECONDS, RESIDENT_MIB = 2.5, 400.0


def own_targets(results: Results) -> list[Target]:
    """Those of `peers.py` that need no peers, and what a start may cost."""
    ready = results.median("start", "ready_seconds")
    shared = ratio(results.median("1x32", "cpu_us"), results.median("1x1", "cpu_us"))
    return [
        *(goal for goal in targets(results) if "peer" not in goal.name),
        Target("CPU an image, 32 clients / 1 client, 1 image each", shared, 0.7),
        Target("seconds from start to ready", ready, READY_SECONDS),
        Target("resident memory, MiB", results.median("start", "memory_mib"), RESIDENT_MIB),
    ]


def main() -> None:
    """Measure and print; exits with 1 if a target is missed."""
    options = arguments(__doc__, peers=False).parse_args()
    prepare()
    try:
        results = measured(options, [service(load_bundle(options.bundle))], Path())
    except ServerError as error:
        raise SystemExit(f"the service: {error}") from None
    finish(results, own_targets(results))


if __name__ == "__main__":
    main()
