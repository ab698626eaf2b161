"""What goes to the screen: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.table import Table


debug = False  # whether --debug was given


def fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def note(message: str) -> None:
    print(message, file=sys.stderr)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def make_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return a table without borders; the columns in `right` hold numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def print_table(table: Table) -> None:
    from rich.console import Console

    # A pipe has no width: keep every row on one line there.
    Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False).print(table)


class Advance(Protocol):
    """Moves a progress bar: what is being worked on (empty for what was), how much is done (None likewise)."""

    def __call__(self, description: str, done: float | None) -> None: ...


@contextmanager
def progress_bar(total: float) -> Iterator[Advance]:
    """Show a progress bar on standard error while the block runs; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda description, done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda description, done: progress.update(task, description=description or None, completed=done)
