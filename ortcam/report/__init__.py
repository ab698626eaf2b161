"""Write a report of explained photos: one HTML file without a network, a contact sheet, and a table.

>>> from ortcam.report import Report
>>> with Report("report.html") as report:          # doctest: +SKIP
...     for photo in photos:
...         report.add(cam.explain(photo))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ortcam.report.report import Report

__all__ = ["Report"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ortcam.report.report import Report

    return Report
