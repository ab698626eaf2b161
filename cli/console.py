"""Print to the screen: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import shutil
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
    """Return a table without borders; the columns in `right` hold numbers, which never break over two lines."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for column in columns:
        number = column in right
        table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number)
    return table


def table_width() -> int:
    """Return the width of the terminal in characters; 160 for a pipe, so that every row stays on one line."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 160


def print_table(table: Table) -> None:
    from rich.console import Console

    Console(width=table_width(), markup=False, highlight=False).print(table)


class Advance(Protocol):
    """Moves a progress bar: the current item (empty: unchanged), and the part that is done (None: unchanged)."""

    def __call__(self, description: str, done: float | None) -> None: ...


@contextmanager
def progress_bar(total: float) -> Iterator[Advance]:
    """Show a progress bar on standard error while the block runs; show nothing if it is not a terminal."""
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
