"""What a verdict costs: `score` with it over `score` without, one after the other in one run.

Of each bundle and K: one image of one caller (the time until it is there, and processor time), and
images of several callers at once (processor time of all). Exit code 1 where a bound is missed: with
the default K at most 1.25 times, at K = 1 at most twice.

    python -m benchmarks.verdicts [--bundles service/bundles/mnist]
"""

import argparse
import asyncio
import os
import statistics
import time
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's, as in the service
import torch

from benchmarks.harness import parser_of, table
from benchmarks.systems import SHIPPED
from benchmarks.timing import machine, machine_line
from service.operations.model import Model

BOUND, BOUND_OF_ONE = 1.25, 2.0


async def measure(model: Model, k: int, turns: int, callers: int) -> list[float]:
    """What a verdict costs, in times of what there is without it: seconds and processor time of one
    caller, processor time of all. Medians over `turns` turns; images are the model's own draws,
    another one for each call."""
    images = (await model.sample(turns + callers, seed=0, output="draw")).images

    async def spent(first: int, count: int, verdict: bool) -> tuple[float, float]:
        began, processor = time.perf_counter(), time.process_time()
        calls = [
            model.score(images[i : i + 1], importance_samples=k, verdict=verdict, caller=str(i))
            for i in range(first, first + count)
        ]
        await asyncio.gather(*calls)
        return time.perf_counter() - began, time.process_time() - processor

    async def ratios(first: int, count: int) -> tuple[float, float]:
        without = await spent(first, count, False)
        whole = await spent(first, count, True)
        return whole[0] / without[0], whole[1] / without[1]

    await ratios(0, callers)  # warms up
    alone = [await ratios(turn, 1) for turn in range(turns)]
    crowds = [await ratios(turn, callers) for turn in range(0, turns, 4)]
    seconds, processor = zip(*alone, strict=True)
    _, processor_of_all = zip(*crowds, strict=True)
    return [statistics.median(ratio) for ratio in (seconds, processor, processor_of_all)]


async def run(args: argparse.Namespace) -> bool:
    """Measure and print; whether every bound holds."""
    rows, sound = [], True
    for path in args.bundles:
        model = Model.load(path, provider="cpu")
        await model.start()
        default = model.manifest.scoring.default_importance_samples
        for k in (default, 1):
            found = await measure(model, k, args.turns, args.callers)
            bound = BOUND_OF_ONE if k == 1 else BOUND
            sound &= max(found) <= bound
            rows.append([model.name, str(k), *(f"{ratio:.2f}" for ratio in found), f"{bound:g}"])
        await model.stop()
    head = ["bundle", "K", "time", "processor", f"processor, {args.callers} callers", "at most"]
    print(table(head, rows))
    return sound


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    default = sorted(path for path in SHIPPED.iterdir() if path.is_dir())
    parser.add_argument("--bundles", nargs="+", type=Path, default=default)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--callers", type=int, default=16, help="at once")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    print(machine_line(machine(torch.device("cpu"))))
    raise SystemExit(not asyncio.run(run(args)))


if __name__ == "__main__":
    main()
