"""Pages of documentation: their fenced blocks, and the comment before each that says how it is run.

    <!-- example: run -->          a shell or Python block; what it prints is kept
    <!-- example: run, exit 3 -->  the same, where that is its exit code
    <!-- example: output -->       what the block before has printed
    <!-- example: serve -->        a server that is started, and ended by SIGTERM after the page
    <!-- example: parse -->        commands whose options exist; too slow, or too large, to run
    <!-- example: not run: WHY --> neither; says why

Blocks of one page share a directory, in order, and a server on the bundles that ship. Kept
libraries (sybil, pytest-examples, mktestdocs) are made for Python's own examples, not for shells,
servers and outputs that may differ in their last digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CODE", "Block", "abridged", "agree", "blocks", "commands"]

CODE = {"sh", "bash", "python", "text", "json", "console", ""}  # what needs a comment
BLOCK = re.compile(
    r"(?:^<!-- example: (?P<how>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)")


@dataclass(frozen=True)
class Block:
    """One fenced block; `how` is the comment before it, "" where there is none."""

    page: Path
    line: int
    language: str
    text: str
    how: str

    @property
    def where(self) -> str:
        """For people."""
        return f"{self.page.name}:{self.line}"

    @property
    def kind(self) -> str:
        """The first word of `how`."""
        return re.split(r"[,:]", self.how)[0]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page=page,
            line=text.count("\n", 0, match.start()) + 1,
            language=match["language"],
            text=match["text"],
            how=match["how"] or "",
        )
        for match in BLOCK.finditer(text)
    ]


def commands(text: str) -> list[str]:
    """The command lines of a shell block: continued lines joined, comments left out."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = [re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines()]
    return [line for line in lines if line]


def agree(printed: str, documented: str) -> bool:
    """Whether a page shows what was printed.

    Numbers may differ by half of their last digit that is shown, or a part in 500: machines round
    differently. A line `...` stands for any lines. Space between words does not count.
    """
    parts = [_words(part) for part in re.split(r"^\.\.\.$", documented, flags=re.MULTILINE)]
    found = _words(printed)
    if len(parts) == 1:
        return _same(found, parts[0])
    first, *middle, last = parts
    if not _same(found[: len(first)], first) or not _same(found[len(found) - len(last) :], last):
        return False
    rest = found[len(first) : len(found) - len(last)]
    for part in middle:
        starts = range(len(rest) - len(part) + 1)
        at = next((i for i in starts if _same(rest[i : i + len(part)], part)), None)
        if at is None:
            return False
        rest = rest[at + len(part) :]
    return True


def abridged(printed: str, documented: str) -> str:
    """What was printed, with as many lines left out for a line `...` as the page leaves out."""
    lines, shown = printed.rstrip().splitlines(), documented.rstrip().splitlines()
    if "..." in shown:
        start = shown.index("...")
        stop = len(lines) - (len(shown) - start - 1)
        lines[start:stop] = ["..."]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _words(text: str) -> list[str]:
    # How many blanks NumPy writes within brackets depends on the last digits of its numbers.
    return re.sub(r"(?<=\[)\s+|\s+(?=\])", "", text).split()


def _same(found: list[str], wanted: list[str]) -> bool:
    return len(found) == len(wanted) and all(map(_same_word, found, wanted))


def _same_word(found: str, wanted: str) -> bool:
    if NUMBER.sub("#", found) != NUMBER.sub("#", wanted):
        return False
    pairs = zip(NUMBER.findall(found), NUMBER.findall(wanted), strict=True)
    return all(_close(one, other) for one, other in pairs)


def _close(found: str, wanted: str) -> bool:
    step = 10.0 ** -len(wanted.partition(".")[2]) if "." in wanted else 0.0
    return abs(float(found) - float(wanted)) <= max(0.51 * step, abs(float(wanted)) / 500)
