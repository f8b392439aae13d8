"""What the directory of a run tells of how far it has come, and the ledger of its slices.

RUN/slices.jsonl      a line for each `fit` call that a reproduction made in it
RUN/layers.jsonl      nats of each layer, where they were measured between epochs (figure 7)

Nothing else is remembered: a reproduction that was killed finds its rows as they are.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.files import read_lines, write_json, write_lines
from training.runs.checkpoint import FOLDER, NAME, POINTER
from training.runs.directory import CONFIG_FILE
from training.runs.metrics import minutes_clock, read_metrics

__all__ = [
    "Progressed",
    "checkpoint_step",
    "name_command",
    "progressed",
    "read_slices",
    "record_slice",
]

SLICES_FILE = "slices.jsonl"


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """How far a run has come: its last checkpoint's step, the minutes to there, the machines."""

    step: int = 0
    minutes: float = 0.0
    machines: tuple[str, ...] = ()
    done_epochs: int = 0  # 0 until its last step is done


def checkpoint_step(run_dir: Path) -> int:
    """The step of the newest checkpoint, without reading it; 0 where there is none."""
    try:
        name = (run_dir / FOLDER / POINTER).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return 0
    found = NAME.fullmatch(name)
    return int(found.group(1)) if found else 0


def progressed(run_dir: Path, batch_size: int, *, step: int | None = None) -> Progressed:
    """How far the run had come at `step` (None: its newest checkpoint).

    Minutes that no slice recorded, because the program was killed, are taken from the speeds that
    the run recorded.
    """
    step = checkpoint_step(run_dir) if step is None else step
    slices = [line for line in read_slices(run_dir) if line["step"] <= step]
    counted = max((line["step"] for line in slices), default=0)
    clock = minutes_clock(read_metrics(run_dir), batch_size)
    minutes = sum(line["minutes"] for line in slices) + clock(step) - clock(counted)
    done = [line["epochs"] for line in slices if line["reason"] == "done" and line["step"] == step]
    return Progressed(
        step=step,
        minutes=minutes,
        machines=tuple(dict.fromkeys(line["machine"] for line in slices)),
        done_epochs=max(done, default=0),
    )


def read_slices(run_dir: Path) -> list[dict[str, Any]]:
    """The ledger of a run, in the order of the slices."""
    return read_lines(run_dir / SLICES_FILE)


def record_slice(run_dir: Path, *, first_step: int, **told: Any) -> None:
    """Add a slice to the ledger; those of steps that were lost since are dropped.

    It tells its last `step`, the `reason` why it ended, its `minutes` from the first step to the
    last, `epochs`, how long the run then was to be, `steps_per_epoch`, and the `machine`.
    """
    kept = [line for line in read_slices(run_dir) if line["step"] <= first_step]
    write_lines(run_dir / SLICES_FILE, [*kept, {"first_step": first_step, **told}])


def name_command(run_dir: Path, command: str) -> None:
    """Say in a run's configuration what made it: `fit` alone has no options for most rows."""
    path = run_dir / CONFIG_FILE
    content = json.loads(path.read_bytes())
    content.setdefault("environment", {})["command"] = command
    write_json(path, content)
