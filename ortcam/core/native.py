"""Discard lines that C libraries write to standard error: libjpeg about damaged files, ONNX Runtime about threads.

These lines go to file descriptor 2, regardless of `sys.stderr`. Only a program that owns its process may redirect this
descriptor, as the command line does. Inside other programs, this module changes nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_lock = threading.Lock()
_owned = False
_inside = 0  # the number of open blocks, in all threads
_kept = -1  # a copy of file descriptor 2 while it is redirected


def own_standard_error() -> None:
    """Let `sys.stderr` write to a copy of file descriptor 2, so that `quiet` never discards Python's own lines."""
    global _owned
    if sys.stderr is None:  # the process was started without standard error
        return
    with suppress(OSError):
        copy = os.dup(2)
        sys.stderr = os.fdopen(copy, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
        _owned = True


@contextmanager
def quiet() -> Iterator[None]:
    """Discard the lines of C libraries on standard error inside the block, if ortcam owns the process."""
    if not _owned:
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _kept
    with _lock:
        if _inside == 0:
            _kept = os.dup(2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            os.dup2(_kept, 2)
            os.close(_kept)
