"""Print to the screen: results to standard output, everything else to standard error.

Names of files and labels may hold any character. Control characters in them are shown as escapes.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ortcam.errors import printable

if TYPE_CHECKING:
    from rich.table import Table


debug = False  # whether --debug was given


def fail(message: str) -> None:
    print(f"error: {printable(message)}", file=sys.stderr)


def warn(message: str) -> None:
    print(f"warning: {printable(message)}", file=sys.stderr)


def note(message: str) -> None:
    print(printable(message), file=sys.stderr)


def say(line: str = "") -> None:
    """Print a line of a result."""
    print(printable(line))


def about(name: str, error: Exception) -> str:
    """Return the message of an error about a file, with the file's name before it if the message has no name."""
    message = str(error)
    return message if printable(Path(name).name) in message else f"{printable(name)}: {message}"


def print_json(value: Any) -> None:
    """Print JSON. It holds names as they are: control characters have the escapes of JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print(re.sub(r"[^\n -~]", lambda found: _in_json(found[0]), text))


def _in_json(character: str) -> str:
    return character if printable(character) == character else f"\\u{ord(character):04x}"


def make_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return a table without borders; the columns in `right` hold numbers, which never break over two lines."""
    from rich import box
    from rich.table import Table

    class Escaped(Table):
        def add_row(self, *cells: Any, **options: Any) -> None:
            super().add_row(*(printable(cell) if isinstance(cell, str) else cell for cell in cells), **options)

    table = Escaped(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
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
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda description, done: progress.update(
            task, description=printable(description) or None, completed=done
        )
