"""Writing files and directories whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ortcam.errors import OutputError


@contextmanager
def replace_directory(directory: Path, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Give an unfinished directory to fill; when the block ends well it takes the name `directory`.

    A directory of that name is replaced when nothing is in it but what `is_ours`, and left alone otherwise. A link
    to a directory stays a link.

    Raises:
        OutputError: the name is taken by something else, or cannot be written.
    """
    final = Path(os.path.realpath(directory))
    if final.exists():
        if not final.is_dir():
            raise OutputError(f"cannot write {directory}: it is a file; give the name of a directory")
        if not all(is_ours(path) for path in final.iterdir()):
            raise OutputError(f"cannot write {directory}: it holds other files; give an empty or new directory")
    with _unfinished(final, directory) as unfinished:
        yield unfinished
        try:
            old = unfinished.with_name(unfinished.name + "-old")
            if final.exists() and any(final.iterdir()):
                final.rename(old)
            unfinished.rename(final)  # onto an empty directory as well
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise OutputError(f"cannot write {directory}: {error.strerror or error}") from error


@contextmanager
def replace_files(path: Path) -> Iterator[Path]:
    """Give an unfinished directory beside `path`; when the block ends well its files move to `path`'s folder.

    `path` itself moves last, so that it never stands there without what it needs (external weights).

    Raises:
        OutputError: the folder is missing or cannot be written.
    """
    try:
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a directory; give the name of a file")
    except OSError as error:  # a folder that may not be looked into
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
    """Make a hidden directory beside `final`, which error messages call `shown`; it is gone after the block."""
    try:
        file = next((folder for folder in final.parents if folder.exists() and not folder.is_dir()), None)
        if file is not None:
            raise OutputError(f"cannot write {shown}: {file.name} is a file, not a directory")
        final.parent.mkdir(parents=True, exist_ok=True)
        unfinished = final.parent / f".{final.name[:100]}.{secrets.token_hex(4)}"
        unfinished.mkdir()
    except OSError as error:
        raise OutputError(f"cannot write {shown}: {error.strerror or error}") from error
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
