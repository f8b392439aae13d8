"""Help of all commands: types as people write them, where typer names those of Python."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperCommand

__all__ = ["PLAIN", "plain_help"]

# Of every command's `typer.Typer`.
PLAIN: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 80},
}
TYPE = re.compile(r"<(list\[)?(\w+)(?: range)?\]?>")


def plain_help(app: typer.Typer) -> None:
    """Let every command of `app` show `<path>`, `<int>`, `<str>...` for a value.

    typer shows `<Path>` for an option with a parser, `<int range>`, `<list[str]>`.
    """
    for command in app.registered_commands:
        command.cls = _Command
    for group in app.registered_groups:
        if group.typer_instance is not None:
            plain_help(group.typer_instance)


class _Command(TyperCommand):
    def get_help(self, ctx: Any) -> str:
        lines = TYPE.sub(_plain, super().get_help(ctx)).splitlines()
        return "\n".join(line.rstrip() for line in lines)


def _plain(type_: re.Match[str]) -> str:
    """The type in as many columns, so that what follows stays in its own."""
    several, name = type_.groups()
    text = f"<{name.lower()}>{'...' if several else ''}"
    return text.ljust(len(type_[0]))
