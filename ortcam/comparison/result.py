"""Hold the result of a comparison: the values of each photo and pair of columns, their means, tables and files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from ortcam.comparison.folder import FORMAT
from ortcam.comparison.measures import DEFINITIONS, Similarity
from ortcam.comparison.verdict import Verdict, judge
from ortcam.core.files import replace_files
from ortcam.core.provenance import Origin
from ortcam.core.selection import ErrorEstimate
from ortcam.core.targets import Target
from ortcam.evaluation.dataset_files import and_more
from ortcam.evaluation.rows import Failure
from ortcam.evaluation.statistics import Interval, mean_intervals

_LOWEST = 5  # photos in a summary
_MOST_LOOKS = 3  # columns for which photos are named below the table
_LONGEST_NAME = 28  # characters of a photo's name in the table


@dataclass(frozen=True)
class Predicted:
    """The most probable class of a model for a photo.

    Attributes:
        index: the class index.
        label: its label; None if the model has no labels.
        probability: in [0,1].
    """

    index: int
    label: str | None
    probability: float

    @property
    def name(self) -> str:
        """The label's first synonym, or ``class N``."""
        return f"class {self.index}" if self.label is None else self.label.split(",")[0].strip()


@dataclass(frozen=True)
class Cell:
    """The map of one column for one photo.

    Attributes:
        target: the target of the map, with its score by the column's model.
        predicted: the model's most probable class; None for a model of another task.
        error: the estimated error of the map against the exact map; None if it is unknown.
        flat: whether the map has the same value everywhere.
        scored: the number of masked inputs.
        seconds: wall time; columns that share passes share it.
    """

    target: Target
    predicted: Predicted | None
    error: ErrorEstimate | None
    flat: bool
    scored: int
    seconds: float

    @property
    def score(self) -> float:
        """The probability of the explained class; of another target, its score."""
        return self.target.probability if self.target.place is None else self.target.logit


@dataclass(frozen=True)
class Pair:
    """Two columns, compared on one photo.

    Attributes:
        first, second: the places of the columns, from 0.
        similarity: of the two maps.
        same_class: whether the two models' most probable classes are the same; None within one model, and for models
            of other tasks.
        difference: the score of the target by the second column's model minus that by the first's; None within one
            model, and for columns with different targets.
    """

    first: int
    second: int
    similarity: Similarity
    same_class: bool | None
    difference: float | None


@dataclass(frozen=True)
class Compared:
    """One photo.

    Attributes:
        name: unique in a comparison.
        origin: the photo's hash and path.
        size: (H, W) in pixels.
        cells: one for each column.
        pairs: one for every two columns.
    """

    name: str
    origin: Origin
    size: tuple[int, int]
    cells: tuple[Cell, ...]
    pairs: tuple[Pair, ...]

    def with_first(self, column: int) -> Pair:
        """Return the pair of the first column and another."""
        return next(pair for pair in self.pairs if (pair.first, pair.second) == (0, column))

    @property
    def rank(self) -> float:
        """The least r of a column with the first; -2 if one of these maps is flat, so that such photos come first."""
        found = [pair.similarity.r for pair in self.pairs if pair.first == 0]
        return min(-2.0 if r is None else r for r in found)


@dataclass(frozen=True)
class Repeated:
    """A photo that was given twice, and counts once.

    Attributes:
        photo: its second name.
        same_as: the name under which it is compared.
    """

    photo: str
    same_as: str


