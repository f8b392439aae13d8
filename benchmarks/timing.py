"""How long things take, in turns, and how fast the machine and a model multiply matrices.

A floating point operation is an addition or a multiplication: a product of matrices `[M, K]` and
`[K, N]` makes 2 M N K of them.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.contract import DensityModel
from training.data import ImageData
from training.fit.batches import presented
from training.runs.provenance import git_revision, processor


@dataclass(frozen=True)
class Timing:
    """One measurement: seconds by the clock, and of this process's processor time."""

    wall: float
    cpu: float

    def per(self, count: float) -> Timing:
        """One of `count` equal parts."""
        return Timing(self.wall / count, self.cpu / count)


def timed(run: Callable[[], object], device: torch.device | None = None) -> Timing:
    """Time one call, with what it left queued on a GPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def repeated(run: Callable[[], object], seconds: float, device: torch.device) -> Timing:
    """Time calls for at least `seconds`, and one at least; gives the time of one."""
    total, calls = Timing(0.0, 0.0), 0
    while calls == 0 or total.wall < seconds:
        one = timed(run, device)
        total = Timing(total.wall + one.wall, total.cpu + one.cpu)
        calls += 1
    return total.per(calls)


def alternated(runs: Mapping[str, Callable[[], Timing]], rounds: int) -> dict[str, list[Timing]]:
    """Take every measurement in turn, `rounds` times over: a machine's drift hits all of them."""
    found: dict[str, list[Timing]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
    return found


def effort(timing: Timing, device: torch.device) -> float:
    """What ratios are taken of: processor seconds, which a busy neighbour disturbs less than the
    clock; on a GPU the clock."""
    return timing.wall if device.type == "cuda" else timing.cpu


def median_ratio(slow: Sequence[Timing], fast: Sequence[Timing], device: torch.device) -> float:
    """How many times `fast` goes into `slow`, round by round, and of these the median."""
    pairs = zip(slow, fast, strict=True)
    return statistics.median(effort(s, device) / effort(f, device) for s, f in pairs)


def machine(device: torch.device) -> dict[str, Any]:
    """What was measured on, and with what."""
    name = processor()
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, {name}"
    return {
        "machine": f"{name} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "torch": torch.__version__,
        "revision": git_revision(),
    }


def machine_line(facts: Mapping[str, Any]) -> str:
    """The same for people, in one line."""
    return (
        f"{facts['machine']}, {facts['threads']} of {facts['cores']} cores, {facts['device']}, "
        f"torch {facts['torch']}, revision {facts['revision'][:12]}"
    )


def measured_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """FLOP/s of large square products with the threads set; per processor second on a CPU.

    On a CPU the threads' processor seconds are added up, as a training step's are.
    """
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    timed(lambda: torch.mm(a, b, out=out), device)
    four = 4 * 2 * n**3
    return best_rate(lambda: [torch.mm(a, b, out=out) for _ in range(4)], four, seconds, device)


def best_rate(
    run: Callable[[], object], flop: float, seconds: float, device: torch.device
) -> float:
    """FLOP/s of `run`, which makes so many, at its best within `seconds`."""
    best, spent = 0.0, 0.0
    while spent < seconds:
        timing = timed(run, device)
        best = max(best, flop / effort(timing, device))
        spent += timing.wall
    return best


def training_flops(model: DensityModel, data: ImageData) -> float:
    """FLOP of one image's forward and backward pass: products and convolutions alone.

    Counted in plain eager mode on the operations that really run; masked weights count whole, as
    they are multiplied whole.
    """
    images = 2
    device = next(model.parameters()).device
    pixels = torch.from_numpy(data.pixels[:images]).to(device)
    x = presented(model, pixels, torch.Generator(device).manual_seed(0))
    eps = torch.randn(images, model.layout.dim, device=device)
    with FlopCounterMode(display=False) as counter:
        log_px_z, kl = model(x, eps)
        (log_px_z.sum() - kl.sum()).backward()
    model.zero_grad(set_to_none=True)
    return float(counter.get_total_flops()) / images
