"""Write files and directories whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ortcam.errors import OccupiedError, OutputError

_RENAMES = 8  # attempts, in case other processes write the same directory
_open = set[Path]()  # the unfinished directories of this process


@contextmanager
def replace_directory(directory: Path, refusal: Callable[[Path], str | None]) -> Iterator[Path]:
    """Yield an unfinished directory to fill, and rename it to `directory` if the block succeeds.

    An existing directory that is not empty is replaced only if `refusal` allows it. `refusal` is called before the
    block and again after it, because another process may have written there meanwhile. A link to a directory stays
    a link.

    Args:
        directory: the name.
        refusal: takes a directory that is not empty; returns why it must not be replaced, or None if it may.

    Raises:
        OccupiedError: `refusal` gave a reason.
        OutputError: the name is a file, or the directory cannot be written.
    """
    final = Path(os.path.realpath(directory))

    def check(folder: Path) -> None:
        reason = refusal(folder) if any(folder.iterdir()) else None
        if reason is not None:
            raise OccupiedError(f"cannot write {directory}: {reason}")

    try:
        if final.exists():
            if not final.is_dir():
                raise OutputError(f"cannot write {directory}: it is a file; give the name of a directory")
            check(final)
        with _unfinished(final, directory) as unfinished:
            yield unfinished
            _take_place(unfinished, final, check)
    except OSError as error:
        raise OutputError(f"cannot write {directory}: {error.strerror or error}") from error


def only(is_ours: Callable[[Path], bool]) -> Callable[[Path], str | None]:
    """Return a `refusal` for `replace_directory` that refuses directories with files that are not `is_ours`."""

    def refusal(folder: Path) -> str | None:
        return None if all(map(is_ours, folder.iterdir())) else "it holds other files; give an empty or new directory"

    return refusal


def _take_place(unfinished: Path, final: Path, check: Callable[[Path], None]) -> None:
    """Rename `unfinished` to `final`; move an existing directory aside first, then check it, then delete it."""
    for attempt in range(_RENAMES):
        old = unfinished.with_name(f"{unfinished.name}-old{attempt}")
        if final.exists() and any(final.iterdir()):
            final.rename(old)
            try:
                check(old)
            except OutputError:
                old.rename(final)
                raise
        try:
            unfinished.rename(final)  # onto an empty directory as well
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == _RENAMES - 1:
                raise
        else:
            shutil.rmtree(old, ignore_errors=True)
            return


@contextmanager
def replace_files(path: Path) -> Iterator[Path]:
    """Yield an unfinished directory beside `path`, and move its files to `path`'s folder if the block succeeds.

    `path` itself moves last, so that it never exists without the files that it needs (external weights).

    Raises:
        OutputError: the folder is missing or cannot be written.
    """
    try:
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a directory; give the name of a file")
    except OSError as error:  # a folder without permission to read it
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    with _unfinished(path, path) as unfinished:
        yield unfinished
        try:
            for made in sorted(unfinished.iterdir(), key=lambda made: made.name == path.name):
                made.replace(path.parent / made.name)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def _unfinished(final: Path, shown: Path) -> Iterator[Path]:
    """Yield a hidden directory beside `final` (`shown` in messages), and delete it after the block.

    Parents that were made for it, and hold nothing after the block, are deleted too.
    """
    missing = [folder for folder in final.parents if not folder.exists()]  # the deepest first
    try:
        file = next((folder for folder in final.parents if folder.exists() and not folder.is_dir()), None)
        if file is not None:
            raise OutputError(f"cannot write {shown}: {file.name} is a file, not a directory")
        final.parent.mkdir(parents=True, exist_ok=True)
        unfinished = final.parent / f".{final.name[:100]}.{secrets.token_hex(4)}"
        unfinished.mkdir()
        _open.add(unfinished)
    except OSError as error:
        raise OutputError(f"cannot write {shown}: {error.strerror or error}") from error
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        _open.discard(unfinished)
        for folder in missing:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def discard_unfinished() -> None:
    """Delete the unfinished directories of this process, before it ends by force."""
    for unfinished in list(_open):
        shutil.rmtree(unfinished, ignore_errors=True)


class Fingerprint:
    """The SHA-256 of a file in its state when this object is made.

    The hash is computed at its first use, and at most once in a process for a file that does not change.

    Attributes:
        path: the absolute path of the file; None for bytes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path | None = Path(os.path.abspath(path))  # noqa: PTH100 - as given: links are not followed
        self._state = _state_of(self.path)

    @classmethod
    def of_bytes(cls, data: bytes) -> Fingerprint:
        """Return the fingerprint of bytes that are not in a file."""
        made = cls.__new__(cls)
        made.path, made._state = None, None
        made.__dict__["sha256"] = hashlib.sha256(data).hexdigest()  # where the cached property keeps it
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with the hash, because the file may be missing where the object is unpickled."""
        return {"path": self.path, "_state": self._state, "sha256": self.sha256}

    def holds(self) -> bool:
        """Return whether the file is still the same; true for bytes. Another copy of the file counts as the same."""
        if self.path is None or self._state is None or _state_of(self.path) == self._state:
            return True
        found = Fingerprint(self.path)
        return found.sha256 is not None and found.sha256 == self.__dict__.get("sha256")

    @cached_property
    def sha256(self) -> str | None:
        """The hash in hexadecimal digits; None if the file changed before the hash was computed."""
        if self._state is None or self.path is None:
            return None
        try:
            found = _hash(self.path, self._state)
        except OSError:
            return None
        return found if _state_of(self.path) == self._state else None


def _state_of(path: Path) -> tuple[int, ...] | None:
    """Return values that change whenever the file changes; None if the file is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@lru_cache(maxsize=64)
def _hash(path: Path, _state: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
