"""The command line: `ortcam export`, `inspect`, `explain`, `doctor`, `demo`."""

from __future__ import annotations

from ortcam.cli.app import main

__all__ = ["main"]
