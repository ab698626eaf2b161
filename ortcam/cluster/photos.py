"""The photos of a job: found once, kept in a Parquet file whose row groups are the parts of the job."""

from __future__ import annotations

import csv
import glob
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from ortcam.cluster import uris
from ortcam.cluster.names import name_to_text, text_to_name
from ortcam.errors import OptionError, one_line
from ortcam.model.image import SUFFIXES

_TABLES = (".parquet", ".csv")
_READ_BYTES = 1 << 20  # of a table at once
_READ_ROWS = 16  # photos of a table in memory at once, beside those of the part
# `table`, `row_group` and `row` say where a photo's bytes are; null for a photo in a file of its own.
LIST_SCHEMA = pa.schema([("path", pa.string()), ("table", pa.string()), ("row_group", pa.int32()), ("row", pa.int32())])


@dataclass(frozen=True)
class Columns:
    """The columns of tables that name photos.

    Attributes:
        path: names each photo; it is the path, unless there is the other column.
        data: holds the bytes of each photo's file.
    """

    path: str = "path"
    data: str = "bytes"


@dataclass(frozen=True, slots=True)
class Entry:
    """A photo of a job.

    Attributes:
        path: its path or name, as text (`ortcam.cluster.names`).
        table: the Parquet file that holds its bytes, as text; None for a photo in a file of its own.
        row_group, row: where the bytes are in `table`; the row counts from the beginning of the row group.
    """

    path: str
    table: str | None = None
    row_group: int | None = None
    row: int | None = None


def find_photos(given: Sequence[str], columns: Columns) -> list[Entry]:
    """Return every photo that is named, each path once, in a fixed order.

    Args:
        given: photos; folders, with the pictures in them and below them; tables, .parquet or .csv, with a column of
            paths or bytes; patterns of these with *, **, ? and [ ]; each a path, or a URI such as s3://bucket/photos,
            where ? begins options.
        columns: the columns of tables.

    Raises:
        OptionError: something is missing, cannot be read, or holds no photos; a table names a photo twice.
    """
    found: dict[str, Entry] = {}
    for text in given:
        empty = True
        for entry in _found(text, columns):
            empty = False
            known = found.setdefault(entry.path, entry)
            if known != entry:  # the same name of other bytes
                raise OptionError(
                    f"{entry.path} is given twice, by {known.table or 'its file'} and {entry.table or 'its file'}; "
                    "expected it once"
                )
        if empty:
            raise OptionError(f"{name_to_text(text)} holds no photos; expected files such as .jpg, or a table of paths")
    return list(found.values())


def _found(text: str, columns: Columns) -> Iterator[Entry]:
    if "://" in text:
        yield from _found_by_uri(text, columns)
        return
    is_pattern = glob.has_magic(text) and not os.path.lexists(text)
    for match in sorted(glob.glob(text, recursive=True)) if is_pattern else [text]:  # noqa: PTH207 - names alone
        path = os.path.abspath(match)  # noqa: PTH100 - links stay as they are
        if os.path.isdir(path):  # noqa: PTH112 - names alone: there may be millions
            yield from map(Entry, map(name_to_text, _pictures_in(path)))
        elif not os.path.exists(path):  # noqa: PTH110
            raise OptionError(f"cannot read {name_to_text(match)}: no such file; expected photos, a folder or a table")
        elif path.lower().endswith(_TABLES):
            yield from _in_table(path, None, columns)
        else:
            yield Entry(name_to_text(path))


def _pictures_in(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder, onerror=_refuse):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(parent, name)  # noqa: PTH118
            if _is_picture(name) and os.path.isfile(path):  # noqa: PTH113
                yield path


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")  # noqa: PTH122


def _refuse(error: OSError) -> None:
    raise OptionError(f"cannot read {name_to_text(str(error.filename))}: {error.strerror}")


def _found_by_uri(text: str, columns: Columns) -> Iterator[Entry]:
    try:
        folder, pattern = uris.split_pattern(text)
        system, path = uris.open_uri(folder)
        (info,) = system.get_file_info([path])
        is_folder = bool(pattern) or info.type == fs.FileType.Directory
        infos = system.get_file_info(fs.FileSelector(path, recursive=True)) if is_folder else [info]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise OptionError(f"cannot read {name_to_text(text)}: {one_line(error)}") from error
    if info.type == fs.FileType.NotFound:
        raise OptionError(f"cannot read {text}: no such file; expected photos, a folder or a table")
    for info in sorted((one for one in infos if one.type == fs.FileType.File), key=lambda one: one.path):
        name = info.path.removeprefix(path.rstrip("/") + "/")
        if not is_folder or _is_named(name.split("/"), pattern):
            uri = uris.join(folder, name) if is_folder else text
            yield from _in_table(uri, system, columns) if info.path.lower().endswith(_TABLES) else [Entry(uri)]


