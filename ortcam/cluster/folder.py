"""The folder of a job: its manifest, its list of photos, and a file of results for each part.

A file of results has its part's number as its name, and appears whole, by a rename. So the results themselves say what
is done: there is no second record that could disagree with them, and no part can be written under two names.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ortcam.errors import OccupiedError, OutputError, one_line
from ortcam.evaluation.journal import as_json, first_difference

MANIFEST, PHOTOS, RESULTS, LOCK = "manifest.json", "photos.parquet", "explanations", ".lock"
_KIND, _FORMAT = "ortcam explain-many", 1
_DONE, _FAILED = b"ortcam.done", b"ortcam.failed"
_READERS = 8
_ADVICE = "give another folder, or the same model, photos and options"


@dataclass(frozen=True)
class Tally:
    """Numbers of photos.

    Attributes:
        done: photos that have a row.
        failed: those of them with an error.
    """

    done: int = 0
    failed: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.done + other.done, self.failed + other.failed)


class JobFolder:
    """A folder of results. It can be pickled; all machines must see it under the same path."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock_file: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_lock_file": None}

    @property
    def photos(self) -> Path:
        """The file with the list of photos."""
        return self.path / PHOTOS

    @property
    def results(self) -> Path:
        """The folder with the files of results: one Parquet data set."""
        return self.path / RESULTS

    def part(self, number: int) -> Path:
        """Return the file of a part's results."""
        return self.results / f"part-{number:08d}.parquet"

    def open(self, header: Mapping[str, Any], write_photos: Callable[[Path], Mapping[str, int]]) -> dict[str, Any]:
        """Begin a job, or go on with the same job; nobody else may until `close`.

        Args:
            header: all that decides the results, as values that JSON knows.
            write_photos: writes the list of photos to a path, and returns numbers for the manifest.

        Returns:
            The manifest.

        Raises:
            OccupiedError: the folder holds another job or other files, or another process works there.
            OutputError: the folder cannot be written.
        """
        try:
            self._prepare()
            manifest = self._read_manifest()
            if manifest is None:
                numbers = dict[str, int]()
                self._replace(self.photos, lambda path: numbers.update(write_photos(path)))
                manifest = {"kind": _KIND, "format": _FORMAT, "header": as_json(header, "the header"), **numbers}
                text = json.dumps(manifest, indent=2, ensure_ascii=True)
                self._replace(self.path / MANIFEST, lambda path: path.write_text(text + "\n", encoding="utf-8"))
            difference = first_difference(manifest["header"], as_json(header, "the header"))
        except OSError as error:
            self.close()
            raise OutputError(f"cannot write {self.path}: {error.strerror or one_line(error)}") from error
        except BaseException:
            self.close()
            raise
        if difference is not None:
            self.close()
            field, there, here = difference
            raise self._occupied(f"it holds a job with {field} = {there}; got {here}; {_ADVICE}")
        return manifest

    def close(self) -> None:
        """Let others work in the folder."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def tally(self, number: int) -> Tally | None:
        """Return the numbers of a part; None if it has no results yet.

        Raises:
            OutputError: its file cannot be read.
        """
        path = self.part(number)
        try:
            found = pq.read_metadata(path).metadata or {}
            return Tally(int(found[_DONE]), int(found[_FAILED]))
        except FileNotFoundError:
            return None
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise OutputError(f"{path} is damaged ({one_line(error, 100)}); delete it, and run again") from error

    def tallies(self) -> dict[int, Tally]:
        """Return the numbers of all parts that have results, by the part's number."""
        numbers = sorted(
            int(name[5:13])
            for name in os.listdir(self.results)  # noqa: PTH208 - names alone
            if name.startswith("part-")
        )
        with ThreadPoolExecutor(_READERS) as readers:
            found = zip(numbers, readers.map(self.tally, numbers), strict=True)
            return {number: tally for number, tally in found if tally is not None}

    def read_part(self, number: int) -> pa.Table:
        """Return the rows of a part that has results."""
        return pq.read_table(self.part(number)).replace_schema_metadata(None)

    def count_attempt(self, number: int) -> int:
        """Count an attempt to explain a part, and return the number of attempts of this run, this one included.

        The count goes when the results are written, or the next run begins.

        Raises:
            OutputError: it cannot be written.
        """
        path = self._attempts(number)
        try:
            with path.open("ab") as file:
                file.write(b".")
                return file.tell()
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or one_line(error)}") from error

    def forget_attempts(self, number: int) -> None:
        """Remove the count of attempts of a part that has results."""
        self._attempts(number).unlink(missing_ok=True)

    def _attempts(self, number: int) -> Path:
        return self.results / f".part-{number:08d}.attempts.tmp"

    def write_part(self, number: int, rows: pa.Table, failed: int) -> Tally:
        """Write the results of a part, whole or not at all; earlier results of the part are replaced.

        Raises:
            OutputError: they cannot be written.
        """
        tally = Tally(rows.num_rows, failed)
        rows = rows.replace_schema_metadata({_DONE: str(tally.done), _FAILED: str(tally.failed)})
        path = self.part(number)
        try:
            self._replace(path, lambda unfinished: pq.write_table(rows, unfinished, compression="zstd"))
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or one_line(error)}") from error
        self.forget_attempts(number)
        return tally

    def _prepare(self) -> None:
        """Make and lock the folder, and delete what a killed process left half-written."""
        above = next(place for place in (self.path, *self.path.parents) if place.exists())
        if not above.is_dir():
            raise OutputError(f"cannot write {self.path}: {above} is a file; give the name of a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        known = {MANIFEST, PHOTOS, RESULTS, LOCK}
        names = os.listdir(self.path)  # noqa: PTH208
        others = any(name not in known and not _is_unfinished(name) for name in names)
        # The system or a file browser may put files beside a job, such as .DS_Store.
        if (others or (names and LOCK not in names)) and not self._holds_a_job():
            raise self._occupied("it holds other files; give an empty or new folder")
        self._lock_file = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(self._lock_file):
            raise self._occupied("another process explains there; wait until it ends, or give another folder")
        self.results.mkdir(exist_ok=True)
        for folder in (self.path, self.results):
            for name in filter(_is_unfinished, os.listdir(folder)):  # noqa: PTH208
                (folder / name).unlink(missing_ok=True)

    def _holds_a_job(self) -> bool:
        try:
            return bool(json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))["kind"] == _KIND)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _read_manifest(self) -> dict[str, Any] | None:
        path = self.path / MANIFEST
        if not path.exists():
            if any(self.results.iterdir()):
                raise self._occupied(f"it holds results without {MANIFEST}; give another folder")
            return None
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            same = manifest["kind"] == _KIND and manifest["format"] == _FORMAT and manifest["parts"] >= 0
        except (ValueError, KeyError, TypeError):
            same = False
        if not same or not self.photos.exists():
            raise self._occupied(f"its {MANIFEST} is damaged, or of another version of ortcam; give another folder")
        return dict(manifest)

    def _occupied(self, reason: str) -> OccupiedError:
        return OccupiedError(f"cannot write {self.path}: {reason}")

    @staticmethod
    def _replace(path: Path, write: Callable[[Path], object]) -> None:
        """Let `write` fill an unfinished file, and rename it to `path` when its bytes are on the disk."""
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            write(unfinished)
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def _is_unfinished(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _lock(file: int) -> bool:
    """Lock an open file until it is closed; return whether no other process holds the lock.

    File systems without locks go unlocked.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def total(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of the numbers of parts."""
    return sum(tallies, Tally())
