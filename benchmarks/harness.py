"""What the programs share: the machine they ran on, timings to compare, files written whole."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, making its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, document: object) -> None:
    """Write JSON, whole or not at all."""
    write_whole(path, json.dumps(document, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote; None where there is no file. Ends the program on anything else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SystemExit(f"{path} is no JSON ({error}); remove it, or give another --out") from None


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, aligned for reading as text, too; the first `left` columns hold words."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rules = ["-" * (width + 2) for width in widths[:left]]
    rules += ["-" * (width + 1) + ":" for width in widths[left:]]
    return "\n".join([line(head), f"|{'|'.join(rules)}|", *map(line, rows)])
