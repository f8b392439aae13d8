"""What a run leaves for people: metrics as JSONL and TensorBoard, and sheets of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"


class Recorder:
    """Appends figures to `metrics.jsonl` and to TensorBoard, each with its step.

    Opened at the step a run starts or resumes from: what an earlier attempt recorded after that
    step is dropped, so that no step stands twice.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        self.path = run_dir / METRICS_FILE
        _drop_after(self.path, step)
        self.file = self.path.open("a", encoding="utf-8")
        self.board = _board(run_dir / "tensorboard", step)

    def write(self, step: int, kind: str, figures: dict[str, float]) -> None:
        """Record `figures` under `kind` ("train", "validation")."""
        self.file.write(json.dumps({"step": step, "kind": kind, **figures}) + "\n")
        self.file.flush()
        for name, value in figures.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)

    def image(self, step: int, name: str, sheet: NDArray[Any]) -> None:
        """Show a sheet `[H, W]` or `[H, W, C]` of uint8 in TensorBoard."""
        layout = "HW" if sheet.ndim == 2 else "HWC"
        self.board.add_image(name, sheet, step, dataformats=layout)

    def close(self) -> None:
        """Flush and close both files."""
        self.file.close()
        self.board.close()


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):  # a line cut off by a crash
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def _board(path: Path, step: int) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter  # slow to import, wanted only here

    return SummaryWriter(str(path), purge_step=step)
