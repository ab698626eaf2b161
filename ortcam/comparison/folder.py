"""The folder of a comparison: its files, and whether a new comparison may replace an earlier one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ortcam.core.files import only
from ortcam.evaluation.earlier import Question, why_other

FORMAT = 1
RECORD, TABLE = "comparison.json", "comparison.csv"
PAGE_MARK = '<meta name="generator" content="ortcam compare">'  # at the beginning of a report of a comparison
_HEAD = 2000  # bytes


def why_occupied(folder: Path, question: Callable[[], Question] | None) -> str | None:
    """Return why a comparison must not replace a folder that is not empty; None if it may.

    Args:
        folder: the folder.
        question: returns the question of the new comparison; None to replace any earlier comparison.
    """
    refused = only(_is_ours)(folder)
    if refused is not None or question is None or all(map(_is_page, folder.iterdir())):
        return refused
    return why_other(folder / RECORD, question(), _question_of)


def keep_pages(folder: Path, unfinished: Path) -> None:
    """Copy the reports in a folder to the unfinished folder that replaces it."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _is_page(path):
            shutil.copy2(path, unfinished / path.name)


def options_of(columns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what decides the values of a comparison, from the columns of its record.

    The maps do not depend on batch sizes, and the versions are in the record.
    """
    return {
        "columns": [one["name"] for one in columns],
        **{
            one["name"]: {
                "model": [one["model"]["sha256"], *(file["sha256"] for file in one["model"]["external_data"])],
                "layer": one["model"]["layer"],
                # The stages of a method are known only after a run.
                "method": {key: value for key, value in one["method"].items() if key != "stages"},
                "provider": one["run"]["provider"],
                **{key: one[key] for key in ("preset", "budget", "tolerance", "selection", "target", "detecting")},
            }
            for one in columns
        },
    }


def _question_of(record: Mapping[str, Any]) -> Question:
    if record["format"] != FORMAT:
        raise ValueError(f"format {record['format']}")
    hashes = {photo["name"]: photo["sha256"] for photo in record["photos"]}
    same = {one["photo"]: hashes.get(one["same_as"]) for one in record.get("repeated", ())}
    failed = {failure["photo"]: None for failure in record["failures"]}  # they are tried again
    return Question(options_of(record["columns"]), {**hashes, **same, **failed})


def _is_ours(path: Path) -> bool:
    """Return whether a comparison or its report writes a file of this name."""
    is_named = path.name in (RECORD, TABLE) or re.fullmatch(r"grid(-\d+)?\.png", path.name) is not None
    return path.is_file() and (is_named or _is_page(path))


def _is_page(path: Path) -> bool:
    if path.suffix.lower() not in (".html", ".htm") or not path.is_file():
        return False
    with path.open("rb") as file:
        return PAGE_MARK.encode() in file.read(_HEAD)
