"""The settings as a table: what an operator can set, what is in force, what it means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from service.cli.options import print_json
from service.cli.output import print_table
from service.settings import PREFIX, SHIPPED_DEFAULT, SHIPPED_MODELS, Settings

__all__ = ["Setting", "markdown_page", "print_settings", "settings_in_force"]

HEAD = """\
# Settings

Every setting of `iafvae serve` is an environment variable; the commonest are options, too, and
options win (`iafvae serve --help`). A variable `IAFVAE_*` that is none of these is an error that
names it. Durations are in seconds, a year at most, sizes in bytes, lists have commas.
`iafvae settings` prints this table with the values in force, `iafvae settings --json` the same for
programs.

`IAFVAE_KEY` and `IAFVAE_DATA_DIR` are no settings of the service: the first is the key that the
command line sends with `--url`, the second says where `training/slices.sh` and the tests find data
sets.

This page is written by `iafvae settings --markdown > docs/settings.md`.

| variable | default | meaning |
|---|---|---|
"""


class Setting(NamedTuple):
    """One setting; `value` is in force, and as the variable would be written."""

    variable: str
    value: str
    default: str
    meaning: str


def settings_in_force(settings: Settings) -> Iterator[Setting]:
    """All settings, in the order of their declaration."""
    for name, field in Settings.model_fields.items():
        yield Setting(
            variable=PREFIX + name.upper(),
            value=_text(getattr(settings, name)),
            default=_text(SHIPPED_DEFAULT if name == "default_model" else field.default),
            meaning=" ".join((field.description or "").split()),
        )


def _text(value: Any) -> str:
    """A value as its variable would be written; "" where nothing is set."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def markdown_page() -> str:
    """The page docs/settings.md: defaults and meanings, whatever is in force here."""
    text = HEAD
    for one in settings_in_force(Settings.model_construct()):
        default = f"`{one.default}`" if one.default else "none"
        if one.default == str(SHIPPED_MODELS):
            default = "the models that ship"
        text += f"| `{one.variable}` | {default} | {one.meaning} |\n"
    return text


def print_settings(settings: Settings, *, as_json: bool) -> None:
    """Every setting with the value in force; what differs from its default is marked."""
    found = list(settings_in_force(settings))
    if as_json:
        print_json([one._asdict() for one in found])
        return
    table = Table("variable", "in force", "meaning", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    table.columns[1].overflow = "fold"
    for one in found:
        changed = one.value != one.default
        shown = _shown(one.value)
        if changed:
            shown += f" (default: {_shown(one.default)})"
        style = "bold" if changed else ""
        table.add_row(Text(one.variable, style), Text(shown, style), Text(one.meaning))
    print_table(table)


def _shown(value: str) -> str:
    """As it is, but the directory that ships without where it is installed."""
    if value == str(SHIPPED_MODELS):
        return f".../{SHIPPED_MODELS.parent.name}/{SHIPPED_MODELS.name}"
    return value or "none"
