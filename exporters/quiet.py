"""What frameworks need around them: silence on the screen, variables of the environment, a home directory."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from ortcam.runtime.cache import cache_directory


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
def home_directory() -> Iterator[None]:
    """Give frameworks a temporary home directory for a while, where the user has none.

    Without one, Keras and torch.hub make a folder that is named `~`, and timm fails.
    """
    cache_directory()  # warns that nothing is kept
    try:
        Path.home()
    except RuntimeError:
        with tempfile.TemporaryDirectory(prefix="ortcam-home-") as folder, environment(HOME=folder):
            yield
    else:
        yield
