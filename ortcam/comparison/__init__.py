"""Compare maps of the same photos: of models, layers, methods, presets or targets, side by side.

>>> from ortcam.comparison import Column, compare
>>> columns = [Column("float.onnx"), Column("int8.onnx")]              # doctest: +SKIP
>>> print(compare(columns, ["a.jpg", "b.jpg"], folder="out").table())  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ortcam.comparison.columns import Column, cross
    from ortcam.comparison.result import Comparison
    from ortcam.comparison.run import compare

__all__ = ["Column", "Comparison", "compare", "cross"]

# Public names are loaded at first use: a comparison opens sessions.
_HOME = {"Column": "columns", "Comparison": "result", "compare": "run", "cross": "columns"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ortcam.comparison' has no attribute {name!r}")
    value = getattr(import_module(f"ortcam.comparison.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
