"""Where a training step's time goes, by kind of operation."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import table
from training.fit.trainer import Trainer

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
