"""Open sessions again in other processes, because a session does not survive a fork and cannot be pickled.

ONNX Runtime's threads do not exist in a forked child. A run that waits for them hangs. The end of a session
joins them, so it hangs as well. A child therefore keeps its parent's sessions from ending, and opens its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import weakref
from collections.abc import Callable
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

from ortcam.errors import OrtcamError, ProviderError
from ortcam.runtime import HAS_TELEMETRY


class Closable(Protocol):
    """An object that can be closed."""

    def close(self) -> None:
        """End its threads."""


Opened = TypeVar("Opened", bound=Closable)

_held: weakref.WeakSet[Reopened[Any]] = weakref.WeakSet()
_last: tuple[str, Any] | None = None  # the object that was opened last for an unpickled `Reopened`, and its mark


class Reopened(Generic[Opened]):
    """Holds an open object, and opens it again in another process at its first use there.

    Attributes:
        forks: whether it can be opened again in a forked child.
    """

    def __init__(self, reopen: Callable[[], Opened], opened: Opened, forks: bool) -> None:
        """Hold an object that is open in this process.

        Args:
            reopen: a function that opens it again; can be pickled.
            opened: the open object.
            forks: whether it can be opened again in a forked child.
        """
        self._reopen, self.forks = reopen, forks
        self._opened: Opened | None = opened
        self._lock, self._forked, self._closed, self._mark = Lock(), False, False, ""
        _held.add(self)

    def get(self) -> Opened:
        """Return the object, opened in this process.

        Raises:
            OrtcamError: the object cannot be opened here.
        """
        global _last
        opened = self._opened
        if opened is not None:
            return opened
        with self._lock:
            if self._closed:
                raise OrtcamError("this explainer was closed; load the model again")
            if self._opened is None:
                if self._forked and not self.forks:
                    raise ProviderError(
                        "this process was forked from the process that opened the model, and only the provider 'cpu' "
                        "can be used again after a fork; start processes with spawn or forkserver"
                    )
                # A pool unpickles its function for every task, so a session of the same origin is used again.
                again = _last is not None and self._mark and _last[0] == self._mark
                self._opened = _last[1] if again and _last is not None else self._reopen()
                if self._mark:
                    _last = (self._mark, self._opened)
            opened = self._opened
            assert opened is not None
            return opened

    def close(self) -> None:
        """Close the object in this process, which cannot use it any more; copies of one pickle share theirs."""
        global _last
        with self._lock:
            opened, self._opened, self._closed = self._opened, None, True
        if opened is None or any(one._opened is opened for one in list(_held)):
            return
        if _last is not None and _last[1] is opened:
            _last = None
        opened.close()

    def __getstate__(self) -> dict[str, Any]:
        self._mark = self._mark or secrets.token_hex(8)
        return {"_reopen": self._reopen, "forks": self.forks, "_mark": self._mark}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._opened, self._lock, self._forked, self._closed = None, Lock(), False, False  # opened when it is used
        _held.add(self)

    def _forget(self) -> None:
        """In a forked child, keep the open object for ever, because ending it would hang."""
        if self._opened is not None:
            _keep(self._opened)
            self._opened, self._forked = None, True
        self._lock = Lock()  # another thread may hold it


def _keep(thing: Any) -> None:
    """Keep an object from being freed, even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _in_forked_child() -> None:
    global _last
    for one in list(_held):
        one._forget()
    if _last is not None:
        _keep(_last[1])
        _last = None
    if HAS_TELEMETRY:  # at the exit, telemetry joins a thread that the child lacks
        _skip_exit_handlers()


def _skip_exit_handlers() -> None:
    """Let this process end after Python's own exit, without the exit handlers that C code has registered so far.

    glibc's `on_exit` runs the function that was registered last first, and passes it the exit status.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.on_exit(libc._exit, None)
        libc.on_exit(libc.fcloseall, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
