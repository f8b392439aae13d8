"""Training speed: the shipped configuration against plain float32 eager mode, in one run.

    python benchmarks/training.py [--presets mnist cifar10-small] [--profile] [--json FILE]

Both train the same model on the same images from the same start: one as `iafvae-train fit` runs
it (torch.compile, bfloat16 products, channels_last, where they pay), one plainly. Rounds
alternate, and the ratio is the median over rounds, so that a machine's drift hits both. The
printed CPU ratio compares processor seconds an image, which a busy neighbour disturbs less.

In the same rounds large matrices are multiplied, in float32 and bfloat16: the machine's peak. A
model's products and convolutions, forward and backward, are counted; their number a second over
the peak is the fraction of it that training reaches (on a GPU: model FLOP utilisation, of the
maker's dense bfloat16 figure where this program knows it). `--profile` then says what the rest
of a step is spent on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

if not __package__:  # run as a file: this folder's names would hide the packages'
    sys.path[0] = str(Path(__file__).resolve().parent.parent)


from benchmarks.harness import table, write_json
from benchmarks.timing import (
    Timing,
    effort,
    machine,
    machine_line,
    measured_peak,
    stated_peak,
    timed,
    training_flops,
)
from training.config import ConfigError, Runtime, for_images, run_preset
from training.data import ImageData
from training.errors import TrainingError
from training.fit.device import choose_device
from training.fit.trainer import Trainer

PLAIN = Runtime(compile="off", bf16="off", channels_last=False)
SHIPPED = Runtime(compile="on")
CPU_PRESETS, GPU_PRESETS = ("mnist", "cifar10-small"), ("mnist", "cifar10-small", "cifar10-paper")
CPU_TARGET, GPU_TARGET, GPU_TARGET_PRESET = 2.5, 0.35, "cifar10-paper"

# The first part that an operation's name contains decides on its kind. Compiled element-wise
# kernels carry the names of what they fuse.
KINDS: tuple[tuple[str, str], ...] = (
    ("convolution_backward", "convolutions, backward"),
    ("conv_backward", "convolutions, backward"),
    ("dgrad", "convolutions, backward"),
    ("wgrad", "convolutions, backward"),
    ("mkldnn_convolution", "convolutions, forward"),
    ("_convolution_pointwise", "convolutions, forward"),
    ("_convolution_transpose_pointwise", "convolutions, forward"),
    ("cudnn_convolution", "convolutions, forward"),
    ("fprop", "convolutions, forward"),
    ("implicit_gemm", "convolutions, forward"),
    ("linear_pointwise", "matrix products"),
    ("addmm", "matrix products"),
    ("gemm", "matrix products"),
    ("aten::mm", "matrix products"),
    ("aten::bmm", "matrix products"),
    ("cutlass", "matrix products"),
    ("_foreach", "optimiser and average"),
    ("multi_tensor", "optimiser and average"),
    ("Optimizer", "optimiser and average"),
    ("linalg_vector_norm", "optimiser and average"),
    ("fused", "compiled element-wise kernels"),
    ("triton", "compiled element-wise kernels"),
    ("graph_", "compiled element-wise kernels"),
)
TOP = 15


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
    config = for_images(config, config.model.image_shape)
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
    """All figures of one preset."""
    trainers = trainers_for(preset, options)
    shipped = trainers["shipped"]
    device = shipped.backend.device
    flops = training_flops(trainers["plain"].model, images(shipped.config.model.image_shape, 2))
    started = time.perf_counter()
    for trainer in trainers.values():
        steps_of(trainer, options.warmup)
    warmup_seconds = time.perf_counter() - started
    rounds: dict[str, list[Timing]] = {name: [] for name in trainers}
    peaks: dict[str, float] = {"float32": 0.0, "bfloat16": 0.0}
    for _ in range(options.rounds):
        for name, trainer in trainers.items():
            rounds[name].append(steps_of(trainer, options.steps))
        for name in peaks:
            peaks[name] = max(peaks[name], measured_peak(device, getattr(torch, name)))

    pairs = list(zip(rounds["plain"], rounds["shipped"], strict=True))
    peak = peaks["bfloat16" if shipped.backend.bf16 else "float32"]
    rate = flops * statistics.median(1 / effort(t, device) for t in rounds["shipped"])
    stated = stated_peak(device)
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
        "fraction_of_stated_peak": None if stated is None else rate / stated,
        "warmup_and_compile_seconds": warmup_seconds,
    }
    if options.profile:
        rows = profile_steps(shipped, max(2, options.steps // 4))
        print(f"\n{preset}, one step of {shipped.config.optim.batch_size} images\n")
        print(profile_report(rows), end="\n\n")
        figures["milliseconds_a_step"] = by_kind(rows)
    return figures


def kind_of(name: str) -> str:
    """The kind of operation that a profiler's event belongs to."""
    return next((kind for part, kind in KINDS if part in name), "everything else")


