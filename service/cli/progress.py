"""A bar while a command works, on the terminal alone: what it prints goes elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from service.codecs.folders import printable

__all__ = ["shown"]


@contextmanager
def shown(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show that `what` goes on, and of `total` how many are done; gives what counts them.

    Gone when it ends, and never there where standard error is no terminal.
    """
    console = Console(stderr=True)
    columns = [SpinnerColumn(), TextColumn(printable(what), markup=False)]
    if total is not None:
        columns += [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
