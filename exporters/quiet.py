"""Keeping what frameworks and the user's own code print off the screen, and their settings as they were."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from ortcam.errors import ExportError


@contextlib.contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Discard prints, warnings and log records up to `level`, and put everything back afterwards."""
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
    """Set variables of the environment for a while."""
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


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a temporary folder, which is gone after the block.

    Raises:
        ExportError: there is no folder for temporary files that can be written.
    """
    try:
        folder = tempfile.mkdtemp(prefix="ortcam-")
    except OSError as error:
        raise ExportError(f"{error}") from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