def _is_named(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a pattern matches a file below a folder, or matches one of its folders and it is a picture."""
    is_picture = _is_picture(names[-1])
    if not pattern:
        return is_picture
    return any(uris.matches(pattern, names[:end]) for end in range(0 if is_picture else len(names), len(names) + 1))


def _in_table(table: str, system: fs.FileSystem | None, columns: Columns) -> Iterator[Entry]:
    """Yield the photos of a table. Relative paths start at the folder of the table.

    Raises:
        OptionError: it cannot be read, lacks a column, or names a photo twice.
    """
    shown, named = name_to_text(table), set[str]()
    try:
        is_csv = (uris.path_of(table) if system else table).lower().endswith(".csv")
        rows = _csv_rows(table, system, columns) if is_csv else _parquet_rows(table, columns)
        for number, (name, row_group, row) in enumerate(rows):
            if name is None or not name:
                raise OptionError(f"row {number} of {shown} has no {columns.path}; expected the name of a photo")
            if row_group is None:
                yield Entry(_beside(table, name))
                continue
            text = name_to_text(name)
            if text in named:
                raise OptionError(f"{text} stands twice in {shown}; expected another {columns.path} in every row")
            named.add(text)
            yield Entry(text, shown, row_group, row)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise OptionError(f"cannot read {shown}: {one_line(error)}") from error


def _beside(table: str, name: str) -> str:
    if "://" in name:
        return name_to_text(name)
    if "://" in table:
        return name_to_text(name) if name.startswith("/") else uris.beside(table, name)
    return name_to_text(os.path.join(os.path.dirname(table), name))  # noqa: PTH118, PTH120


def _csv_rows(table: str, system: fs.FileSystem | None, columns: Columns) -> Iterator[tuple[Any, None, None]]:
    if system is None:
        data = Path(table).read_bytes()
    else:
        with system.open_input_stream(uris.open_uri(table)[1]) as stream:
            data = stream.read()
    # Not splitlines(): a name may hold a line break in quotes, or a form feed.
    reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline=""))
    if columns.path not in (reader.fieldnames or ()):
        raise OptionError(_lacks(table, columns, reader.fieldnames or ()))
    for row in reader:
        yield row[columns.path], None, None


def _parquet_rows(table: str, columns: Columns) -> Iterator[tuple[Any, int | None, int | None]]:
    with open_parquet(name_to_text(table)) as file:
        names = file.schema_arrow.names
        if columns.path not in names:
            raise OptionError(_lacks(table, columns, names))
        holds_bytes = columns.data in names
        if holds_bytes and not _is_binary(kind := file.schema_arrow.field(columns.data).type):
            raise OptionError(
                f"{name_to_text(table)} has the column {columns.data} of {kind}; expected binary, or another name "
                "(see --bytes-column)"
            )
        for group in range(file.num_row_groups):
            for row, name in enumerate(file.read_row_group(group, [columns.path])[columns.path].to_pylist()):
                text = os.fsdecode(name) if isinstance(name, bytes) else None if name is None else str(name)
                yield (text, group, row) if holds_bytes else (text, None, None)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _lacks(table: str, columns: Columns, names: Sequence[str]) -> str:
    return f"{name_to_text(table)} has the columns {', '.join(names)}; expected {columns.path} (see --path-column)"


def open_parquet(text: str) -> pq.ParquetFile:
    """Return an open Parquet file, by its path or URI as text. It is read in pieces, not whole columns at once."""
    if "://" in text:
        system, path = uris.open_uri(text)
        return pq.ParquetFile(path, filesystem=system, buffer_size=_READ_BYTES, pre_buffer=False)
    return pq.ParquetFile(pa.OSFile(text_to_name(text)), buffer_size=_READ_BYTES, pre_buffer=False)


def write_list(path: Path, entries: Sequence[Entry], per_part: int) -> int:
    """Write the photos of a job, a row group for each part, and return the number of parts.

    A part has at most `per_part` photos. The photos of a part lie in the same row group of a table, or in none.
    """
    parts = 0
    with pq.ParquetWriter(path, LIST_SCHEMA, compression="zstd") as writer:
        start = 0
        for end in range(1, len(entries) + 1):
            here = entries[start]
            if end < len(entries) and end - start < per_part:
                after = entries[end]
                if (after.table, after.row_group) == (here.table, here.row_group):
                    continue
            some = entries[start:end]
            columns = [[getattr(one, name) for one in some] for name in LIST_SCHEMA.names]
            writer.write_table(pa.table(columns, schema=LIST_SCHEMA), row_group_size=len(some))
            start, parts = end, parts + 1
    return parts


class PhotoList:
    """The written list of the photos of a job, read part by part."""

    def __init__(self, path: Path, columns: Columns) -> None:
        """Open the list.

        Args:
            path: the file that `write_list` wrote.
            columns: the columns of tables with photos' bytes.
        """
        self._file = pq.ParquetFile(path)
        self._columns = columns
        self._rows: _Rows | None = None

    @property
    def parts(self) -> int:
        """The number of parts."""
        return int(self._file.num_row_groups)

    def count(self, part: int) -> int:
        """Return the number of photos of a part."""
        return int(self._file.metadata.row_group(part).num_rows)

    def read(self, part: int) -> pa.Table:
        """Return a part as `ortcam.cluster.batch.ExplainBatch` takes it: ``path``, and ``bytes`` from a table.

        Bytes are null where the table cannot be read any more, or names another photo there; ``bytes_error`` says why.
        """
        rows = self._file.read_row_group(part)
        table, group = rows["table"][0].as_py(), rows["row_group"][0].as_py()
        if table is None:
            return rows.select(["path"])
        values, errors, lost = list[bytes | None](), list[str | None](), None
        for row, name in zip(rows["row"].to_pylist(), rows["path"].to_pylist(), strict=True):
            value, error = None, lost
            try:
                found, value = (None, None) if lost else self._rows_of(table, group, row).read(row)
                if found not in (None, name):
                    value, error = None, f"{table} has changed: it names {found} there; begin another job"
            except (OSError, ValueError, LookupError, pa.ArrowException) as reason:
                self._rows, error = None, f"cannot read {table}: {one_line(reason)}"
                lost = error  # for the rows that follow, too
            values.append(value)
            errors.append(error)
        columns = [rows["path"], pa.array(values, pa.large_binary()), pa.array(errors, pa.string())]
        return pa.table(columns, ["path", "bytes", "bytes_error"])

    def _rows_of(self, table: str, group: int, row: int) -> _Rows:
        if self._rows is None or not self._rows.reaches(table, group, row):
            self._rows = None  # before the next one is in memory
            self._rows = _Rows(table, group, self._columns)
        return self._rows


class _Rows:
    """The rows of a row group of a table, read forwards, a few at a time: a row group may hold a million photos."""

    def __init__(self, table: str, group: int, columns: Columns) -> None:
        """Open the table.

        Raises:
            OSError, ValueError, LookupError, pyarrow.ArrowException: it cannot be read, here and in `read`.
        """
        self._of, self._columns = (table, group), columns
        file = open_parquet(table)
        names = [columns.path, columns.data]
        if lost := [name for name in names if name not in file.schema_arrow.names]:
            raise LookupError(f"no column {lost[0]}")
        if group >= file.num_row_groups:
            raise LookupError(f"no row group {group}")
        self._batches = file.iter_batches(_READ_ROWS, row_groups=[group], columns=names)
        self._batch, self._begin = next(self._batches, None), 0

    def reaches(self, table: str, group: int, row: int) -> bool:
        """Return whether a row lies in this row group, and is not passed yet."""
        return self._of == (table, group) and row >= self._begin

    def read(self, row: int) -> tuple[str, bytes | None]:
        """Return the name and the bytes of a row that is not passed yet."""
        while self._batch is not None and row >= self._begin + self._batch.num_rows:
            self._begin += self._batch.num_rows
            self._batch = next(self._batches, None)
        if self._batch is None:
            raise LookupError(f"row group {self._of[1]} ends before row {row}")
        name, data = (
            self._batch[column][row - self._begin].as_py() for column in (self._columns.path, self._columns.data)
        )
        return name_to_text(os.fsdecode(name) if isinstance(name, bytes) else str(name)), data
