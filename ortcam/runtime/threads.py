"""Run worker threads, and keep NumPy's threads out of ONNX Runtime's way."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any, TypeVar

from ortcam.errors import whole

Result = TypeVar("Result")

_lock = threading.Lock()
_inside = 0  # the number of open blocks, in all threads of this process
_limiter: Any = None


@contextmanager
def calm_blas() -> Iterator[None]:
    """Limit NumPy's BLAS to one thread in the block. The end of the last block of all threads restores the limit.

    After a product, OpenBLAS's threads wait busily for the next product, on cores that ONNX Runtime needs. On two
    cores, this nearly doubled the time of a map with a budget.
    """
    global _inside, _limiter
    with _lock:
        if _inside == 0:
            _take_control()
            _limiter = _controller().limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside = max(_inside - 1, 0)  # already 0 in a child that was forked in the block
            if _inside == 0:
                _take_control()
                _limiter.restore_original_limits()


def _take_control() -> None:
    """Let this thread set the number of OpenBLAS's threads.

    Since threadpoolctl 3.7, only the first thread that set the number may set it again; in other threads, setting does
    nothing.
    """
    for library in _controller().lib_controllers:
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread(force=True)


def _in_forked_child() -> None:
    """Forget the open blocks: the parent's other threads do not exist in the child."""
    global _lock, _inside
    _lock = threading.Lock()
    if _inside:
        _inside = 0
        _take_control()
        _limiter.restore_original_limits()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


@cache
def _controller() -> Any:
    """Return the controller of BLAS threads. It finds the loaded libraries once."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class Workers:
    """Threads that call a function for several photos at once."""

    def __init__(self, count: int | None) -> None:
        """Begin without a thread.

        Args:
            count: the largest number of threads; None for one per usable processor.
        """
        self.count = count or usable_processors()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.count, thread_name_prefix="ortcam-photo")

    def close(self) -> None:
        """End the threads. The next call starts new threads."""
        pool = self.__dict__.pop("_pool", None)
        if pool is not None:
            pool.shutdown()

    def map(self, function: Callable[..., Result], *arguments: Iterable[Any]) -> list[Result]:
        """Call the function with the items of the arguments, like the built-in map; return the results in order."""
        calls = list(zip(*arguments, strict=True))
        if self.count == 1 or len(calls) < 2:
            return [function(*call) for call in calls]
        return list(self._pool.map(lambda call: function(*call), calls))


def thread_count(threads: object) -> int | None:
    """Return the number of threads for ONNX Runtime, at most one per processor; None for ONNX Runtime's choice.

    Raises:
        OptionError: `threads` is not a whole number from 1.
    """
    return None if threads is None else min(whole("threads", threads), os.cpu_count() or 1)


def usable_processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
