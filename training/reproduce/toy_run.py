"""`iafvae-train reproduce figure1`: fit the toy from several seeds, and report what it shows.

OUT/runs/figure1-iaf-seed0.json      a fit's figures and samples; OUT/figure1.json, .md, .png
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from model.config import require
from training.files import write_text
from training.reproduce.report import FORMAT, reproduced
from training.reproduce.toy import POSTERIORS, fit_toy, measure, posterior_samples
from training.runs.provenance import git_revision, machine

__all__ = ["ToyReproduction"]

SAMPLES = 1000  # of each data point's posterior, for the picture
DECIMALS = 3


@dataclass(frozen=True, kw_only=True)
class ToyReproduction:
    """Fits of both posteriors from `seeds` seeds; what is there already is not fitted again."""

    out: Path
    seeds: int
    steps: int
    budget_minutes: float | None
    threads: int
    console: Console
    command: str

    def run(self) -> tuple[str, dict[str, Any]]:
        """Fit what is missing and write, see `reproduced`; an interrupted fit starts again."""
        budget = self.budget_minutes
        require(
            budget is None or 0 <= budget < math.inf,
            f"--budget-minutes must be finite and >= 0, not {budget}",
        )
        if self.threads:
            torch.set_num_threads(self.threads)
        return reproduced(self.out, self._fit_all, self.document)

    def _fit_all(self) -> str:
        budget = math.inf if self.budget_minutes is None else self.budget_minutes
        ends = time.monotonic() + 60 * budget
        missing = [
            (posterior, seed)
            for seed in range(self.seeds)
            for posterior in POSTERIORS
            if self._found(posterior, seed) is None
        ]
        for posterior, seed in missing:
            if time.monotonic() >= ends:
                return "budget"
            self._fit(posterior, seed)
        return "done"

    def _path(self, posterior: str, seed: int) -> Path:
        return self.out / "runs" / f"figure1-{posterior}-seed{seed}.json"

    def _found(self, posterior: str, seed: int) -> dict[str, Any] | None:
        """A fit of earlier, of as many steps; anything else is made anew."""
        try:
            content = json.loads(self._path(posterior, seed).read_bytes())
        except (OSError, ValueError):
            return None
        fits = isinstance(content, dict) and content.get("format") == FORMAT
        return content if fits and content.get("steps") == self.steps else None

    def _fit(self, posterior: str, seed: int) -> None:
        began = time.process_time()
        with Progress(console=self.console, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(f"{posterior}, seed {seed}", total=self.steps)
            model = fit_toy(
                posterior,
                seed=seed,
                steps=self.steps,
                told=lambda step: progress.update(task, completed=step),
            )
        figures = measure(model)
        found = f"ELBO {figures.elbo:.3f} nats, log p(x) {figures.log_px:.3f} nats"
        self.console.print(f"{posterior}, seed {seed}: {found}", highlight=False, soft_wrap=True)
        samples = posterior_samples(model, SAMPLES, seed).tolist()
        content = {
            "format": FORMAT,
            "posterior": posterior,
            "seed": seed,
            "steps": self.steps,
            "machine": machine(torch.device("cpu"), self.threads),
            "figures": asdict(figures),
            "cpu_seconds": time.process_time() - began,
            "samples": [[[round(v, DECIMALS) for v in z] for z in point] for point in samples],
        }
        path = self._path(posterior, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content, allow_nan=False) + "\n")

    def document(self) -> dict[str, Any]:
        """All that the report is drawn from; the picture shows the first seed that is complete."""
        by_seed = [
            {name: fit for name in POSTERIORS if (fit := self._found(name, seed)) is not None}
            for seed in range(self.seeds)
        ]
        shown = next((fits for fits in by_seed if len(fits) == len(POSTERIORS)), {})
        runs = [fit for fits in by_seed for fit in fits.values()]
        return {
            "format": FORMAT,
            "kind": "toy",
            "experiment": "figure1",
            "title": "Figure 1: four data points, two latents",
            "command": self.command,
            "git_revision": git_revision(),
            "posteriors": list(POSTERIORS),
            "steps": self.steps,
            "seeds": self.seeds,
            "runs": [{k: v for k, v in fit.items() if k != "samples"} for fit in runs],
            "shown": {
                name: {"seed": fit["seed"], "samples": fit["samples"]}
                for name, fit in shown.items()
            },
        }
