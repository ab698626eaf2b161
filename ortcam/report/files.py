"""The three files of a report: their names, and whether files of these names may be replaced."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from ortcam.errors import OccupiedError, OutputError
from ortcam.model.png import MAGIC
from ortcam.report.entries import COLUMNS

TABLE, SHEET = "results.csv", "overview.png"
_MARK = "Software\0ortcam report"
_GENERATOR = '<meta name="generator" content="ortcam report">'


def check_free(path: Path, overwrite: bool) -> None:
    """Raise an error if a report at this path would replace a directory, or files that are no report."""
    try:
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a directory; give the name of a file")
        ours = path.is_file() and begins_with(path, _GENERATOR, 2000)
        others = [path] if path.exists() and not ours else []
        table, sheet = path.with_name(TABLE), path.with_name(SHEET)
        others += [table] if table.exists() and not (ours and _is_table(table)) else []
        is_foreign = sheet.exists() and not is_sheet(sheet)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    if is_foreign:  # it may be a photo, even one to explain
        raise OccupiedError(
            f"cannot write {sheet}: a picture of this name exists, and no report wrote it; give another folder"
        )
    if others and not overwrite:
        raise OccupiedError(
            f"cannot write {others[0]}: a file of this name exists, and this report did not write it; give another "
            "folder or name, or overwrite=True (--overwrite)"
        )


def is_sheet(path: Path) -> bool:
    """Return whether a picture is the contact sheet of a report, which is no photo to explain."""
    return path.name == SHEET and begins_with(path, _MARK, 200)


def marked(png: bytes) -> bytes:
    """Return a PNG that says that a report made it: a text chunk behind the header, as PNG's standard has it."""
    body = b"tEXt" + _MARK.encode("latin-1")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    end = len(MAGIC) + 25  # the signature, and the chunk IHDR: 4 + 4 + 13 + 4 bytes
    return png[:end] + chunk + png[end:]


def _is_table(path: Path) -> bool:
    return begins_with(path, ",".join(COLUMNS), 500)


def begins_with(path: Path, text: str, length: int) -> bool:
    """Return whether a path is a file with a text among its first `length` bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return text.encode() in file.read(length)
