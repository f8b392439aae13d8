"""A run's likelihood, measured and kept in its directory.

RUN/evaluation-test-k128-step-00051480-ema.json      one file for each evaluation
"""

from pathlib import Path
from typing import Any

from training.data import Split
from training.evaluate.evaluate import evaluate_model
from training.evaluate.report import EvaluationReport
from training.evaluate.subject import Subject, run_subject, told_apart
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
    subject: Subject, *, split: Split = "test", limit: int | None = None, **options: Any
) -> tuple[EvaluationReport, Path | None]:
    """Measure a model as `evaluate_model` does, with its options, and write the report of a run.

    `limit` takes the first so many images alone. Returns the report and the JSON file in the run's
    directory (None for a bundle); the same evaluation of the same weights replaces it, one of fewer
    images or under another seed does not.
    """
    if subject.home is not None:
        subject.place_for_results(None)  # said before the work, not after it
    report = evaluate_model(subject.scorer, subject.images(split).first(limit), **options)
    if subject.home is None:
        return report, None
    command = (
        f"iafvae-train evaluate {subject.words} --split {split} "
        f"--importance-samples {report.importance_samples} --seed {report.seed}"
    )
    content = {
        **report.to_dict(),
        "command": command if limit is None else f"{command} --limit {limit}",
        "manifest": report.manifest_entries(command),
        **subject.identity,
    }
    some = told_apart(limit, report.seed)
    name = f"evaluation-{split}-k{report.importance_samples}-{subject.stem}{some}.json"
    path = subject.home / name
    write_json(path, content)
    return report, path