def _self_microseconds(event: Any, device: torch.device) -> float:
    if device.type == "cuda":
        return float(event.self_device_time_total)
    return float(event.self_cpu_time_total)


def profile_steps(trainer: Trainer, steps: int) -> list[tuple[str, float, int]]:
    """(operation, milliseconds a step, calls a step), longest first.

    Times are of the device that computes. Under the profiler a step takes somewhat longer.
    """
    device = trainer.backend.device
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            trainer.train_step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    found = [
        (event.key, _self_microseconds(event, device) / 1e3 / steps, event.count // steps)
        for event in profiler.key_averages()
    ]
    return sorted((row for row in found if row[1] > 0), key=lambda row: -row[1])


def by_kind(rows: list[tuple[str, float, int]]) -> dict[str, float]:
    """Milliseconds a step of each kind, longest first."""
    sums: defaultdict[str, float] = defaultdict(float)
    for name, milliseconds, _ in rows:
        sums[kind_of(name)] += milliseconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def profile_report(rows: list[tuple[str, float, int]]) -> str:
    """Two tables: kinds, and the longest operations."""
    total = sum(milliseconds for _, milliseconds, _ in rows)
    kinds = [[k, f"{ms:.2f}", f"{ms / total:.0%}"] for k, ms in by_kind(rows).items()]
    longest = [
        [name[:90], f"{ms:.2f}", str(calls), kind_of(name)] for name, ms, calls in rows[:TOP]
    ]
    return "\n\n".join(
        [
            table(["kind", "ms a step", "share"], kinds),
            table(["operation", "ms a step", "calls", "kind"], longest),
        ]
    )


def verdict(figures: dict[str, Any], device: torch.device) -> str | None:
    """What became of the preset's target: None where it has none on this device."""
    if device.type != "cuda":
        value, least, what = figures["cpu_ratio"], CPU_TARGET, "plain float32 eager mode"
    elif figures["preset"] == GPU_TARGET_PRESET:
        value, least = figures["fraction_of_stated_peak"], GPU_TARGET
        value = figures["fraction_of_measured_peak"] if value is None else value
        what = "the dense bfloat16 peak"
    else:
        return None
    outcome = "met" if value >= least else "MISSED"
    return f"{figures['preset']}: {value:.2f} of {what}, at least {least:g} wanted: {outcome}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--presets",
        "--preset",
        nargs="+",
        help=f"default: {' '.join(CPU_PRESETS)}; on a GPU also {GPU_TARGET_PRESET}",
    )
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
    """Measure and print; exits with 1 if a target is missed."""
    options = arguments()
    if options.profile:
        # Compiled kernels are else invisible to the profiler on a CPU.
        torch._inductor.config.cpp.enable_kernel_profile = True
    try:
        device = choose_device(options.device)
        presets = options.presets or (GPU_PRESETS if device.type == "cuda" else CPU_PRESETS)
        found = []
        for preset in presets:
            found.append(measure(preset, options))
            print(json.dumps(found[-1], indent=1))
    except (ConfigError, TrainingError) as error:
        raise SystemExit(str(error)) from None
    print(machine_line(machine(device)))
    verdicts = [v for figures in found if (v := verdict(figures, device))]
    print("\n".join(verdicts))
    if options.json:
        write_json(options.json, {**machine(device), "presets": found, "targets": verdicts})
    sys.exit(1 if any(v.endswith("MISSED") for v in verdicts) else 0)


if __name__ == "__main__":
    main()
