"""What a reproduction measures of a run: its bound on a split, or the nats of every layer."""

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.progress import Progress

from training.config import Runtime
from training.data import Split
from training.evaluate.run import evaluate_run
from training.evaluate.subject import run_images, told_apart
from training.files import read_lines, write_lines
from training.fit.device import choose_device, prepare
from training.fit.distributed import World
from training.fit.validate import validate
from training.reproduce.state import checkpoint_step
from training.runs.checkpoint import load_run
from training.runs.metrics import read_metrics

__all__ = ["Evaluation", "LayerNats", "Measurement"]

LAYERS_FILE = "layers.jsonl"
GROUP_PREFIX = "kl_nats/"


@dataclass(frozen=True, kw_only=True)
class Measurement(ABC):
    """What is asked of each run; the answers lie in the run's directory.

    `kind` names the report that they are written in; with `each_slice` a run is measured between
    two slices too, else at the end alone.
    """

    kind: ClassVar[str]
    each_slice: ClassVar[bool] = False

    def missing(self, run_dir: Path) -> bool:
        """Whether the newest checkpoint is still to be measured."""
        found = self.found(run_dir)
        return found is None or found["step"] != checkpoint_step(run_dir)

    @abstractmethod
    def measure(
        self, run_dir: Path, runtime: Runtime, data_dir: Path | None, progress: Progress
    ) -> None:
        """Measure the newest checkpoint and keep what comes out."""

    @abstractmethod
    def found(self, run_dir: Path) -> dict[str, Any] | None:
        """What was measured last, as JSON with its `step`; None: nothing yet."""

    def protocol(self) -> dict[str, Any]:
        """The choices made here, as JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Measurement):
    """`training.evaluate` on a split: ELBO and IW-K of the averaged weights."""

    kind: ClassVar[str] = "table"
    split: Split = "test"
    importance_samples: int = 1
    seed: int = 0
    limit: int | None = None

    def measure(
        self, run_dir: Path, runtime: Runtime, data_dir: Path | None, progress: Progress
    ) -> None:
        """Evaluate the averaged weights; the report becomes a file of the run."""
        evaluate_run(
            run_dir,
            **self.protocol(),
            data_dir=data_dir,
            device=str(choose_device(runtime.device)),
            progress=progress,
        )

    def found(self, run_dir: Path) -> dict[str, Any] | None:
        """The evaluation of the latest step by this very protocol."""
        some, step = told_apart(self.limit, self.seed), checkpoint_step(run_dir)
        mine = f"evaluation-{self.split}-k{self.importance_samples}-step-*[0-9]-ema{some}.json"
        contents = filter(None, map(_content, run_dir.glob(mine)))
        kept = [content for content in contents if content["step"] <= step]
        return max(kept, key=lambda content: int(content["step"]), default=None)


def _content(path: Path) -> dict[str, Any] | None:
    """An evaluation's file; one that is spoilt or of another kind counts as none."""
    needed = ("step", "split", "importance_samples", "seed", "elbo", "importance_weighted", "dims")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    whole = isinstance(content, dict) and all(name in content for name in needed)
    return content if whole else None


@dataclass(frozen=True, kw_only=True)
class LayerNats(Measurement):
    """Nats of the reconstruction and of each stochastic layer, on the validation split.

    Every run records them at the end of each epoch; to them comes a point after each slice, for
    machines on which an epoch is long.
    """

    kind: ClassVar[str] = "layers"
    each_slice: ClassVar[bool] = True

    def measure(
        self, run_dir: Path, runtime: Runtime, data_dir: Path | None, progress: Progress
    ) -> None:
        """Add a point at the newest checkpoint's step."""
        progress.add_task("layers", total=None)
        config, model, checkpoint = load_run(run_dir)
        images = run_images(config, "validation", data_dir)
        backend = prepare(runtime)
        figures = validate(backend.place(model), images, backend, World())
        lines = read_lines(run_dir / LAYERS_FILE)
        kept = [line for line in lines if line["step"] < checkpoint.step]
        write_lines(run_dir / LAYERS_FILE, [*kept, {"step": checkpoint.step, **figures}])

    def found(self, run_dir: Path) -> dict[str, Any] | None:
        """The series so far: `points`, each with its step, in the order of the steps."""
        last = checkpoint_step(run_dir)
        at_epochs = [r for r in read_metrics(run_dir) if r["kind"] == "validation"]
        points = {
            r["step"]: _point(r)
            for r in (*read_lines(run_dir / LAYERS_FILE), *at_epochs)
            if r["step"] <= last
            and all(isinstance(r.get(name), int | float) for name in ("elbo_nats", "kl_nats"))
        }
        if not points:
            return None
        return {"step": max(points), "points": [points[step] for step in sorted(points)]}


def _point(record: dict[str, Any]) -> dict[str, Any]:
    """The parts of the negative bound: -ELBO = reconstruction + the layers' KL, top first."""
    layers = {
        name.removeprefix(GROUP_PREFIX): value
        for name, value in record.items()
        if name.startswith(GROUP_PREFIX)
    }
    return {
        "step": record["step"],
        "reconstruction_nats": -(record["elbo_nats"] + record["kl_nats"]),
        "kl_nats": layers or {"z": record["kl_nats"]},
        "bits_per_dim": record["bits_per_dim"],
    }
