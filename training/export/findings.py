"""What was measured of a run beyond its evaluations, gathered for its bundle's card.

RUN/bound-*.json, RUN/verdicts-*.json    of `iafvae-train bound` and `evaluate-anomaly`
RUN/metrics.jsonl                        for the curve, which is drawn anew

Only figures of exactly the exported weights, on test images, are taken; of several bounds the one
of the most images, then of the largest K, of several verdicts the newest, where the bundle has the
calibration that they were measured with. Pictures are drawn from them again, under the bundle's
name.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from training.errors import TrainingError

__all__ = ["VERDICTS_PICTURE", "Findings", "gather"]

VERDICTS_PICTURE = "anomaly.png"

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Sections of a card in Markdown, "" where nothing was measured; file name -> PNG;
    calibration: the hash of that with which the verdicts were measured."""

    bound: str = ""
    verdicts: str = ""
    calibration: str | None = None
    curve: str = ""
    pictures: Mapping[str, bytes] = field(default_factory=dict)

    def of_calibration(self, content: bytes | None) -> "Findings":
        """Without verdicts of another calibration than the file `content`; None: of any."""
        if content is not None and self.calibration == hashlib.sha256(content).hexdigest():
            return self
        pictures = {name: png for name, png in self.pictures.items() if name != VERDICTS_PICTURE}
        return replace(self, verdicts="", calibration=None, pictures=pictures)


def gather(run_dir: Path, identity: Mapping[str, Any], name: str) -> Findings:
    """What is known of the weights `identity` (see `runs.weights_used`), told under `name`.

    Raises `TrainingError` naming a result that cannot be read.
    """
    sections: dict[str, Any] = {}
    pictures: dict[str, bytes] = {}
    bounds = _results(run_dir, "bound", identity)
    if bound := max(
        bounds,
        key=lambda found: (found["images"], found["rows"][-1]["importance_samples"]),
        default=None,
    ):
        from training.evaluate.bound_report import bound_markdown, bound_picture

        sections["bound"] = bound_markdown(bound).strip()
        pictures["bound.png"] = bound_picture({**bound, "model": name})
    measured = _results(run_dir, "verdicts", identity)
    if verdicts := max(measured, key=lambda found: str(found["date"]), default=None):
        from training.evaluate.anomaly_report import anomaly_markdown, anomaly_picture

        sections["verdicts"] = anomaly_markdown(verdicts).strip()
        sections["calibration"] = verdicts.get("calibration")
        pictures[VERDICTS_PICTURE] = anomaly_picture({**verdicts, "model": name})
    if (drawn := _curve(run_dir, int(identity["step"]), name)) is not None:
        sections["curve"], pictures["curve.png"] = drawn
    return Findings(**sections, pictures=pictures)


def _results(run_dir: Path, kind: str, identity: Mapping[str, Any]) -> list[Document]:
    """The results of a kind that are of these weights and of test images."""
    return [
        content
        for path in sorted(run_dir.glob(f"{kind}-*.json"))
        if identity.items() <= (content := _read(path, kind)).items() and content["split"] == "test"
    ]


def _read(path: Path, kind: str) -> Document:
    try:
        content = json.loads(path.read_bytes())
        if content["kind"] == kind and isinstance(content["images"], int) and "split" in content:
            return dict(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is no result ({error!r}): remove it.") from error
    raise TrainingError(f"{path} is no result of {kind}: remove it.")


def _curve(run_dir: Path, step: int, name: str) -> tuple[str, bytes] | None:
    """The curve up to a step in words and as PNG; None where the run kept too little for one."""
    from training.evaluate.curve import NOTE, curve_picture, run_curve

    try:
        curve = run_curve(run_dir, step)
    except TrainingError:  # a run that was carried here without its records
        return None
    picture = curve_picture({"unit": curve["unit"], "runs": [{**curve, "run": name}]})
    if picture is None:
        return None
    speed = curve["images_per_second"] or 0.0
    words = (
        f"{curve['minutes']:.1f} minutes, {curve['step']:,} steps of {curve['batch_size']} images, "
        f"{curve['epochs']} epochs; {speed:,.0f} images/s (median). {NOTE}"
    )
    return words, picture
