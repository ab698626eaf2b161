"""Keeping NumPy's threads out of ONNX Runtime's way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@contextmanager
def calm_blas() -> Iterator[None]:
    """Let NumPy's BLAS use one thread in the block.

    After a product, OpenBLAS's threads wait busily for the next one, on the cores that ONNX Runtime's threads need
    by then: on two cores that nearly doubled the time of a map with a budget.
    """
    with _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> Any:
    """Return what sets the number of threads; it looks for the BLAS libraries that are loaded, once."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
