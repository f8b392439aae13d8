"""Training speed: the shipped configuration against plain float32 eager mode, in one run.

    python benchmarks/training.py [--preset mnist] [--rounds 6] [--steps 20] [--json FILE]

Both train the same model on the same images from the same start: one as `iafvae-train fit` runs
it (torch.compile, bfloat16 products, channels_last, where they pay), one plainly. Rounds
alternate, and the ratio is the median over rounds, so that a machine's drift hits both. The
printed CPU ratio compares processor seconds an image, which a busy neighbour disturbs less.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

# Run as a file, this folder comes first on the path, and this module would hide the package.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from training.config import Runtime, for_images, run_preset  # noqa: E402
from training.data import ImageData  # noqa: E402
from training.loop import Trainer  # noqa: E402

PLAIN = Runtime(compile="off", bf16="off", channels_last=False)
SHIPPED = Runtime(compile="on")


def images(shape: tuple[int, int, int], count: int) -> ImageData:
    """Random grey images: the time of a step does not depend on what is in them."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    return ImageData(pixels, "random", "train")


def measure(trainer: Trainer, steps: int) -> tuple[float, float]:
    """Images a second of wall time, and processor seconds an image."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        trainer.train_step()
    if trainer.backend.device.type == "cuda":
        torch.cuda.synchronize()
    n = steps * trainer.config.optim.batch_size
    return n / (time.perf_counter() - wall), (time.process_time() - cpu) / n


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mnist")
    parser.add_argument("--rounds", type=int, default=6, help="alternations (default 6)")
    parser.add_argument("--steps", type=int, default=20, help="steps a round (default 20)")
    parser.add_argument("--warmup", type=int, default=5, help="steps before measuring")
    parser.add_argument("--batch-size", type=int, help="instead of the preset's")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()

    config = run_preset(args.preset)
    config = for_images(config, config.model.image_shape)
    if args.batch_size:
        config = replace(config, optim=replace(config.optim, batch_size=args.batch_size))
    data = images(config.model.image_shape, 8 * config.optim.batch_size)
    common = {"device": args.device, "threads": args.threads}
    trainers = {
        "plain": Trainer(config, replace(PLAIN, **common), data),
        "shipped": Trainer(config, replace(SHIPPED, **common), data),
    }
    started = time.perf_counter()
    for trainer in trainers.values():
        measure(trainer, args.warmup)
    warmup_seconds = time.perf_counter() - started
    rounds = {name: [] for name in trainers}
    for _ in range(args.rounds):
        for name, trainer in trainers.items():
            rounds[name].append(measure(trainer, args.steps))

    pairs = list(zip(rounds["plain"], rounds["shipped"], strict=True))
    figures = {
        "preset": args.preset,
        "batch_size": config.optim.batch_size,
        "torch": torch.__version__,
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "device": str(trainers["shipped"].backend.device),
        "bf16": trainers["shipped"].backend.bf16,
        "plain_images_per_second": statistics.median(w for w, _ in rounds["plain"]),
        "shipped_images_per_second": statistics.median(w for w, _ in rounds["shipped"]),
        "speed_ratio": statistics.median(s[0] / p[0] for p, s in pairs),
        "cpu_ratio": statistics.median(p[1] / s[1] for p, s in pairs),
        "warmup_and_compile_seconds": warmup_seconds,
    }
    for name, value in figures.items():
        print(f"{name:28} {value:.3f}" if isinstance(value, float) else f"{name:28} {value}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
