"""Keeping NumPy's threads out of ONNX Runtime's way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_lock = threading.Lock()
_inside = 0  # how many blocks are open, in all threads
_limiter: Any = None


@contextmanager
def calm_blas() -> Iterator[None]:
    """Let NumPy's BLAS use one thread in the block; the last block to end, of any thread, gives the others back.

    After a product, OpenBLAS's threads wait busily for the next one, on the cores that ONNX Runtime's threads need
    by then: on two cores that nearly doubled the time of a map with a budget.
    """
    global _inside, _limiter
    with _lock:
        if _inside == 0:
            _limiter = _controller().limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limiter.restore_original_limits()


@cache
def _controller() -> Any:
    """Return what sets the number of threads; it looks for the BLAS libraries that are loaded, once."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
