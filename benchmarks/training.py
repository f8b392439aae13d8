"""Training speed: the shipped configuration against plain float32 eager mode, in one run.

    python -m benchmarks.training [--presets mnist cifar10-small] [--profile] [--json FILE]

Both train the same model on the same images from the same start: one as `iafvae-train fit` runs
it (torch.compile, bfloat16 products, channels_last, where they pay), one plainly. Rounds
alternate, and the ratio is the median over rounds, so that a machine's drift hits both. The
printed CPU ratio compares processor seconds an image, which a busy neighbour disturbs less.

In the same rounds large matrices are multiplied, in float32 and bfloat16: the machine's peak. A
model's products and convolutions, forward and backward, are counted; their number a second over
the peak is the fraction of it that training reaches. `--profile` then says what the rest of a step
is spent on.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import parser_of, write_json
from benchmarks.timing import (
    Timing,
    effort,
    machine,
    machine_line,
    measured_peak,
    timed,
    training_flops,
)
from training.config import ConfigError, Runtime, run_preset
from training.data import ImageData
from training.errors import TrainingError
from training.fit.device import choose_device
from training.fit.trainer import Trainer

PLAIN = Runtime(compile="off", bf16="off", channels_last=False)
SHIPPED = Runtime(compile="on")
PRESETS, TARGET = ("mnist", "cifar10-small"), 2.5  # times plain float32 eager mode

# The first part that an operation's name contains decides on its kind. Compiled element-wise
# kernels carry the names of what they fuse.
KINDS = {
    "convolution_backward": "convolutions, backward",
    "mkldnn_convolution": "convolutions, forward",
    "_convolution_": "convolutions, forward",  # pointwise, transpose_pointwise
    "linear_pointwise": "matrix products",
    "mm": "matrix products",  # addmm, gemm, bmm
    "_foreach": "optimiser and average",
    "Optimizer": "optimiser and average",
    "linalg_vector_norm": "optimiser and average",
    "fused": "compiled element-wise kernels",
    "graph_": "compiled element-wise kernels",
}


def images(shape: tuple[int, int, int], count: int) -> ImageData:
    """Random images: the time of a step does not depend on what is in them."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    return ImageData(pixels, "random", "train")


def steps_of(trainer: Trainer, steps: int) -> Timing:
    """The time of one image, over so many steps."""

    def run() -> None:
        for _ in range(steps):
            trainer.train_step()

    return timed(run, trainer.backend.device).per(steps * trainer.config.optim.batch_size)


def trainers_for(preset: str, options: argparse.Namespace) -> dict[str, Trainer]:
    """The two that are compared, on the same images."""
    config = run_preset(preset)
    if options.batch_size:
        config = replace(config, optim=replace(config.optim, batch_size=options.batch_size))
    data = images(config.model.image_shape, max(512, 8 * config.optim.batch_size))
    return {
        name: Trainer(
            config, replace(runtime, device=options.device, threads=options.threads), data
        )
        for name, runtime in (("plain", PLAIN), ("shipped", SHIPPED))
    }


def measure(preset: str, options: argparse.Namespace) -> dict[str, Any]:
    trainers = trainers_for(preset, options)
    shipped = trainers["shipped"]
    device = shipped.backend.device
    flops = training_flops(trainers["plain"].model, images(shipped.config.model.image_shape, 2))
    for trainer in trainers.values():
        steps_of(trainer, options.warmup)
    rounds = defaultdict(list)
    peaks = {"float32": 0.0, "bfloat16": 0.0}
    for _ in range(options.rounds):
        for name, trainer in trainers.items():
            rounds[name].append(steps_of(trainer, options.steps))
        for name in peaks:
            peaks[name] = max(peaks[name], measured_peak(device, getattr(torch, name)))
    pairs = list(zip(rounds["plain"], rounds["shipped"], strict=True))
    peak = peaks["bfloat16" if shipped.backend.bf16 else "float32"]
    rate = flops * statistics.median(1 / effort(t, device) for t in rounds["shipped"])
    figures: dict[str, Any] = {
        "preset": preset,
        "parameters": sum(p.numel() for p in shipped.model.parameters()),
        "batch_size": shipped.config.optim.batch_size,
        "bf16": shipped.backend.bf16,
        "plain_images_per_second": statistics.median(1 / t.wall for t in rounds["plain"]),
        "shipped_images_per_second": statistics.median(1 / t.wall for t in rounds["shipped"]),
        "speed_ratio": statistics.median(p.wall / s.wall for p, s in pairs),
        "cpu_ratio": statistics.median(p.cpu / s.cpu for p, s in pairs),
        "megaflop_an_image": flops / 1e6,
        "float32_peak_gflop_per_second": peaks["float32"] / 1e9,
        "bfloat16_peak_gflop_per_second": peaks["bfloat16"] / 1e9,
        "fraction_of_measured_peak": rate / peak,
    }
    if options.profile:
        figures["milliseconds_a_step"] = profiled(shipped, max(2, options.steps // 4))
    return figures


def kind_of(name: str) -> str:
    return next((kind for part, kind in KINDS.items() if part in name), "everything else")


def profiled(trainer: Trainer, steps: int) -> dict[str, float]:
    """Processor milliseconds a step by kind, longest first; more than without the profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            trainer.train_step()
    sums: defaultdict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        sums[kind_of(event.key)] += event.self_cpu_time_total / 1e3 / steps
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--presets", nargs="+", default=PRESETS, help="default: both of CPUs")
    parser.add_argument("--rounds", type=int, default=6, help="alternations (default 6)")
    parser.add_argument("--steps", type=int, default=20, help="steps a round (default 20)")
    parser.add_argument("--warmup", type=int, default=5, help="steps before measuring")
    parser.add_argument("--batch-size", type=int, help="instead of the preset's")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--profile", action="store_true", help="also time a step's operations")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.profile:
        # Compiled kernels are else invisible to the profiler on a CPU.
        torch._inductor.config.cpp.enable_kernel_profile = True
    try:
        device = choose_device(options.device)
        found = []
        for preset in options.presets:
            found.append(measure(preset, options))
            print(json.dumps(found[-1], indent=1))
    except (ConfigError, TrainingError) as error:
        raise SystemExit(str(error)) from None
    print(machine_line(machine(device)))
    for figures in found:
        ratio = figures["cpu_ratio"]
        outcome = "met" if ratio >= TARGET else "MISSED"
        print(f"{figures['preset']}: {ratio:.2f} of plain, at least {TARGET:g} wanted: {outcome}")
    if options.json:
        write_json(options.json, {**machine(device), "presets": found})
    sys.exit(1 if any(figures["cpu_ratio"] < TARGET for figures in found) else 0)


if __name__ == "__main__":
    main()
