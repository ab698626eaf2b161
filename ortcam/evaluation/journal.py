"""Keep the photos that are done, one by one, so that an interrupted evaluation can go on."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ortcam.core.files import only
from ortcam.errors import OccupiedError, OptionError, OutputError
from ortcam.evaluation.rows import Row

PROGRESS = "progress.jsonl"
RESULTS = ("results.json", "per-photo.csv", "curves.png")  # what `Result.save` writes
FORMAT = 1
NOT_FINITE = "not a finite number"  # the reason for a value of NaN or infinity, such as a score of a float16 model
_KIND = "ortcam evaluation"
_ADVICE = "give another folder, or overwrite=True (--overwrite)"
_UNFINISHED = re.compile(r"\.(results\.json|per-photo\.csv|curves\.png)\.[0-9a-f]{8}")  # left by a killed process


class Journal:
    """The photos that are done, in ``progress.jsonl``: a line with the header, then a line for each photo.

    An evaluation with the same header goes on where the earlier one stopped. A last line that is only half written,
    because the process was killed, is dropped. Photos that failed are not kept, so they are tried again.

    The file stays locked until `close`, so that two processes never write one folder. The operating system unlocks it
    when the process ends in any way.

    Attributes:
        done: the rows of each photo that is done, by the photo's name, with their exact numbers.
        inputs: the hash of the files and maps that these rows are of, by the photo's name.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], overwrite: bool = False) -> None:
        """Open the journal of a folder; make the folder and its parents if they are missing.

        Args:
            folder: the folder of the results.
            header: everything that the values depend on (model, options, photos), as plain JSON.
            overwrite: delete earlier results in the folder. Other files are never deleted.

        Raises:
            OccupiedError: the folder holds the results of another header, or other files, or another process writes
                there.
            OutputError: the folder cannot be written.
            OptionError: the header holds a value that JSON cannot keep.
        """
        self.done: dict[str, tuple[Row, ...]] = {}
        self.inputs: dict[str, str] = {}
        self._folder = folder
        self._header = as_json(header, "the header")
        self._file: int | None = None
        try:
            self._open(overwrite)
        except OSError as error:
            self.close()
            raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def add(self, photo: str, rows: Sequence[Row], inputs: str = "") -> None:
        """Keep the rows of a photo that is done; the line is in the file when this method returns.

        A later line replaces an earlier one of the same photo. `inputs` is a hash of the photo's files and maps.

        Raises:
            OutputError: the file cannot be written. The photo is then not kept.
        """
        kept = tuple(finite(row) for row in rows)
        self._write({"photo": photo, "rows": [row_to_dict(row) for row in kept], "inputs": inputs})
        self.done[photo], self.inputs[photo] = kept, inputs

    def close(self) -> None:
        """Unlock the file. The photos that are done stay in it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open(self, overwrite: bool) -> None:
        folder, path = self._folder, self._folder / PROGRESS
        above = next((place for place in (folder, *folder.parents) if place.exists()), folder)
        if not above.is_dir() and above.exists():
            raise OutputError(f"cannot write {folder}: {above} is a file; give the name of a folder")
        folder.mkdir(parents=True, exist_ok=True)
        if foreign := only(_is_ours)(folder):
            raise self._occupied(foreign)
        had_results = any((folder / name).exists() for name in RESULTS)
        if had_results and not path.exists() and not overwrite:
            raise self._occupied(f"it holds results without {PROGRESS}; {_ADVICE}")
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        if not _lock(self._file):
            raise self._occupied("another process evaluates there; wait until it ends, or give another folder")
        data = path.read_bytes()
        first = self._line({"kind": _KIND, "format": FORMAT, "header": self._header})
        if data and not _is_journal(data, first):
            raise self._occupied("it holds other files; give an empty or new directory")
        end = 0 if overwrite else self._read(data)
        os.ftruncate(self._file, end)
        for name in os.listdir(folder):  # noqa: PTH208 - names alone
            if _UNFINISHED.fullmatch(name):
                shutil.rmtree(folder / name, ignore_errors=True)
            elif overwrite and name in RESULTS:
                (folder / name).unlink()
        if end == 0:
            self._write_bytes(first)

    def _read(self, data: bytes) -> int:
        """Fill `done` from the file; return the number of bytes up to the end of the last whole line."""
        end = 0
        lines = data.split(b"\n")[:-1]  # the last part has no end of line: it is half written, or empty
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if number > 1:
                    rows = tuple(row_from_dict(row) for row in entry["rows"])
                    self.done[entry["photo"]], self.inputs[entry["photo"]] = rows, entry["inputs"]
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines) > 1:  # a power cut can leave an end of line after a broken line
                    break
                raise self._occupied(f"line {number} of its {PROGRESS} is damaged; {_ADVICE}") from error
            if number == 1:
                self._compare(entry)
            end += len(line) + 1
        return end

    def _compare(self, entry: dict[str, Any]) -> None:
        """Refuse the results of another header."""
        if entry["format"] != FORMAT:
            raise self._occupied(f"its {PROGRESS} has format {entry['format']}; expected format {FORMAT}; {_ADVICE}")
        difference = first_difference(entry["header"], self._header)
        if difference is not None:
            field, there, here = difference
            raise self._occupied(f"it holds results with {field} = {there}; expected {here}; {_ADVICE}")

    def _occupied(self, reason: str) -> OccupiedError:
        return OccupiedError(f"cannot write {self._folder}: {reason}")

    @staticmethod
    def _line(value: Any) -> bytes:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8", "backslashreplace") + b"\n"  # the name of a file need not be valid Unicode

    def _write(self, value: Any) -> None:
        try:
            self._write_bytes(self._line(value))
        except OSError as error:
            raise OutputError(f"cannot write {self._folder / PROGRESS}: {error.strerror or error}") from error

    def _write_bytes(self, line: bytes) -> None:
        """Append a line whole or not at all."""
        if self._file is None:
            raise OutputError(f"cannot write {self._folder / PROGRESS}: it is closed; open the journal again")
        start = os.lseek(self._file, 0, os.SEEK_END)
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            os.ftruncate(self._file, start)
            raise


def as_json(value: Any, name: str) -> Any:
    """Return a value as JSON gives it back: lists for tuples, numbers for NumPy's scalars, text for paths.

    Raises:
        OptionError: JSON cannot keep the value; `name` names it.
    """

    def convert(part: Any) -> Any:
        if isinstance(part, np.generic | np.ndarray):
            return part.tolist()
        if isinstance(part, os.PathLike):
            return os.fspath(part)
        if isinstance(part, Mapping):
            return dict(part)
        if isinstance(part, set | frozenset):
            return sorted(part)
        raise TypeError(f"a value of the type {type(part).__name__}")

    try:
        return json.loads(json.dumps(value, default=convert, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise OptionError(f"{name} holds {error}; expected values that JSON can keep") from error


def finite(row: Row) -> Row:
    """Return the row with every value and score as a finite Python number.

    A value that is not finite becomes None with the reason `NOT_FINITE`; a curve with such a score is left out.
    """
    values = {name: None if value is None else float(value) for name, value in row.values.items()}
    reasons = dict(row.reasons)
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            values[name] = None
            reasons[name] = NOT_FINITE
    curves = {name: tuple(map(float, curve)) for name, curve in row.curves.items()}
    curves = {name: curve for name, curve in curves.items() if all(map(math.isfinite, curve))}
    explained, scored = int(row.explained), int(row.scored)
    return replace(row, explained=explained, scored=scored, values=values, reasons=reasons, curves=curves)


def row_to_dict(row: Row) -> dict[str, Any]:
    """Return the fields of a row as plain JSON (`dataclasses.asdict` takes ten times as long)."""
    curves = {name: list(curve) for name, curve in row.curves.items()}
    fields = {**vars(row), "values": dict(row.values), "reasons": dict(row.reasons), "curves": curves}
    return fields if row.target else {name: value for name, value in fields.items() if name != "target"}


def row_from_dict(entry: Mapping[str, Any]) -> Row:
    """Return the row of `row_to_dict`, after JSON.

    Raises:
        KeyError, TypeError: a field is missing or unknown.
    """
    return Row(**{**entry, "curves": {name: tuple(curve) for name, curve in entry["curves"].items()}})


def first_difference(there: Any, here: Any, path: str = "") -> tuple[str, str, str] | None:
    """Return the first field that differs between two JSON values, as a path, and both values; None if equal."""
    if isinstance(there, dict) and isinstance(here, dict):
        pairs: Iterable[tuple[str, Any, Any]] = [
            (f"{path}.{key}" if path else key, there.get(key, _MISSING), here.get(key, _MISSING))
            for key in {**here, **there}
        ]
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = [(f"{path}[{place}]", a, b) for place, (a, b) in enumerate(zip(there, here, strict=True))]
    else:
        same = there == here and isinstance(there, bool) == isinstance(here, bool)
        return None if same else (path, *_shown(there, here))
    found = (first_difference(a, b, name) for name, a, b in pairs)
    return next((difference for difference in found if difference is not None), None)


_MISSING = object()


def _shown(there: Any, here: Any, most: int = 60) -> tuple[str, str]:
    """Return two values as short texts; long texts are cut so that the place where they differ is seen."""
    a, b = ("no value" if x is _MISSING else json.dumps(x, ensure_ascii=False) for x in (there, here))
    same = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, same - most // 3) if max(len(a), len(b)) > most else 0

    def cut(text: str) -> str:
        part = text[start : start + most]
        return ("..." if start else "") + part + ("..." if start + most < len(text) else "")

    return cut(a), cut(b)


def _is_ours(path: Path) -> bool:
    return path.name == PROGRESS or path.name in RESULTS or _UNFINISHED.fullmatch(path.name) is not None


def _is_journal(data: bytes, first: bytes) -> bool:
    """Return whether bytes start with a journal's header, or with the beginning of the header `first`."""
    line, end, _ = data.partition(b"\n")
    if not end:
        return first.startswith(line)
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and entry.get("kind") == _KIND and {"format", "header"} <= entry.keys()


def _lock(file: int) -> bool:
    """Lock an open file until it is closed; return False if another process holds the lock.

    A lock of the operating system needs no test of whether a process id still lives, which fails between containers.
    File systems without locks go unlocked.
    """
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second on some network drives
        return False
    except OSError:
        return True
    return True


def _lock_on_windows(file: int) -> bool:
    import msvcrt

    os.lseek(file, 1 << 30, os.SEEK_SET)  # a byte beyond the text: Windows lets nobody else read a locked byte
    try:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return False
    return True
