"""MODEL_CARD.md: what a model is, what it was made from, what it reaches, what it is not for."""

import math
import re
from collections.abc import Mapping, Sequence

from service.bundle import Manifest
from service.verdicts.conformal import certified_alpha, expected_rate
from training.data.licences import data_note
from training.export.findings import Findings

__all__ = ["CARD", "VERDICTS", "calibration_text", "model_card", "with_section"]

CARD = "MODEL_CARD.md"
VERDICTS = "Verdicts"

LIKELIHOODS = {
    "bernoulli": "independent binary pixels; a grey pixel is drawn, its level the chance of white",
    "discretized_logistic": "a logistic density integrated over the 256 levels of each subpixel",
    "logistic_mixture": "a mixture of logistic densities for each pixel, integrated over the 256 "
    "levels of its colours, each colour given those before it",
}

CAVEAT = (
    "A likelihood says how well an image fits what this model was trained on. It is no measure of "
    "quality, and images of quite another kind can score high (Nalisnick et al. 2019, "
    "arXiv:1810.09136). The p-value holds for images drawn and prepared as the calibration images "
    "were."
)
LIMITS = (
    "The model knows images of this size and kind alone. Another size is resized, another colour "
    "converted at the caller's wish, and the p-value is then of an altered image. Its samples show "
    "what it learned, with the faults and the one-sidedness of the images it learned from."
)
BINARY_LIMITS = (
    "It knows black and white: a grey pixel is drawn to one of them before it is scored, by noise "
    "that belongs to the image, as in training."
)
FINDINGS = Findings()


def model_card(manifest: Manifest, *, reconstructions: bool, findings: Findings = FINDINGS) -> str:
    """The card in Markdown; `reconstructions` says whether reconstructions.png is there.

    `findings` fill sections of their own, with their pictures.
    """
    image, latent = manifest.image, manifest.latent
    groups = ", ".join(f"`{g.name}` {g.channels}x{g.height}x{g.width}" for g in latent.groups)
    pictures = ["![samples](samples.png)"]
    if reconstructions:
        pictures.append("Originals, and below each row its reconstructions at eps = 0:")
        pictures.append("![reconstructions](reconstructions.png)")
    facts = {
        "images": f"{image.channels}x{image.height}x{image.width}, {image.levels} levels",
        "likelihood": LIKELIHOODS[manifest.likelihood.kind],
        "latents": f"{latent.dim} ({groups})",
        "parameters": f"{manifest.parameters:,}",
        "precision": manifest.precision,
        "graphs": f"ONNX opset {manifest.opset}: {', '.join(sorted(manifest.graphs))}",
        "license": manifest.license,
    }
    parts = [
        f"# {manifest.name} {manifest.version}",
        manifest.description,
        *pictures,
        _table(("", ""), list(facts.items())),
        "## Figures",
        _figures(manifest),
        *_section("The bound by the number of draws", findings.bound, "bound.png", findings),
        "## Calibration",
        calibration_text(manifest),
        *_section(VERDICTS, findings.verdicts, "anomaly.png", findings),
        "## Training",
        *_training(manifest),
        *_section("", findings.curve, "curve.png", findings),
        "## Data",
        data_note(str(manifest.training.get("data", ""))),
        "## What it is not for",
        CAVEAT,
        LIMITS,
        *([BINARY_LIMITS] if manifest.likelihood.binary else []),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, text: str, picture: str, findings: Findings) -> list[str]:
    """A heading, a picture and what was found; nothing where nothing was."""
    heading = [f"## {title}"] if title else []
    shown = (
        [f"![{picture.removesuffix('.png')}]({picture})"] if picture in findings.pictures else []
    )
    return [*heading, *shown, text] if text else []


def _training(manifest: Manifest) -> list[str]:
    """What made the weights; and the calls one by one, where there was more than one."""
    facts = {key: value for key, value in manifest.training.items() if key != "calls"}
    table = _table(("", ""), [(key, _plain(value)) for key, value in sorted(facts.items())])
    rows = [
        (
            str(call["step"]),
            str(call.get("command", "")),
            _plain({k: v for k, v in call.items() if k not in ("step", "command")}),
        )
        for call in manifest.training.get("calls", ())  # not there where there was one alone
    ]
    calls = ["Calls:", _table(("from step", "command", "what was new"), rows)]
    return [table, *calls] if rows else [table]


def _figures(manifest: Manifest) -> str:
    if not manifest.evaluation:
        return "Not measured."
    rows: list[tuple[str, ...]] = []
    for figure in manifest.evaluation:
        weighted = figure.estimator == "importance_weighted"
        rows.append(
            (
                f"IW-{figure.importance_samples}" if weighted else "ELBO",
                f"{figure.split}, {figure.images}",
                f"{figure.value_nats:.3f} ± {figure.standard_error_nats:.3f}",
                f"{figure.bits_per_dim:.4f}",
                ", ".join(f"{name} {nats:.2f}" for name, nats in figure.kl_nats.items()),
            )
        )
    header = ("bound", "split, images", "nats per image (± s.e.)", "bits/dim", "KL in nats")
    methods = dict.fromkeys((figure.protocol, figure.command) for figure in manifest.evaluation)
    notes = [f"{protocol}\n\n    {command}" for protocol, command in methods]
    return "\n\n".join(
        [_table(header, rows), "Lower bounds on log p(x), higher is better.", *notes]
    )


def with_section(card: str, title: str, text: str) -> str:
    """A finished card with the section `title` anew; it follows "Calibration" where it is new."""
    section = f"## {title}\n\n{text.strip()}\n\n"
    found, count = re.subn(rf"(?ms)^## {title}\n.*?(?=^## |\Z)", lambda _: section, card)
    if not count:
        after = r"(?ms)^## Calibration\n.*?(?=^## |\Z)"
        found, count = re.subn(after, lambda m: f"{m[0].rstrip()}\n\n{section}", card)
    return (found if count else f"{card.rstrip()}\n\n{section}").rstrip() + "\n"


def calibration_text(manifest: Manifest) -> str:
    """What p-values refer to, and what they can and cannot promise."""
    spec, alpha = manifest.calibration, manifest.scoring.alpha
    if spec is None:
        return "None: the service answers no p-values and calls nothing anomalous."
    crossed = spec.folds > 1
    smallest = 1 / (spec.images + 1)
    certified = None if crossed else certified_alpha(alpha, spec.images)
    density = (
        f"each with a density of the others, in {spec.folds} folds"
        if crossed
        else f"with a density made of {spec.fit_images} others"
    )
    samples = ", ".join(map(str, manifest.scoring.calibrated_importance_samples))
    text = (
        "`p_value` says how far an image's statistics (likelihood, its parts, latents, residuals, "
        f"pixels) lie from those of usual images: its rank among {spec.images} images "
        f"({spec.split}, {spec.date}), {density}, at K = {samples} importance samples and seed "
        f"{spec.seed}. The smallest possible is {smallest:.1g}. An image is called anomalous at "
        f"p <= {alpha:g}"
    )
    if smallest > alpha:
        return text + ", which so few cannot tell: no decision ever is. Calibrate on more."
    rate = expected_rate(alpha, spec.images)
    if crossed:
        return text + f": about {rate:.1%} of usual images are."
    if certified is None:
        return text + (
            "; over calibration sets of so few images, no threshold holds that rate of false "
            "alarms with 95% confidence."
        )
    return text + (
        f": about {rate:.1%} of usual images are, and at p <= {certified:.4f} at most so many, "
        "with 95% confidence over calibration sets."
    )


def _table(header: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return " ".join(_plain(item) for item in value)
    return str(value)
