"""A run's likelihood, measured and kept in its directory.

RUN/evaluation-test-k128-step-00051480-ema.json      one file for each evaluation
"""

from pathlib import Path

from rich.progress import Progress

from training.data import Split
from training.evaluate.evaluate import MEMORY_GIB, evaluate_model
from training.evaluate.report import EvaluationReport
from training.evaluate.subject import Subject, run_subject
from training.files import write_json
from training.runs.checkpoint import Weights

__all__ = ["evaluate_run", "keep_report"]


def evaluate_run(
    run: Path,
    *,
    split: Split = "test",
    importance_samples: int = 128,
    seed: int = 0,
    weights: Weights = "ema",
    limit: int | None = None,
    data_dir: Path | None = None,
    device: str = "cpu",
    memory_gib: float = MEMORY_GIB,
    progress: Progress | None = None,
) -> tuple[EvaluationReport, Path]:
    """Measure a run's newest checkpoint (or the checkpoint `run` itself) and write the report.

    `limit` takes the first so many images alone; draws are computed in about `memory_gib`.
    Returns the report and the JSON file in the run's directory; the same evaluation of the same
    weights replaces it.
    """
    subject = run_subject(run, weights=weights, data_dir=data_dir, device=device)
    subject.place_for_results(None)  # said before the work, not after it
    report = evaluate_model(
        subject.scorer,
        subject.images(split).first(limit),
        importance_samples=importance_samples,
        seed=seed,
        memory_gib=memory_gib,
        progress=progress,
    )
    return report, keep_report(subject, report, limit)


def keep_report(subject: Subject, report: EvaluationReport, limit: int | None) -> Path:
    """Write the report on the first `limit` images (None: on all) into its run's directory."""
    command = (
        f"iafvae-train evaluate {subject.words} --split {report.split} "
        f"--importance-samples {report.importance_samples} --seed {report.seed}"
    )
    content = {
        **report.to_dict(),
        "command": command if limit is None else f"{command} --limit {limit}",
        "manifest": report.manifest_entries(command),
        **subject.identity,
    }
    name = f"evaluation-{report.split}-k{report.importance_samples}-{subject.stem}.json"
    path = subject.place_for_results(None) / name
    write_json(path, content)
    return path
