"""Write the report of a classifier's mistakes: one HTML page without a network, a record, and a table."""

from __future__ import annotations

import base64
import csv
import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ortcam.core.files import replace_files
from ortcam.output.render import Style, colour_table, encode_png
from ortcam.report.contrasts import encode_mistake
from ortcam.report.entries import as_cell
from ortcam.report.parts import fill_template
from ortcam.report.writer import MOST_BYTES, PageWriter

if TYPE_CHECKING:
    from ortcam.evaluation.mistakes import Debugging, MeanMap, Mistake, Prediction
    from ortcam.output.explanation import Explanation

RECORD, TABLE = "debug.json", "debug.csv"
COLUMNS = (
    "photo", "path", "true", "true_label", "predicted", "predicted_label", "probability_true", "probability_predicted",
    "correct", "suspicion", "flags", "in_common", "part_predicted", "part_share_predicted", "part_true",
    "part_share_true", "outside_predicted", "outside_true", "at_edge_predicted", "at_edge_true", "object_cut", "unseen",
    "removed", "probability_true_without", "probability_predicted_without", "winner_without", "true_wins_without",
    "error", "failure",
)  # fmt: skip
_SHOWN = (
    "created", "ortcam", "model", "provider", "method", "dataset", "accuracy", "misclassified", "order", "flags",
    "most", "most_correct", "failures",
)  # fmt: skip
_GENERATOR = '<meta name="generator" content="ortcam debug">'
_MARKS = {TABLE: ",".join(COLUMNS), RECORD: '"kind": "ortcam debug"'}


class DebugReport(PageWriter):
    """The report of a classifier's mistakes, a context manager.

    `write` writes the page, and beside it `debug.json` and `debug.csv`. The files appear together. Pictures wait on the
    disk until then.

    >>> from ortcam.evaluation import debug
    >>> with DebugReport("report.html") as report:                                           # doctest: +SKIP
    ...     report.write(debug("model.onnx", "photos/", "labels.csv", on_explained=report.add))

    Attributes:
        path: the path of the page.
    """

    _command = "debug"

    def __init__(
        self,
        path: str | PathLike[str],
        opacity: float = 0.6,
        colormap: str = "turbo",
        overwrite: bool = False,
    ) -> None:
        """Check the path; nothing is written before `write`.

        Args:
            path: the page, a name that ends in .html. An earlier report is replaced.
            opacity, colormap: for the overlays, as in `Explanation.overlay`.
            overwrite: replace other files of these names.

        Raises:
            OptionError: an argument is out of range, or the name does not end in .html.
            OccupiedError: a file of one of the three names is no earlier report.
            OutputError: the path is a directory.
        """
        self._style = Style(opacity, colormap)
        super().__init__(path, _GENERATOR, _MARKS, overwrite)

    def add(self, mistake: Mistake, explanation: Explanation) -> None:
        """Add the pictures of a mistake; the arguments are those of `debug`'s `on_explained`.

        Raises:
            OptionError: the report is not open.
            OutputError: the disk is full, or the like.
        """
        self._keep(mistake.prediction.photo, encode_mistake(explanation, self._style, MOST_BYTES))

    def write(self, found: Debugging) -> None:
        """Write the files, whole or not at all.

        Raises:
            OptionError: the report is not open.
            OutputError: the files cannot be written.
        """
        self._file()
        parts = fill_template(
            "debug.html", ("page.css", "debug.css"), ("common.js", "debug.js"),
            f"Mistakes of {found.record['model']['name']}", self._style.colormap,
        )  # fmt: skip
        with self._writing(), replace_files(self.path) as folder:
            record = json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n"
            (folder / RECORD).write_text(record, encoding="utf-8")
            self._write_table(found, folder)
            photos = [mistake.prediction.photo for mistake in found.mistakes]
            self._write_page(folder, parts, _data(found, self._style.colormap), photos)

    @staticmethod
    def _write_table(found: Debugging, folder: Path) -> None:
        with (folder / TABLE).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            explained = {one.prediction.photo: (number, one) for number, one in enumerate(found.mistakes, 1)}
            failed = {one.photo: one.error for one in found.failures}
            for one in found.photos:
                number, mistake = explained.get(one.photo, (None, None))
                cells = {**_cells(one, mistake), "suspicion": number, "failure": failed.pop(one.photo, None)}
                table.writerow([as_cell(cells.get(column)) for column in COLUMNS])
            for photo, error in failed.items():
                cells = {"photo": photo, "failure": error}
                table.writerow([as_cell(cells.get(column)) for column in COLUMNS])


def _cells(one: Prediction, mistake: Mistake | None) -> dict[str, Any]:
    cells: dict[str, Any] = {
        "photo": one.photo,
        "path": one.path,
        "true": one.true.index,
        "true_label": one.true.label,
        "predicted": one.predicted.index,
        "predicted_label": one.predicted.label,
        "probability_true": one.true.probability,
        "probability_predicted": one.predicted.probability,
        "correct": one.is_correct,
    }
    if mistake is None:
        return cells
    for name, evidence in (("predicted", mistake.predicted), ("true", mistake.true)):
        cells |= {
            f"part_{name}": evidence.part,
            f"part_share_{name}": evidence.part_share,
            f"outside_{name}": evidence.outside,
            f"at_edge_{name}": evidence.measures.share_at_edge,
        }
    cells |= {
        "flags": " ".join(mistake.flags),
        "in_common": mistake.in_common,
        "object_cut": mistake.cut,
        "unseen": mistake.unseen,
        "error": mistake.error,
    }
    if mistake.without is not None:
        cells |= {
            "removed": mistake.without.share,
            "probability_true_without": mistake.without.true,
            "probability_predicted_without": mistake.without.predicted,
            "winner_without": mistake.without.winner.index,
            "true_wins_without": mistake.without.true_wins,
        }
    return cells


def _data(found: Debugging, colormap: str) -> dict[str, Any]:
    """Return what the page shows as plain JSON."""
    whole = found.to_dict()
    order = {(pair.true, pair.predicted): number for number, pair in enumerate(found.pairs)}
    of = {one["photo"]: one for one in whole["photos"]}
    rows = [
        {**of[one.prediction.photo], **of[one.prediction.photo]["mistake"], "pair": order[one.prediction.pair]}
        for one in found.mistakes
    ]
    for row in rows:
        del row["mistake"]
    highest = max(float(one.grid.max()) for one in (found.wrong, found.right))
    about = {key: whole[key] for key in _SHOWN}
    return {
        "about": {**about, "photos": len(found.photos), "highest": highest},
        "means": [_mean(one, highest, colormap) for one in (found.wrong, found.right)],
        "pairs": [
            {**pair, "true_name": pair["names"][0], "predicted_name": pair["names"][1]} for pair in whole["pairs"]
        ],
        "rows": rows,
    }


def _mean(one: MeanMap, highest: float, colormap: str) -> dict[str, Any]:
    levels = np.rint(one.grid / (highest or 1) * 255).astype(np.uint8)
    picture = base64.b64encode(encode_png(colour_table(colormap)[levels])).decode("ascii")
    return {"count": one.count, "part": one.part, "picture": picture}
