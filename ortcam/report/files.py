"""The three files of a report: their names, and whether files of these names may be replaced."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

from ortcam.errors import OccupiedError, OutputError
from ortcam.model.png import MAGIC

TABLE, SHEET = "results.csv", "overview.png"
_MARK = "Software\0ortcam report"


def check_free(marks: Mapping[Path, str], unknown: str, overwrite: bool) -> None:
    """Raise an error if a page and the files beside it would replace a directory, or files that it did not write.

    The files beside a page belong to it only while it is there: a second page in the folder would replace them.

    Args:
        marks: a text at the beginning of each file of the kind, the page first.
        unknown: what to say of a file that does not have it.
        overwrite: replace other files too, but no directory.
    """
    page = next(iter(marks))
    try:
        if page.is_dir():
            raise OutputError(f"cannot write {page}: it is a directory; give the name of a file")
        known = {file: begins_with(file, mark, 2000) for file, mark in marks.items() if file.exists()}
    except OSError as error:
        raise OutputError(f"cannot write {page}: {error.strerror or error}") from error
    for file, is_known in known.items():
        if overwrite or (is_known and known.get(page, False)):
            continue
        reason = "another report wrote it" if is_known else unknown
        raise OccupiedError(
            f"cannot write {file}: a file of this name exists, and {reason}; give another folder or name, or "
            "overwrite=True (--overwrite)"
        )


def check_sheet(sheet: Path) -> None:
    """Raise an error if a contact sheet would replace a picture that no report wrote."""
    if sheet.exists() and not is_sheet(sheet):  # it may be a photo, even one to explain
        raise OccupiedError(
            f"cannot write {sheet}: a picture of this name exists, and no report wrote it; give another folder"
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


def begins_with(path: Path, text: str, length: int) -> bool:
    """Return whether a path is a file with a text among its first `length` bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return text.encode() in file.read(length)
