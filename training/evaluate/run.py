"""A run's likelihood, measured and kept in its directory.

RUN/evaluation-test-k128-step-00051480-ema.json      one file for each evaluation
"""

from pathlib import Path
from typing import Any

from rich.progress import Progress

from training.data import Split
from training.evaluate.evaluate import MEMORY_GIB, evaluate_model
from training.evaluate.report import EvaluationReport
from training.evaluate.subject import Subject, run_subject
from training.files import write_json
from training.runs.checkpoint import Weights

__all__ = ["evaluate_run", "evaluate_subject"]


def evaluate_run(
    run: Path,
    *,
    weights: Weights = "ema",
    data_dir: Path | None = None,
    device: str = "cpu",
    **options: Any,
) -> tuple[EvaluationReport, Path | None]:
    """`evaluate_subject` of a run's newest checkpoint (or of the checkpoint `run` itself)."""
    subject = run_subject(run, weights=weights, data_dir=data_dir, device=device)
    return evaluate_subject(subject, **options)


def evaluate_subject(
    subject: Subject,
    *,
    split: Split = "test",
    importance_samples: int = 128,
    seed: int = 0,
    limit: int | None = None,
    memory_gib: float = MEMORY_GIB,
    progress: Progress | None = None,
) -> tuple[EvaluationReport, Path | None]:
    """Measure a model, and write the report of a run.

    `limit` takes the first so many images alone; draws are computed in about `memory_gib`.
    Returns the report and the JSON file in the run's directory (None for a bundle); the same
    evaluation of the same weights replaces it.
    """
    if subject.home is not None:
        subject.place_for_results(None)  # said before the work, not after it
    report = evaluate_model(
        subject.scorer,
        subject.images(split).first(limit),
        importance_samples=importance_samples,
        seed=seed,
        memory_gib=memory_gib,
        progress=progress,
    )
    if subject.home is None:
        return report, None
    command = (
        f"iafvae-train evaluate {subject.words} --split {split} "
        f"--importance-samples {importance_samples} --seed {seed}"
    )
    content = {
        **report.to_dict(),
        "command": command if limit is None else f"{command} --limit {limit}",
        "manifest": report.manifest_entries(command),
        **subject.identity,
    }
    path = subject.home / f"evaluation-{split}-k{importance_samples}-{subject.stem}.json"
    write_json(path, content)
    return report, path
