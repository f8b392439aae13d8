"""The page of `iafvae report`: one HTML file that needs nothing else; scripts only search in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from service.cli.output import fault_text, shown
from service.verdicts.conformal import expected_rate
from service.verdicts.decisions import REASONS, fdr_notes

__all__ = ["in_words", "page"]

Document = Mapping[str, Any]
BINS = 20
PARTS = 3  # of the evidence that are named for an image
WIDTH, HEIGHT, EDGE = 480, 150, 26  # of a histogram, in pixels; EDGE is room for labels
SQUARE = 260  # of the ROC
COLOURS = ("#1f6fd1", "#d1541f", "#2a9d4a", "#8a4fc4", "#b8860b", "#0e8a8a", "#c4457d", "#666")

# Parts of the evidence in words, as the service's page (`web/look.js`) has them; of a latent group
# the kind, before the group's name.
WORDS = {
    "log_likelihood": "likelihood",
    "log_px_z": "pixels, given the latents",
    "level": "brightness",
    "contrast": "contrast",
    "variation": "change from pixel to pixel",
    "sharpness": "sharpness",
    "compressed_bytes": "size when compressed",
    "largest_box": "largest box of the map",
    "residual/top": "what the top latents miss",
    "residual/all": "what the reconstruction misses",
    "kl": "information in",
    "prior_eps": "prior's noise of",
    "z": "size of",
}


def page(
    document: Document, pictures: Mapping[str, tuple[str, str]], words: Sequence[str] = ()
) -> str:
    """What `iafvae report` found. pictures: file -> base64 of two PNGs, image and map ("": none);
    words: paragraphs for the top."""
    template = Template(files("service.cli").joinpath("report.html").read_text("utf-8"))
    return template.substitute(
        title=escape(f"{document['folder']}: report by {document['model']} {document['version']}"),
        words="".join(f"<p>{escape(each)}</p>" for each in words),
        summary="".join(f"<li>{escape(each)}</li>" for each in _summary(document)),
        histogram=_histogram(document),
        classes=_classes(document["classes"]),
        roc=_roc(document["classes"]),
        hidden=_hidden(document, len(pictures)),
        rows="".join(_rows(document, pictures)),
        unreadable=_unreadable(document["unreadable"]),
    )


def _summary(document: Document) -> Iterator[str]:
    yield (
        f"{document['images']} images: {document['anomalous']} anomalous, "
        f"{document['ordinary']} ordinary, {document['undecided']} undecided; "
        f"{len(document['unreadable'])} could not be judged."
    )
    if document["calibration"] is None:
        yield "The model has no calibration: there are no p-values, and nothing is decided."
        return
    if any(row["p_value"] is not None for row in document["results"]):
        yield from _thresholds(document)
    for reason in dict.fromkeys(row["status"] for row in document["results"]):
        if reason in REASONS:
            count = sum(row["status"] == reason for row in document["results"])
            yield f"{count} undecided: {REASONS[reason]}."
    yield from (f"The maps: {note}." for note in document["notes"])
    samples = document["importance_samples"]
    yield f"Scores: {document['estimator']}, K = {samples}, seed {document['seed']}."


def _thresholds(document: Document) -> Iterator[str]:
    """What small p-values are, and how many usual images have them."""
    n, alpha, calibration = document["images"], document["alpha"], document["calibration"]
    size = calibration["images"]
    yield (
        f"Anomalous is what has a p-value of at most {alpha:g}: of {n} images like the calibration "
        f"images, about {expected_rate(alpha, size) * n:.3g} are expected to."
    )
    yield (
        f"Compared with {size} calibration images of {calibration['date']}: the smallest possible "
        f"p-value is {1 / (1 + size):.2g}."
    )
    if document["certified_alpha"] is not None:
        yield (
            f"At p-values of at most {document['certified_alpha']:.4f} the rate of false alarms is "
            f"below {alpha:g} with 95% confidence."
        )
    if document["fdr"] is not None:
        count = sum(bool(row["discovery"]) for row in document["results"])
        yield f"{count} discoveries, of which about {document['fdr']:.0%} at most are false."
        yield from fdr_notes(n, document["fdr"], size)


def _histogram(document: Document) -> str:
    """p-values by bins, over the line that the calibration images' own make."""
    values = [row["p_value"] for row in document["results"] if row["p_value"] is not None]
    if not values:
        return ""
    counts = np.histogram(np.maximum(values, 1e-12), BINS, (0.0, 1.0))[0]
    expected = len(values) / BINS
    top, low = max(float(counts.max()), 1.5 * expected), EDGE + HEIGHT
    step = WIDTH / BINS
    bars = "".join(
        f'<rect x="{EDGE + i * step + 1:.1f}" y="{low - HEIGHT * count / top:.1f}" '
        f'width="{step - 2:.1f}" height="{HEIGHT * count / top:.1f}"><title>{count} images with p '
        f"from {i / BINS:g} to {(i + 1) / BINS:g}; {expected:.1f} expected</title></rect>"
        for i, count in enumerate(counts.tolist())
    )
    line = low - HEIGHT * expected / top
    return (
        f'<svg width="{WIDTH + 2 * EDGE}" height="{HEIGHT + 2 * EDGE}" role="img" aria-label="'
        f'Histogram of p-values">{bars}<line x1="{EDGE}" x2="{EDGE + WIDTH}" y1="{line:.1f}" '
        f'y2="{line:.1f}"/>'
        f'<text x="{EDGE}" y="{EDGE - 8}">images; the line: as many as of calibration images</text>'
        f'<text x="{EDGE}" y="{low + 16}">p = 0: unusual</text>'
        f'<text x="{EDGE + WIDTH}" y="{low + 16}" text-anchor="end">1: usual</text></svg>'
    )


