"""Write a report of explained photos: one HTML file without a network, a contact sheet, and a table.

`DebugReport` is the report of a classifier's mistakes, `CompareReport` that of a comparison.

>>> from ortcam.report import Report
>>> with Report("report.html") as report:          # doctest: +SKIP
...     for photo in photos:
...         report.add(cam.explain(photo))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ortcam.report.comparing import CompareReport
    from ortcam.report.debugging import DebugReport
    from ortcam.report.report import Report

__all__ = ["CompareReport", "DebugReport", "Report"]

_HOME = {"CompareReport": "comparing", "DebugReport": "debugging", "Report": "report"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ortcam.report.{_HOME[name]}"), name)
