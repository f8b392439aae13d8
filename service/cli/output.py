"""What the commands of `iafvae` print: scores, and what a bundle holds."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.bundle import Bundle, load_bundle, manifest_to_json
from service.cli.options import print_json
from service.codecs.folders import printable

__all__ = [
    "box_text",
    "counted",
    "csv_text",
    "fault_text",
    "print_rows",
    "print_scores",
    "print_table",
    "show_bundle",
    "shown",
]

Row = dict[str, Any]

HEADS = ("file", "log p(x)", "± s.e.", "bits/dim", "p-value", "verdict")
SHORT = ("file", "p-value", "verdict")
NARROW = 72  # columns of a terminal: in fewer there is room for the short table alone
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a cell that is computed begins with
UNBOUNDED = 10_000  # columns of what is no terminal: a program that reads it wants whole lines


def csv_text(rows: list[Row]) -> str:
    """Rows as CSV, what has parts in a column for each; "error" is the last one.

    Text that a spreadsheet program would compute, as a file called "=1+1.png", has "./" before it,
    with which it names the same file.
    """
    rows = [dict(_flat(row)) for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row if name != "error"))
    text = _Lines()
    writer = csv.DictWriter(text, [*names, "error"], restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return "".join(text)


class _Lines(list[str]):
    """Where a csv writer whose lines end with CR and LF writes, so that it quotes names that hold
    either; kept are lines that end as others do here."""

    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


def _flat(row: Row) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{part}", each) for part, each in _flat(value))
        else:
            is_formula = isinstance(value, str) and value.startswith(FORMULA)
            yield name, f"./{value}" if is_formula else value


def print_scores(rows: list[Row]) -> None:
    """Rows of `score_files` as a table on standard output, and what is to be known of them."""
    console = _console()
    heads = SHORT if console.width < NARROW else HEADS
    table = Table()
    for name in heads:
        words = name in ("file", "verdict")
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    for row in rows:
        cells = dict(zip(HEADS, _cells(row), strict=True))
        table.add_row(*(cells[name] for name in heads))
    print_table(table)
    for row in rows:
        if "error" in row:
            console.print(Text(printable(fault_text(row)), style="red"))
    scored = [row for row in rows if "error" not in row]
    for note in _notes(scored):
        console.print(Text(printable(note)))
    if scored:
        console.print(Text(printable(_by(scored[0])), style="dim"), soft_wrap=True)


def _console() -> Console:
    console = Console()
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(width=UNBOUNDED)


def print_table(table: Table) -> None:
    """On standard output, without the blanks that fill its last column."""
    console = _console()
    with console.capture() as printed:
        console.print(table)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in printed.get().splitlines()))


def counted(number: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def fault_text(row: Mapping[str, Any]) -> str:
    """Why a file has no score; most errors begin with its name, which is not said twice."""
    file, error, name = row["file"], row["error"], Path(row["file"]).name
    return file + error.removeprefix(name) if error.startswith(f"{name} ") else f"{file}: {error}"


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    """What is to be known of files: what is alike for many is said once."""
    alike: dict[str, list[str]] = {}
    for row in rows:
        if row["note"] is not None:
            note = row["note"].removeprefix(Path(row["file"]).name)
            alike.setdefault(note, []).append(row["file"])
    for note, files in alike.items():
        yield files[0] + (f" (and {len(files) - 1} more)" if files[1:] else "") + note


def _by(row: Row) -> str:
    """One line on the estimator, K, seed, threshold and calibration of all rows."""
    text = f"{row['estimator']}, K = {row['importance_samples']}, seed {row['seed']}"
    if row["calibration"] is None:
        return text
    text += f"; anomalous: p <= {row['alpha']:g}"
    if row["certified_alpha"] is not None:
        text += f" (certified: {row['certified_alpha']:.4f})"
    images, name = row["calibration"]["images"], row["calibration"]["name"]
    return f"{text}, among {images} images ({name}, {row['calibration']['date']})"


def _cells(row: Row) -> list[Text]:
    """Texts, not strings: rich takes brackets in strings, as in a file's name, for its markup."""
    file = Text(printable(row["file"]))
    if "error" in row:
        return [file, *[Text()] * 4, Text("not scored, see below", style="red")]
    verdict = "anomalous" if row["anomalous"] else "ordinary"
    if row["anomalous"] is None:
        verdict = "no decision: " + row["status"].replace("_", " ")
    elif row["altered"]:
        verdict += " (altered image)"
    if row.get("discovery"):
        verdict += ", discovery"
    return [
        file,
        Text(shown(row["log_likelihood_nats"], ".2f")),
        Text(shown(row["standard_error_nats"], ".2f")),
        Text(shown(row["bits_per_dim"], ".4f")),
        Text(shown(row["p_value"], ".4f")),
        Text(printable(verdict), style="yellow" if row["anomalous"] else ""),
    ]


def box_text(box: Row) -> str:
    """Where an image stands out most, by how much, and how unusual that is."""
    side, where = box["side"], f"{box['left']}, {box['top']}"
    if None in (box["deviations"], box["p_value"]):
        return "its map holds what is no number"
    off, p = f"{box['deviations']:+.1f} deviations", f"p = {box['p_value']:.4f}"
    return f"the largest box, {side}x{side} at {where}: {off}, {p}"


def shown(value: float | None, form: str) -> str:
    """A number in a table; nothing where there is none."""
    return "" if value is None else format(value, form)


def show_bundle(path: Path, *, as_json: bool) -> None:
    """The manifest as JSON, or what people ask of it as a table."""
    bundle = load_bundle(path)
    if as_json:
        print_json(manifest_to_json(bundle.manifest))
        return
    print_rows([((name, "bold"), value) for name, value in _facts(bundle)])


def print_rows(rows: Sequence[Sequence[str | tuple[str, str]]]) -> None:
    """Columns without heads on standard output; a cell is a text, or a text and its style."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for _ in rows[0]:
        table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*map(_styled, row))
    print_table(table)


def _styled(cell: str | tuple[str, str]) -> Text:
    text, style = (cell, "") if isinstance(cell, str) else cell
    return Text("\n".join(map(printable, text.split("\n"))), style=style)


def _facts(bundle: Bundle) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    image = manifest.image
    yield "model", f"{manifest.name} {manifest.version}: {manifest.description}"
    yield "hash", bundle.hash
    yield "license", manifest.license
    yield "images", f"{image.channels}x{image.height}x{image.width}, {image.levels} levels"
    yield "likelihood", manifest.likelihood.kind
    groups = ", ".join(
        f"{g.name} {g.channels}x{g.height}x{g.width}" for g in manifest.latent.groups
    )
    yield "latents", f"{manifest.latent.dim}: {groups}"
    yield "parameters", f"{manifest.parameters:,} ({manifest.precision}, opset {manifest.opset})"
    samples = ", ".join(map(str, manifest.scoring.calibrated_importance_samples))
    known = manifest.calibration
    yield "calibrated", f"K = {samples} on {known.images} images" if known and samples else "not"
    for figure in manifest.evaluation:
        value = f"{figure.value_nats:.2f} ± {figure.standard_error_nats:.2f} nats"
        where = f"{figure.bits_per_dim:.4f} bits/dim on {figure.images} {figure.split} images"
        yield f"{figure.estimator}, K = {figure.importance_samples}", f"{value}, {where}"