def _classes(classes: Sequence[Document]) -> str:
    """A table of sub-folders; AUROC with its 95% interval by score."""
    if not classes:
        return ""
    names = list(dict.fromkeys(name for each in classes for name in each["detection"]))
    heads = ["sub-folder", "images", "anomalous", *(f"AUROC, {name}" for name in names)]
    if "verdict" in names:
        heads += ["AUPR, verdict", "false alarms at 95% found, verdict"]
    rows = []
    for each in classes:
        found = each["detection"]
        share = f"{each['anomalous']} ({each['anomalous'] / each['images']:.0%})"
        share += f", {each['undecided']} undecided" if each["undecided"] else ""
        cells = [each["class"] or "(none)", str(each["images"]), share]
        cells += [_figure(found.get(name, {}).get("auroc")) for name in names]
        if "verdict" in names:
            cells += [_figure(found.get("verdict", {}).get(kind)) for kind in ("aupr", "fpr95")]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    usual = any(each["normal"] for each in classes)
    why = "All images are usual" if usual else "No sub-folder is called good"
    note = "" if names else f"<p>{why}: none is compared with others.</p>"
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    return f"<h2>By sub-folder</h2><table><tr>{head}</tr>{''.join(rows)}</table>{note}"


def _figure(figure: Document | None) -> str:
    if figure is None:
        return ""
    ends = figure["interval"]
    return f"{figure['value']:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "")


def _roc(classes: Sequence[Document]) -> str:
    """Hits against false alarms of the verdict, a curve for each class."""
    curves = [
        (each["class"], each["detection"]["verdict"]["roc"])
        for each in classes
        if "verdict" in each["detection"]
    ]
    if not curves:
        return ""
    drawn = []
    for i, (name, corners) in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        points = " ".join(
            f"{EDGE + SQUARE * x:.1f},{EDGE + SQUARE * (1 - y):.1f}" for x, y in corners
        )
        drawn.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{2 * EDGE + SQUARE}" y="{EDGE + 14 + 16 * i}" style="fill:{colour}">'
            f"{escape(name or '(none)')}</text>"
        )
    return (
        f'<svg width="{SQUARE + 260}" height="{max(SQUARE + 2 * EDGE, 30 + 16 * len(curves))}" '
        'role="img" aria-label="Receiver operating characteristic">'
        f'<rect class="frame" x="{EDGE}" y="{EDGE}" width="{SQUARE}" height="{SQUARE}"/>'
        f'{"".join(drawn)}<text x="{EDGE}" y="{EDGE - 8}">share found</text>'
        f'<text x="{EDGE + SQUARE}" y="{EDGE + SQUARE + 16}" text-anchor="end">share of usual '
        "images called anomalous</text></svg>"
    )


def _hidden(document: Document, pictures: int) -> str:
    left = document["images"] - pictures
    if left <= 0:
        return ""
    return f"<p>Pictures of the {pictures} most unusual images; {left} more are listed without.</p>"


def _rows(document: Document, pictures: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    image = document["image"]
    scale = 96 / max(image["height"], image["width"])
    size = f'width="{image["width"] * scale:.0f}" height="{image["height"] * scale:.0f}"'
    for row in document["results"]:
        verdict = {True: "anomalous", False: "ordinary", None: "undecided"}[row["anomalous"]]
        told = verdict + (" (altered)" if row["altered"] else "")
        told += ", discovery" if row.get("discovery") else ""
        images = "".join(
            f'<td><img {size} loading="lazy" alt="{what}" src="data:image/png;base64,{data}"></td>'
            if data
            else "<td></td>"
            for data, what in zip(
                pictures.get(row["file"], ("", "")), ("the image", "its map"), strict=True
            )
        )
        cells = [
            row["file"],
            row["class"],
            shown(row["p_value"], ".4f"),
            told,
            shown(row["log_likelihood_nats"], ".1f"),
            shown(row["bits_per_dim"], ".3f"),
            _parts(row),
        ]
        texts = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        yield f'<tr class="{verdict}">{images}{texts}</tr>\n'


def _parts(row: Document) -> str:
    """The parts that stand out most, and where."""
    known = [(name, p) for name, p in row["evidence"].items() if p is not None]
    told = [
        f"{in_words(name)}: p {p:.3f}"
        for name, p in sorted(known, key=lambda each: each[1])[:PARTS]
    ]
    if (box := row["box"])["deviations"] is not None:
        told.append(f"box at {box['left']}, {box['top']}: {box['deviations']:+.1f} deviations")
    if row["note"]:
        told.append(row["note"])
    return "; ".join(told)


def in_words(name: str) -> str:
    """What a part of the evidence is, for who has not read the documentation."""
    kind, _, group = name.partition("/")
    return WORDS.get(name) or f"{WORDS[kind]} {group}"


def _unreadable(faults: Sequence[Document]) -> str:
    if not faults:
        return ""
    items = "".join(f"<li>{escape(fault_text(each))}</li>" for each in faults)
    return f"<h2>Not judged</h2><ul>{items}</ul>"