@dataclass(frozen=True)
class Summary:
    """One column against the first, over all photos.

    Attributes:
        column: the column's name.
        r, spearman, energy_in_common: means over the photos where the values exist, with 95 % bootstrap intervals.
        least_r: the least r; None if no photo has one.
        least_photo: the photo with the least r.
        same_class: the share of photos whose most probable class is the same; None within one model, and for models
            of other tasks.
        difference: the mean of the score differences; None where `Pair.difference` is.
        largest_difference: the difference with the largest absolute value.
        flat: the number of photos on which one of the two maps is flat.
        changed: the photos whose most probable class differs.
        lowest: up to five photos with the least r, the least first: their names and r.
    """

    column: str
    r: Interval
    spearman: Interval
    energy_in_common: Interval
    least_r: float | None
    least_photo: str | None
    same_class: Interval | None
    difference: Interval | None
    largest_difference: float | None
    flat: int
    changed: tuple[str, ...]
    lowest: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Comparison:
    """Maps of the same photos, compared.

    Attributes:
        columns: the names of the columns.
        settings: everything that decides the values, as plain JSON.
        photos: the photos that every column explained, in the order given.
        failures: the photos that a column could not explain.
        unrelated_r: the mean r of the first column's maps of different photos; None with fewer than two photos.
        repeated: the photos whose file has the same bytes as an earlier one.
    """

    columns: tuple[str, ...]
    settings: Mapping[str, Any]
    photos: tuple[Compared, ...]
    failures: tuple[Failure, ...]
    unrelated_r: float | None
    repeated: tuple[Repeated, ...] = ()

    @cached_property
    def summaries(self) -> tuple[Summary, ...]:
        """One for each column but the first."""
        return tuple(self._summarise(column) for column in range(1, len(self.columns)))

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One for each column but the first."""
        return tuple(judge(summary, len(self.photos), self.unrelated_r) for summary in self.summaries)

    def _summarise(self, column: int) -> Summary:
        pairs = [(photo.name, photo.with_first(column)) for photo in self.photos]
        series = [
            [value for _, pair in pairs if (value := getattr(pair.similarity, name)) is not None]
            for name in ("r", "spearman", "energy_in_common")
        ]
        agreed = [float(pair.same_class) for _, pair in pairs if pair.same_class is not None]
        differences = [pair.difference for _, pair in pairs if pair.difference is not None]
        r, spearman, energy, same, difference = mean_intervals([*series, agreed, differences])
        known = [(name, pair.similarity.r) for name, pair in pairs if pair.similarity.r is not None]
        lowest = sorted(known, key=lambda one: one[1])[:_LOWEST]
        return Summary(
            column=self.columns[column],
            r=r,
            spearman=spearman,
            energy_in_common=energy,
            least_r=lowest[0][1] if lowest else None,
            least_photo=lowest[0][0] if lowest else None,
            same_class=same if agreed else None,
            difference=difference if differences else None,
            largest_difference=max(differences, key=abs, default=None),
            flat=sum(pair.similarity.r is None for _, pair in pairs),
            changed=tuple(name for name, pair in pairs if pair.same_class is False),
            lowest=tuple(lowest),
        )

    def cells(self, wide: bool = True) -> tuple[list[str], list[list[str]]]:
        """Return the heads and the rows of the table of all columns but the first, as text."""
        some = self.summaries
        difference = "difference of P" if self.classifies else "difference of score"
        kinds = {
            "column": [one.column for one in some],
            "mean r": [_interval(one.r) for one in some],
            "least r": ["-" if one.least_r is None else f"{one.least_r:.3f}" for one in some],
            "of photo": [_short(one.least_photo or "-") for one in some],
            "Spearman": [_interval(one.spearman) for one in some],
            "energy in common": [_interval(one.energy_in_common) for one in some],
            "same top class": [_share(one.same_class) for one in some],
            difference: ["-" if one.difference is None else f"{one.difference.mean:+.3f}" for one in some],
            "flat": [str(one.flat) for one in some],
        }
        unneeded = set() if wide else {"of photo", "Spearman", "energy in common"}
        unneeded |= set() if any(one.same_class for one in some) else {"same top class"}
        unneeded |= set() if any(one.difference for one in some) else {difference}
        unneeded |= set() if any(one.flat for one in some) else {"flat"}
        chosen = {head: cells for head, cells in kinds.items() if head not in unneeded}
        return list(chosen), [list(row) for row in zip(*chosen.values(), strict=True)]

    @property
    def classifies(self) -> bool:
        """Whether the models are classifiers."""
        return any(cell.predicted is not None for photo in self.photos[:1] for cell in photo.cells)

    def table(self) -> str:
        """Return the table as text, with the verdicts below it."""
        heads, rows = self.cells()
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        lines = [
            "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in (heads, *rows)
        ]
        return "\n".join(line.rstrip() for line in [*lines, "", *self.lines()])

    def lines(self) -> list[str]:
        """Return the lines below the table: the verdict of each column, the error of a budget, and the scale.

        With at most four columns, also the photos to look at first.
        """
        lines = list[str]()
        for verdict in self.verdicts:
            lines.append(verdict.text)
            if verdict.look and len(self.verdicts) <= _MOST_LOOKS:
                lines.append(verdict.look)
        errors = [cell.error.expected for photo in self.photos for cell in photo.cells if cell.error is not None]
        if any(errors):
            mean = sum(errors) / len(errors)
            lines.append(f"the budget alone moves a map by about 1 - r = {mean:.2g} (mean of the estimated errors)")
        if self.unrelated_r is not None:
            lines.append(f"scale: maps of different photos have a mean r of {self.unrelated_r:.2f}")
        if self.repeated:
            twice = [f"{one.photo} (the same file as {one.same_as})" for one in self.repeated]
            lines.append(f"photos given twice count once: {and_more(twice)}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON; docs/compare.md describes it."""
        plain: dict[str, Any] = _plain(
            {
                "format": FORMAT,
                **self.settings,
                "definitions": DEFINITIONS,
                "photos": [self._describe(photo) for photo in self.photos],
                "summaries": [asdict(summary) for summary in self.summaries],
                "verdicts": [asdict(verdict) for verdict in self.verdicts],
                "unrelated_r": self.unrelated_r,
                "failures": [asdict(failure) for failure in self.failures],
                "repeated": [asdict(one) for one in self.repeated],
            }
        )
        return plain

    def _describe(self, photo: Compared) -> dict[str, Any]:
        origin = photo.origin
        return {
            "name": photo.name,
            "path": None if origin.path is None else str(origin.path),
            "hashed": origin.kind,
            "sha256": origin.sha256,
            "height": photo.size[0],
            "width": photo.size[1],
            "cells": [asdict(cell) for cell in photo.cells],
            "pairs": [
                {
                    "first": pair.first,
                    "second": pair.second,
                    **asdict(pair.similarity),
                    "same_class": pair.same_class,
                    "difference": pair.difference,
                }
                for pair in photo.pairs
            ],
        }

    def to_json(self, path: str | PathLike[str]) -> Path:
        """Write `to_dict` to a file, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        path = Path(path)
        with replace_files(path) as folder:
            self.write_json(folder / path.name)
        return path

    def write_json(self, path: Path) -> None:
        """Write `to_dict` to a file in an unfinished folder."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        path.write_text(text, encoding="utf-8", errors="backslashreplace")

    def write_csv(self, path: Path) -> None:
        """Write a row for each photo and pair of columns to a file in an unfinished folder."""
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            csv.writer(file).writerows(self._rows())

    def _rows(self) -> Iterator[Sequence[Any]]:
        yield (
            "photo", "first", "second", "target_first", "target_second", "r", "spearman", "energy_in_common",
            "score_first", "score_second", "difference", "class_first", "class_second", "same_class",
            "probability_first", "probability_second", "flat_first", "flat_second",
        )  # fmt: skip
        for photo in self.photos:
            for pair in photo.pairs:
                one, other = photo.cells[pair.first], photo.cells[pair.second]
                classes = (one.predicted, other.predicted)
                yield (
                    photo.name,
                    *(self.columns[place] for place in (pair.first, pair.second)),
                    *(cell.target.name for cell in (one, other)),
                    *asdict(pair.similarity).values(),
                    one.score, other.score, pair.difference,
                    *(None if found is None else found.name for found in classes),
                    pair.same_class,
                    *(None if found is None else found.probability for found in classes),
                    one.flat, other.flat,
                )  # fmt: skip


def _interval(interval: Interval) -> str:
    if interval.mean is None:
        return "-"
    if interval.low is None:
        return f"{interval.mean:.3f}"
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _share(interval: Interval | None) -> str:
    if interval is None or interval.mean is None:
        return "-"
    bounds = "" if interval.low is None else f" ({interval.low:.0%} to {interval.high:.0%})"
    return f"{interval.mean:.0%}{bounds}"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}"


def _plain(value: Any) -> Any:
    """Return a value in JSON's types; a number that is not finite becomes null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
