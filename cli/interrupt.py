"""End the command line on Ctrl-C, and when it is asked to terminate, in every state of the process."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from ortcam.cli import console

_SECONDS_TO_END = 4.0

_requested = False
_signal = signal.SIGINT
_told = threading.Lock()


def watch() -> None:
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt, and kill the process if it still runs some seconds later.

    An interrupt during the import of a C library becomes an ImportError. An interrupt in a callback is lost. An
    interrupt while a lock is held can leave a thread waiting for ever.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # of kill, timeout, a container that stops
        signal.signal(signal.SIGTERM, _on_interrupt)


def was_requested() -> bool:
    return _requested


def exit_code() -> int:
    """Return the exit code of an interrupt, as shells have it: 130 of Ctrl-C, 143 of SIGTERM."""
    return 128 + _signal


def tell() -> None:
    """Print once that the command was interrupted."""
    if _told.acquire(blocking=False):
        console.fail("interrupted" if _signal == signal.SIGINT else "terminated")


def _on_interrupt(number: int, _frame: FrameType | None) -> None:
    global _requested, _signal
    if not _requested:
        _requested, _signal = True, signal.Signals(number)
        timer = threading.Timer(_SECONDS_TO_END, _end)
        timer.daemon = True
        timer.start()
    raise KeyboardInterrupt


def _end() -> None:
    from ortcam.core.files import discard_unfinished

    tell()
    discard_unfinished()
    os._exit(exit_code())
