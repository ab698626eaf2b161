"""The three files of a report: their names, and whether files of these names may be replaced."""

from __future__ import annotations

from pathlib import Path

from ortcam.errors import OccupiedError, OutputError
from ortcam.report.entries import COLUMNS

TABLE, SHEET = "results.csv", "overview.png"
_GENERATOR = '<meta name="generator" content="ortcam report">'


def check_free(path: Path, overwrite: bool) -> None:
    """Raise an error if a report at this path would replace a directory, or files that are no report."""
    try:
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a directory; give the name of a file")
        ours = path.is_file() and begins_with(path, _GENERATOR, 2000)
        others = [path] if path.exists() and not ours else []
        table, sheet = path.with_name(TABLE), path.with_name(SHEET)
        has_table = _is_table(table)
        others += [table] if table.exists() and not has_table else []
        others += [sheet] if sheet.exists() and not (ours or has_table) else []
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    if others and not overwrite:
        raise OccupiedError(
            f"cannot write {others[0]}: a file of this name exists, and no report wrote it; give another folder or "
            "name, or overwrite=True (--overwrite)"
        )


def is_sheet(path: Path) -> bool:
    """Return whether a picture is the contact sheet of a report, which is no photo to explain."""
    return path.name == SHEET and _is_table(path.with_name(TABLE))


def _is_table(path: Path) -> bool:
    return begins_with(path, ",".join(COLUMNS), 500)


def begins_with(path: Path, text: str, length: int) -> bool:
    """Return whether a path is a file with a text among its first `length` bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return text.encode() in file.read(length)
