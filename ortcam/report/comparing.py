"""Write the report of a comparison: one HTML page with the maps of every photo side by side."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from ortcam.comparison.folder import PAGE_MARK
from ortcam.comparison.verdict import SIMILAR
from ortcam.core.files import replace_files
from ortcam.evaluation.statistics import mean_intervals
from ortcam.report.parts import fill_template
from ortcam.report.thumbnails import encode_small
from ortcam.report.writer import MOST_BYTES, PageWriter

if TYPE_CHECKING:
    from ortcam.comparison.result import Cell, Compared, Comparison
    from ortcam.core.pictures import Photo

_COLORMAP = "turbo"  # of the overlays


class CompareReport(PageWriter):
    """The report of a comparison, a context manager. Pictures wait on the disk until `write`.

    >>> from ortcam.comparison import Column, compare
    >>> columns = [Column("float.onnx"), Column("int8.onnx")]
    >>> with CompareReport("report.html") as report:                                         # doctest: +SKIP
    ...     report.write(compare(columns, ["a.jpg", "b.jpg"], on_compared=report.add))

    Attributes:
        path: the path of the page.
    """

    _command = "compare"

    def __init__(self, path: str | PathLike[str], overwrite: bool = False) -> None:
        """Check the path; nothing is written before `write`.

        Args:
            path: the page, a name that ends in .html. An earlier report of a comparison is replaced.
            overwrite: replace another file of this name.

        Raises:
            OptionError: the name does not end in .html.
            OccupiedError: a file of this name is no report of a comparison.
            OutputError: the path is a directory.
        """
        super().__init__(path, PAGE_MARK, {}, overwrite)

    def add(self, compared: Compared, pictures: Sequence[Photo]) -> None:
        """Add the pictures of a photo; the arguments are those of `compare`'s `on_compared`.

        Raises:
            OptionError: the report is not open.
            OutputError: the disk is full, or the like.
        """
        most = MOST_BYTES * 3 // 4 // len(pictures)
        self._keep(compared.name, (encode_small(picture, most) for picture in pictures))

    def write(self, result: Comparison) -> None:
        """Write the page, whole or not at all.

        Raises:
            OptionError: the report is not open.
            OutputError: the page cannot be written.
        """
        self._file()
        names = " and ".join(result.columns)
        title = f"Maps compared: {names if len(result.columns) == 2 else f'{len(result.columns)} columns'}"
        parts = fill_template(
            "compare.html", ("page.css", "compare.css"), ("common.js", "compare.js"), title, _COLORMAP, fades=True
        )
        ranked = sorted(result.photos, key=lambda photo: photo.rank)
        with self._writing(), replace_files(self.path) as folder:
            self._write_page(folder, parts, _data(result, ranked), [photo.name for photo in ranked])


def _data(result: Comparison, ranked: Sequence[Compared]) -> dict[str, Any]:
    """Return what the page shows as plain JSON; `ranked` are the photos, the least r first."""
    order = {photo.name: place for place, photo in enumerate(result.photos)}
    whole = result.to_dict()
    return {
        "about": {
            "created": whole["created"],
            "ortcam": whole["versions"]["ortcam"],
            "columns": [_column(one) for one in whole["columns"]],
            "classifies": result.classifies,
            "low": SIMILAR,
            "lines": result.lines(),
            "definitions": whole["definitions"],
            "failures": whole["failures"],
        },
        "pairs": _pairs(result),
        "rows": [_row(photo, order[photo.name]) for photo in ranked],
    }


def _column(one: dict[str, Any]) -> dict[str, Any]:
    method, budget = one["method"], one["budget"]
    options = [f"{key} {value}" for key, value in method.items() if key not in ("name", "stages")]
    how = [method["name"], *options, *([f"preset {one['preset']['name']}"] if method["name"] == "score-cam" else [])]
    how += [f"budget {budget}"] if budget is not None else []
    return {
        "name": one["name"],
        "model": one["model"]["name"],
        "layer": one["model"]["layer"],
        "method": ", ".join(how),
        "provider": one["run"]["provider"],
    }


def _pairs(result: Comparison) -> list[dict[str, Any]]:
    """Return the mean r of every two columns, and on how many photos the most probable class is the same."""
    places = [(pair.first, pair.second) for pair in result.photos[0].pairs]
    of = [[photo.pairs[at] for photo in result.photos] for at in range(len(places))]
    known = [[one.similarity.r for one in pairs if one.similarity.r is not None] for pairs in of]
    agreed = [[float(one.same_class) for one in pairs if one.same_class is not None] for pairs in of]
    intervals = mean_intervals([*known, *agreed])
    return [
        {
            "first": first,
            "second": second,
            "r": [r.mean, r.low, r.high],
            "least": min(values, default=None),
            "changed": round(len(same) - sum(same)) if same else None,
            "changed_share": [None if bound is None else 1 - bound for bound in (share.mean, share.high, share.low)],
            "flat": len(pairs) - len(values),
        }
        for (first, second), pairs, values, same, r, share in zip(
            places, of, known, agreed, intervals, intervals[len(places) :], strict=False
        )
    ]


def _row(photo: Compared, order: int) -> dict[str, Any]:
    found = [pair for pair in photo.pairs if pair.first == 0]
    return {
        "name": photo.name,
        "path": None if photo.origin.path is None else str(photo.origin.path),
        "height": photo.size[0],
        "width": photo.size[1],
        "order": order,
        "least": None if photo.rank < -1 else photo.rank,
        "cells": [
            _cell(cell, pair.similarity.r if pair else None, pair.same_class if pair else None)
            for cell, pair in zip(photo.cells, [None, *found], strict=True)
        ],
        "pairs": [
            [pair.similarity.r, pair.similarity.spearman, pair.similarity.energy_in_common] for pair in photo.pairs
        ],
    }


def _cell(cell: Cell, r: float | None, same_class: bool | None) -> dict[str, Any]:
    top = cell.predicted
    return {
        "target": cell.target.name,
        "label": cell.target.label,
        "index": cell.target.index,
        "probability": cell.score if cell.target.place is None else None,
        "score": None if cell.target.place is None else cell.score,
        "top": None if top is None else {"index": top.index, "name": top.name, "probability": top.probability},
        "r": r,
        "changed": same_class is False,
        "flat": cell.flat,
        "error": None if cell.error is None else cell.error.expected,
        "scored": cell.scored,
    }
