"""The command line: `ortcam export`, `inspect`, `explain`, `doctor`, `demo`."""

from __future__ import annotations

import gc

# Importing makes many objects that stay. The collector would look through all of them several times while a command
# starts, for 30 ms of `ortcam explain`; with these numbers it comes later and more rarely.
gc.set_threshold(100_000, 50, 50)

from ortcam.cli.app import main  # noqa: E402

__all__ = ["main"]
