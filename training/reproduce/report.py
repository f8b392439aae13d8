"""From what a reproduction knows to its files: NAME.json, NAME.md and NAME.png.

The JSON document holds all that the others are drawn from, so that a table can be drawn again
anywhere (`redraw`) without its runs.
"""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.evaluate.report import markdown_table
from training.files import write_bytes, write_json, write_text
from training.fit.signals import signal_name, stoppable
from training.reproduce.toy_report import command_note, toy_markdown
from training.runs.directory import locked

__all__ = ["FORMAT", "markdown", "redraw", "reproduced", "summary", "write_report"]

FORMAT = 1
NOT_RUN = "not run"
UNREAD = "–"  # what the paper does not give, or cannot be read

LAYERS_NOTE = (
    "Validation split, one draw of the latents an image, averaged weights (EMA); the last point "
    "of each series, which the picture shows whole."
)

Document = Mapping[str, Any]


def write_report(out: Path, document: Document, *, plot: bool) -> None:
    """Write the document, its Markdown and, with `plot`, its picture, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    name = document["experiment"]
    write_json(out / f"{name}.json", document)
    write_text(out / f"{name}.md", markdown(document))
    if plot:
        from training.reproduce.figures import picture  # matplotlib takes seconds to import

        image = picture(document)
        if image is not None:
            write_bytes(out / f"{name}.png", image)


def reproduced(
    out: Path, work: Callable[[], str], document: Callable[[], dict[str, Any]]
) -> tuple[str, dict[str, Any]]:
    """Do the work in `out`, then write the report; an interruption loses only what it broke off.

    `work` gives why it ended; so does this ("done", "budget", "SIGINT" or "SIGTERM"), with the
    document that it wrote.
    """
    with locked(out), stoppable():
        try:
            reason = work()
        except KeyboardInterrupt as stop:
            reason = signal_name(stop)
        found = document()
        write_report(out, found, plot=True)
    return reason, found


def redraw(out: Path, name: str) -> Document:
    """Write OUT/NAME.md and .png again from OUT/NAME.json; raises `TrainingError`."""
    path = out / f"{name}.json"
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != FORMAT or document["experiment"] != name:
            raise ValueError(f"it is not a document of {name} in format {FORMAT}")
    except FileNotFoundError:
        raise TrainingError(f"{path} is missing: there is nothing to draw yet") from None
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} cannot be read: {error}") from error
    write_report(out, document, plot=True)
    found: Document = document
    return found


def markdown(document: Document) -> str:
    """The report in words and tables."""
    reports = {"table": _figures_report, "layers": _layers_report, "toy": toy_markdown}
    return "\n".join(reports[document["kind"]](document)) + "\n"


def summary(row: Mapping[str, Any], measure: str, unit: str) -> dict[str, Any] | None:
    """A row's figure over its runs, `{"value", "error"}`; None: nothing is measured.

    The error is the standard deviation over the runs; of one run, the standard error over images.
    """
    figures = [_figure(run["measured"], measure, unit) for run in row["runs"] if run["measured"]]
    if not figures:
        return None
    if len(figures) == 1:
        value, error = figures[0]
        return {"value": value, "error": error}
    values = [value for value, _ in figures]
    return {"value": statistics.fmean(values), "error": statistics.stdev(values)}


def _figure(measured: Mapping[str, Any], measure: str, unit: str) -> tuple[float, float | None]:
    estimate, nats = measured[measure], measured[measure]["standard_error_nats"]
    if unit == "nats":
        return estimate["value_nats"], nats
    error = None if nats is None else nats / (measured["dims"] * math.log(2))
    return estimate["bits_per_dim"], error


def _published(row: Mapping[str, Any], measure: str) -> str:
    figure = row["paper"].get(measure)
    if figure is None:
        return UNREAD
    deviation = figure["deviation"]
    return f"{figure['value']:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def _ours(row: Mapping[str, Any], measure: str, unit: str) -> str:
    found = summary(row, measure, unit)
    if found is not None:
        digits, error = 2 if unit == "nats" else 3, found["error"]
        spread = "" if error is None else f" ± {error:.{digits}f}"
        return f"**{found['value']:.{digits}f}{spread}**"
    if any(run["step"] for run in row["runs"]):
        return "not measured yet"
    return NOT_RUN


def _range(values: Sequence[float], form: Callable[[float], str]) -> str:
    """One number where all look alike, else the least and the greatest."""
    ends = list(dict.fromkeys(form(value) for value in (min(values), max(values))))
    return "–".join(ends)


def _effort(row: Mapping[str, Any]) -> list[str]:
    """Minutes, images seen, epochs, seeds and machines of a row, as cells."""
    runs = [run for run in row["runs"] if run["step"]]
    if not runs:
        return [""] * 5
    epochs = [run["epochs"] for run in runs if run["epochs"] is not None]
    machines = dict.fromkeys(name for run in runs for name in run["machines"])
    return [
        _range([run["minutes"] for run in runs], lambda minutes: f"{minutes:.1f}"),
        _range([run["images_seen"] for run in runs], lambda images: f"{images:,.0f}"),
        _range(epochs, lambda count: f"{count:.2f}".rstrip("0").rstrip(".")) if epochs else "",
        ", ".join(str(run["seed"]) for run in runs),
        "; ".join(machines),
    ]


def _figures_report(document: Document) -> list[str]:
    unit, measures = document["unit"], document["measures"]
    headings = list(document["columns"])
    for name in measures.values():
        headings += [f"{name}, paper", f"{name}, ours"]
    headings += ["minutes", "images seen", "epochs", "seeds", "machine"]
    rows = []
    for row in document["rows"]:
        cells = list(row["cells"])
        for measure in measures:
            cells += [_published(row, measure), _ours(row, measure, unit)]
        rows.append(cells + _effort(row))
    better = "higher" if unit == "nats" else "lower"
    lines = [f"# {document['title']}", "", f"In {unit}, {better} is better.", ""]
    if document["across"]:
        lines += [_overview(document), ""]
    return [*lines, markdown_table(headings, rows), "", *_notes(document)]


def _overview(document: Document) -> str:
    """The paper's own layout: rows pivoted over the column `across`, "paper / ours"."""
    columns, unit = document["columns"], document["unit"]
    at = columns.index(document["across"])
    measure = next(iter(document["measures"]))
    across = list(dict.fromkeys(row["cells"][at] for row in document["rows"]))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in document["rows"]:
        rest = tuple(cell for i, cell in enumerate(row["cells"]) if i != at)
        both = f"{_published(row, measure)} / {_ours(row, measure, unit)}"
        lines.setdefault(rest, {})[row["cells"][at]] = both
    headings = [name for i, name in enumerate(columns) if i != at]
    headings += [f"{document['across']} {value}: paper / ours" for value in across]
    table = [[*rest, *(cells.get(value, "") for value in across)] for rest, cells in lines.items()]
    return markdown_table(headings, table)


