"""What a run leaves for people: metrics as JSONL and TensorBoard, and sheets of images."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.files import named, read_lines, write_lines

METRICS_FILE = "metrics.jsonl"


class Recorder:
    """Appends figures to `metrics.jsonl` and to TensorBoard, each with its step.

    Opened at the step a run starts or resumes from: what an earlier attempt recorded after that
    step is dropped, so that no step stands twice.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        self.path = run_dir / METRICS_FILE
        if self.path.exists():
            write_lines(self.path, (r for r in read_metrics(run_dir) if r["step"] <= step))
        self.file = self.path.open("a", encoding="utf-8")
        from torch.utils.tensorboard import SummaryWriter  # slow to import, wanted only here

        self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, kind: str, figures: dict[str, float]) -> None:
        """Record `figures` under `kind`; null if not finite.

        Kinds are "train", "skipped", and "validation", or "seen" where that is trained on.
        """
        finite = {k: v if math.isfinite(v) else None for k, v in figures.items()}
        record = {"step": step, "kind": kind, **finite}
        with named(self.path):
            self.file.write(json.dumps(record, allow_nan=False) + "\n")
            self.file.flush()
        for name, value in figures.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)

    def image(self, step: int, name: str, sheet: NDArray[Any]) -> None:
        """Show a sheet `[H, W, C]` of uint8 in TensorBoard."""
        self.board.add_image(name, sheet, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close both files."""
        with named(self.path):
            self.file.close()
        self.board.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run, in the order written; none where it kept none.

    One whose figures are no numbers, as an edit by hand leaves it, is passed over.
    """
    return [record for record in read_lines(run_dir / METRICS_FILE) if _is_record(record)]


def _is_record(record: Mapping[str, Any]) -> bool:
    figures = (value for name, value in record.items() if name != "kind")
    return isinstance(record.get("kind"), str) and all(
        value is None or isinstance(value, int | float) for value in figures
    )


def copy_metrics(run_dir: Path, folder: Path, step: int) -> None:
    """Copy a run's records of the steps until `step`; where it kept none, nothing."""
    if records := [record for record in read_metrics(run_dir) if record["step"] <= step]:
        write_lines(folder / METRICS_FILE, records)


def minutes_clock(records: Sequence[Mapping[str, Any]], batch_size: int) -> Callable[[int], float]:
    """Step -> minutes of training until it was done, from a run's records.

    A record of kind "train" tells the speed of the steps since the one before it; steps after the
    last one count at its speed. Where no speed was recorded it is always 0.
    """
    speeds = {
        int(record["step"]): float(record["images_per_second"])
        for record in records
        if record["kind"] == "train" and (record.get("images_per_second") or 0) > 0
    }
    steps = sorted(speeds)
    taken = np.diff([0, *steps])
    minutes = [step * batch_size / speeds[at] / 60 for step, at in zip(taken, steps, strict=True)]
    until = np.concatenate([[0.0], np.cumsum(minutes)])
    slope = batch_size / speeds[steps[-1]] / 60 if steps else 0.0

    def clock(step: int) -> float:
        if not steps:
            return 0.0
        beyond = max(0, step - steps[-1]) * slope
        return float(np.interp(step, [0, *steps], until)) + beyond

    return clock
