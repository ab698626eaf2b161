"""End the command line on Ctrl-C, in every state of the process."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from ortcam.cli import console

_SECONDS_TO_END = 4.0

_requested = False
_told = threading.Lock()


def watch() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, and kill the process if it still runs some seconds later.

    An interrupt during the import of a C library becomes an ImportError. An interrupt in a callback is lost. An
    interrupt while a lock is held can leave a thread waiting for ever.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)


def was_requested() -> bool:
    return _requested


def tell() -> None:
    """Print once that the command was interrupted."""
    if _told.acquire(blocking=False):
        console.fail("interrupted")


def _on_interrupt(_signal: int, _frame: FrameType | None) -> None:
    global _requested
    if not _requested:
        _requested = True
        timer = threading.Timer(_SECONDS_TO_END, _end)
        timer.daemon = True
        timer.start()
    raise KeyboardInterrupt


def _end() -> None:
    from ortcam.core.files import discard_unfinished

    tell()
    discard_unfinished()
    os._exit(130)
