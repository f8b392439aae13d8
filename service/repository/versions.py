"""Versions of models: which of two is newer, and ``name@version`` as requests write it.

Numbers compare as numbers (1.10.0 is newer than 1.9.0), missing ones count as zero (1.0 is 1.0.0),
a pre-release comes before its release (2.0.0-rc.1, 2.0.0rc1), and what follows ``+`` tells builds
apart without an order of importance, as in Semantic Versioning (semver.org, 2.0.0). Versions that
do not begin with a number are older than all that do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from service.errors import InvalidInput

__all__ = ["answering", "is_release", "newest_first", "split_reference", "version_key"]

NUMBERED = re.compile(r"[vV]?(\d+(?:\.\d+)*)(.*)", re.DOTALL)
WORDS = re.compile(r"\d+|[A-Za-z]+")

Word = tuple[int, int, str]
VersionKey = tuple[int, tuple[int, ...], int, tuple[Word, ...], str]


def version_key(version: str) -> VersionKey:
    """What `version` sorts by, oldest first; a total order: only equal texts have equal keys."""
    numbers, rest = _parts(version)
    if numbers is None:
        return (0, (), 0, _words(rest), version)
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return (1, tuple(numbers), 0 if rest else 1, _words(rest), version)


def is_release(version: str) -> bool:
    """Whether `version` is numbers alone: neither a pre-release nor a word."""
    numbers, rest = _parts(version)
    return numbers is not None and not rest


def newest_first(versions: Iterable[str]) -> list[str]:
    """Releases and the rest together, the newest in front."""
    return sorted(versions, key=version_key, reverse=True)


def answering(versions: Iterable[str]) -> str:
    """Which answers where none is named: the newest release, else the newest of all."""
    ordered = newest_first(versions)
    return next(filter(is_release, ordered), ordered[0])


def split_reference(name: str | None, version: str | None) -> tuple[str | None, str | None]:
    """Name and version from ``name@version``, or as given apart; None is the default one.

    Raises InvalidInput where both ways are used and disagree.
    """
    if name is None or "@" not in name:
        return name, version
    name, _, named = name.partition("@")
    if version is not None and version != named:
        raise InvalidInput(
            f"model says version {named[:80]!r} and version says {version[:80]!r}: give one"
        )
    return name, named


def _parts(version: str) -> tuple[list[int] | None, str]:
    """The leading numbers, and what follows them but for the build."""
    ordered = version.partition("+")[0]
    match = NUMBERED.fullmatch(ordered)
    if match is None:
        return None, ordered
    return [int(number) for number in match[1].split(".")], match[2]


def _words(text: str) -> tuple[Word, ...]:
    """Numbers before words, numbers by value: rc9 < rc10, alpha.1 < alpha.beta."""
    return tuple(
        (0, int(word), "") if word.isdigit() else (1, 0, word.lower())
        for word in WORDS.findall(text)
    )
