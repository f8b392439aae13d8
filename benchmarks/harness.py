"""What the programs share: command lines, JSON files, and tables."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.files import write_text


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a program's own text, as it is written."""
    kind = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=text, formatter_class=kind)


def write_json(path: Path, document: object) -> None:
    """Write JSON, whole or not at all, making its directory; figures may be nan."""
    text = json.dumps(document, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def read_json(path: Path) -> Any:
    """What `write_json` wrote; None where there is no file. Ends the program on anything else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SystemExit(f"{path} is no JSON ({error}); remove it, or name another") from None


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, aligned for reading as text, too; the first `left` columns hold words."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rules = ["-" * (width + 2) for width in widths[:left]]
    rules += ["-" * (width + 1) + ":" for width in widths[left:]]
    return "\n".join([line(head), f"|{'|'.join(rules)}|", *map(line, rows)])