def _protocol_note(document: Document) -> str:
    protocol = document["protocol"]
    example = next(
        (run["measured"] for row in document["rows"] for run in row["runs"] if run["measured"]),
        None,
    )
    if example is not None:
        return f"Ours: averaged weights (EMA); {example['protocol']}"
    return (
        f"Ours will be measured on the {protocol['split']} split with "
        f"K = {protocol['importance_samples']}, seed {protocol['seed']}."
    )


def _notes(document: Document) -> list[str]:
    notes = [_protocol_note(document)]
    notes.append(
        "± is the standard error over the images for one seed, the standard deviation over the "
        "seeds for several."
    )
    runs = [run for row in document["rows"] for run in row["runs"] if run["measured"]]
    if any(run["step"] != run["measured_step"] for run in runs):
        notes.append("Some rows have been trained further since they were measured.")
    return [f"- {note}" for note in [*notes, *_common_notes(document)]]


def _common_notes(document: Document) -> list[str]:
    notes = [
        f"Training planned: {document['plan']}; minutes are from a slice's first step to its last."
    ]
    if document["trained_on"] != [document["dataset"]]:
        notes.append(
            f"The paper's figures are of {document['dataset']}, ours of "
            f"{', '.join(document['trained_on'])}: they do not compare."
        )
    return [*notes, *document["notes"], command_note(document)]


def _layers_report(document: Document) -> list[str]:
    headings = [*document["columns"], "epochs", "reconstruction, nats", "KL, nats", "bits/dim"]
    headings += ["layers above 1 nat", "minutes", "images seen", "seeds", "machine"]
    rows = [_layers_row(row) for row in document["rows"]]
    return [
        f"# {document['title']}",
        "",
        markdown_table(headings, rows),
        "",
        f"- {LAYERS_NOTE}",
        *(f"- {note}" for note in _common_notes(document)),
    ]


def _layers_row(row: Mapping[str, Any]) -> list[str]:
    minutes, images, epochs, seeds, machines = _effort(row)
    measured = next((run["measured"] for run in row["runs"] if run["measured"]), None)
    if measured is None:
        found = ["not measured yet" if minutes else NOT_RUN, "", "", ""]
    else:
        last = measured["points"][-1]
        layers = last["kl_nats"].values()
        found = [
            f"{last['reconstruction_nats']:.1f}",
            f"{math.fsum(layers):.1f}",
            f"{last['bits_per_dim']:.4f}",
            f"{sum(nats > 1 for nats in layers)} of {len(layers)}",
        ]
    return [*row["cells"], epochs, *found, minutes, images, seeds, machines]
