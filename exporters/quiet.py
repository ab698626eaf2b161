"""Prepare the process for frameworks: a quiet screen, environment variables, a home directory."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from ortcam.errors import ExportError
from ortcam.runtime.cache import cache_directory


@contextlib.contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Discard prints, warnings and log records up to `level` inside the block."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def require_temporary_folder() -> None:
    """Require a writable folder for temporary files, because frameworks fail in unclear ways without it.

    Raises:
        ExportError: no folder is writable; the message says where Python looked, and what to set.
    """
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise ExportError(f"the export needs a folder for temporary files: {_advise(error)}") from error


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a temporary folder, and delete it after the block.

    Raises:
        ExportError: no folder for temporary files can be written.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="ortcam-"))
    except OSError as error:
        raise ExportError(f"the export needs a folder for temporary files: {_advise(error)}") from error
    try:
        yield folder
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise ExportError(f"cannot write temporary files to {folder.parent}: {_advise(error)}") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def home_directory() -> Iterator[None]:
    """Set a temporary home directory inside the block, if the user has none.

    Without a home directory, Keras and torch.hub make a folder named `~`, and timm fails.
    """
    cache_directory()  # warns that nothing is kept
    try:
        Path.home()
    except RuntimeError:
        with temporary_folder() as folder, environment(HOME=str(folder)):
            yield
    else:
        yield


def _advise(error: OSError) -> str:
    return f"{error.strerror or error}; set TMPDIR to a folder that can be written"
