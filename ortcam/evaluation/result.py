"""The result of an evaluation: values per photo, their means and intervals, and the files that hold them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ortcam.core.files import replace_files
from ortcam.errors import OptionError, OutputError, nearest
from ortcam.evaluation.journal import RESULTS, as_json, finite, row_from_dict, row_to_dict
from ortcam.evaluation.rows import Column, Failure, Row
from ortcam.evaluation.statistics import Comparison, Summary, mean_intervals, paired_intervals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1
_ALL_PAIRS = 8  # up to this number of methods, every pair is compared in the JSON


@dataclass(frozen=True)
class Result:
    """The result of an evaluation. The order of the photos changes no mean and no interval.

    Values and scores that are not finite become undefined, with a reason; so JSON never holds NaN.

    Attributes:
        columns: the values that were measured.
        methods: the names of all methods, controls among them, in the order of the table.
        controls: the names of the methods that are controls, such as ``random`` and ``centre``.
        rows: the values of each map.
        failures: the photos that could not be evaluated.
        record: everything that the values depend on, as plain JSON.

    Raises:
        OptionError: a name is used twice or is unknown, a method has two rows of a photo, a curve has another number of
            points than its column, or the record holds a value that JSON cannot keep.
    """

    columns: tuple[Column, ...]
    methods: tuple[str, ...]
    controls: tuple[str, ...]
    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]
    record: Mapping[str, Any]

    def __post_init__(self) -> None:
        controls = set(self.controls)
        vars(self).update(
            columns=tuple(self.columns),
            methods=tuple(self.methods),
            controls=tuple(method for method in self.methods if method in controls),
            rows=tuple(map(finite, self.rows)),
            failures=tuple(self.failures),
            record=as_json(self.record, "the record"),
        )
        _check_once("column", (column.name for column in self.columns))
        _check_once("method", self.methods)
        for name in (*controls, *(row.method for row in self.rows)):
            self._check_method(name)
        _check_once("row", (f"{row.method}, {row.photo}" for row in self.rows))
        points = {column.name: len(column.fractions) for column in self.columns}
        for row in self.rows:
            for name, curve in row.curves.items():
                if len(curve) != points.get(name):
                    where = f"curve {name!r} of {row.method}, {row.photo}"
                    raise OptionError(f"{where} has {len(curve)} points; expected {points.get(name, 'no such curve')}")

    @classmethod
    def from_json(cls, path: str | PathLike[str]) -> Self:
        """Read the result that `to_json` wrote.

        Raises:
            OptionError: the file is missing, or it is not a result of this format.
        """
        try:
            found = json.loads(Path(path).read_bytes())
            if found["format"] != FORMAT:
                raise OptionError(f"{path} has format {found['format']}; expected format {FORMAT}; evaluate again")
            return cls(
                columns=tuple(Column(**{**each, "fractions": tuple(each["fractions"])}) for each in found["columns"]),
                methods=tuple(found["methods"]),
                controls=tuple(found["controls"]),
                rows=tuple(map(row_from_dict, found["rows"])),
                failures=tuple(Failure(**each) for each in found["failures"]),
                record=found["record"],
            )
        except OSError as error:
            raise OptionError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(f"{path} is not the result of an evaluation; expected a results.json") from error

    @cached_property
    def photos(self) -> tuple[str, ...]:
        """The names of the photos that were evaluated."""
        return tuple(dict.fromkeys(row.photo for row in self.rows))

    def values(self, method: str, column: str) -> dict[str, float]:
        """Return the defined values of a method, by photo.

        Raises:
            OptionError: the method or the column is unknown.
        """
        self._check_method(method)
        self.column(column)
        return dict(self._values.get((method, column), {}))

    def column(self, name: str) -> Column:
        """Return the column of a name.

        Raises:
            OptionError: the name is unknown.
        """
        for column in self.columns:
            if column.name == name:
                return column
        names = [column.name for column in self.columns]
        raise OptionError(f"column {name!r} is unknown; expected one of {', '.join(names)}{nearest(name, names)}")

    @cached_property
    def _values(self) -> dict[tuple[str, str], dict[str, float]]:
        """The defined values by method and column, then by photo."""
        found: dict[tuple[str, str], dict[str, float]] = {}
        for row in self.rows:
            for name, value in row.values.items():
                if value is not None:
                    found.setdefault((row.method, name), {})[row.photo] = value
        return found

    def shared_photos(self, column: str) -> frozenset[str]:
        """Return the photos on which every method has a value in a column; a method without any value does not count.

        Raises:
            OptionError: the column is unknown.
        """
        self.column(column)
        return self._shared[column]

    @cached_property
    def _shared(self) -> dict[str, frozenset[str]]:
        shared: dict[str, frozenset[str]] = {}
        for column in self.columns:
            known = [frozenset(self._values.get((method, column.name), {})) for method in self.methods]
            some = [photos for photos in known if photos]
            shared[column.name] = some[0].intersection(*some[1:]) if some else frozenset()
        return shared

    def summary(self) -> dict[str, dict[str, Summary]]:
        """Return the mean, its interval and the counts, by method and then by column."""
        return {method: dict(columns) for method, columns in self._summary.items()}

    @cached_property
    def _summary(self) -> dict[str, dict[str, Summary]]:
        keys = [(method, column.name) for method in self.methods for column in self.columns]
        samples = [self._values.get((method, name), {}) for method, name in keys]
        intervals = mean_intervals([
            [value for photo, value in found.items() if photo in self._shared[name]]
            for (_, name), found in zip(keys, samples, strict=True)
        ])  # fmt: skip
        maps = Counter(row.method for row in self.rows)
        undefined = {key: Counter[str]() for key in keys}
        for row in self.rows:
            for column in self.columns:
                if row.values.get(column.name) is None:
                    undefined[row.method, column.name][row.reasons.get(column.name, "no value")] += 1
        summary: dict[str, dict[str, Summary]] = {method: {} for method in self.methods}
        for (method, name), interval in zip(keys, intervals, strict=True):
            summary[method][name] = Summary(interval, maps[method], dict(sorted(undefined[method, name].items())))
        return summary

    def compare(self, a: str, b: str) -> dict[str, Comparison]:
        """Compare two methods photo by photo; return the comparison in each column, by its name.

        Raises:
            OptionError: a method is unknown.
        """
        return self.compare_all([(a, b)])[a, b]

    def compare_all(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Comparison]]:
        """Return `compare` of each pair of methods, by the pair; faster than one by one."""
        comparisons: dict[tuple[str, str], dict[str, Comparison]] = {pair: {} for pair in pairs}
        samples = []
        for a, b in comparisons:
            self._check_method(a)
            self._check_method(b)
            for column in self.columns:
                first, second = (self._values.get((method, column.name), {}) for method in (a, b))
                both = [photo for photo in first if photo in second]
                samples.append(([first[photo] for photo in both], [second[photo] for photo in both]))
        found = iter(paired_intervals(samples))
        for columns in comparisons.values():
            for column in self.columns:
                pair = next(found)
                counts = {"higher": (pair.above, pair.below), "lower": (pair.below, pair.above), None: (None, None)}
                columns[column.name] = Comparison(pair.interval, *counts[column.better])
        return comparisons

    def best(self, column: Column, methods: Iterable[str]) -> tuple[str, ...]:
        """Return those of the methods with the best mean of a column; empty if no value is better than another."""
        means = {method: self._summary[method][column.name].interval.mean for method in methods}
        defined = [mean for mean in means.values() if mean is not None]
        if column.better is None or not defined:
            return ()
        best = max(defined) if column.better == "higher" else min(defined)
        return tuple(method for method, mean in means.items() if mean == best)

    def table(self, width: int | None = None) -> str:
        """Return the means as text: a line for each method, controls last, and footnotes.

        Args:
            width: the characters in a line; wider tables continue below. None for the terminal's width, or 160 for a
                pipe.
        """
        from ortcam.evaluation.table import draw_table

        return draw_table(self, width)

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON. No number is NaN."""
        return {
            "format": FORMAT,
            "record": as_json(self.record, "the record"),
            "columns": [{**asdict(column), "fractions": list(column.fractions)} for column in self.columns],
            "methods": list(self.methods),
            "controls": list(self.controls),
            "photos": len(self.photos),
            "summary": {
                method: {name: asdict(summary) for name, summary in columns.items()}
                for method, columns in self._summary.items()
            },
            "comparisons": [
                {"first": a, "second": b, "columns": {name: asdict(each) for name, each in columns.items()}}
                for (a, b), columns in self.compare_all(self._pairs()).items()
            ],
            "failures": [asdict(failure) for failure in self.failures],
            "rows": [row_to_dict(row) for row in self.rows],
        }

    def _pairs(self) -> list[tuple[str, str]]:
        """Return all pairs of methods; of many methods, those with the first method and those with a control."""
        if len(self.methods) <= _ALL_PAIRS:
            return list(combinations(self.methods, 2))
        others = [name for name in self.methods if name not in self.controls]
        return [(name, others[0]) for name in others[1:]] + [
            (name, other) for name in others for other in self.controls
        ]

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write `to_dict` as JSON; the file appears whole or not at all.

        Raises:
            OutputError: the file cannot be written.
        """
        _write_files(Path(path), {Path(path).name: self._json()})

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write a line for each map: photo, method, classes, values, and the reasons for missing values.

        Raises:
            OutputError: the file cannot be written.
        """
        _write_files(Path(path), {Path(path).name: self._csv()})

    def save(self, folder: str | PathLike[str]) -> str | None:
        """Write ``results.json``, ``per-photo.csv`` and, for metrics with a curve, ``curves.png``.

        Earlier files of these names are replaced; other files in the folder stay. ``results.json`` appears last.

        Returns:
            A note if the picture could not be drawn because matplotlib is missing; otherwise None.

        Raises:
            OutputError: the folder cannot be written.
        """
        results, table, picture = RESULTS
        files = {results: self._json(), table: self._csv()}
        note = None
        if self.curve_columns:
            from ortcam.evaluation.plots import draw_curves, encode

            try:
                files[picture] = encode(draw_curves(self), ".png")
            except OptionError as error:
                note = f"{picture} is left out: {error}"
        _write_files(Path(folder) / results, files)
        if picture not in files:  # the picture of an earlier run shows other values
            try:
                (Path(folder) / picture).unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"cannot delete {Path(folder) / picture}: {error.strerror or error}") from error
        return note

    @cached_property
    def curve_columns(self) -> tuple[Column, ...]:
        """The columns that have a curve in any row."""
        names = {name for row in self.rows for name in row.curves}
        return tuple(column for column in self.columns if column.fractions and column.name in names)

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw the mean insertion and deletion curves with their bootstrap intervals.

        Args:
            path: where to write the picture: a PNG, SVG or PDF; None to write no file.

        Returns:
            The figure, which a notebook shows.

        Raises:
            OptionError: no metric has a curve, matplotlib is missing, or the kind of picture is unknown.
            OutputError: the file cannot be written.
        """
        from ortcam.evaluation.plots import draw_curves, encode

        figure = draw_curves(self)
        if path is not None:
            _write_files(Path(path), {Path(path).name: encode(figure, Path(path).suffix)})
        return figure

    def _json(self) -> bytes:
        """Return the JSON with one line for each row and column, because they may hold hundreds of numbers."""
        parts = []
        for name, value in self.to_dict().items():
            if name in ("rows", "columns") and value:
                lines = ",\n    ".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in value)
                text = f"[\n    {lines}\n  ]"
            else:
                text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).replace("\n", "\n  ")
            parts.append(f'  "{name}": {text}')
        return ("{\n" + ",\n".join(parts) + "\n}\n").encode("utf-8", "backslashreplace")

    def _csv(self) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        names = [column.name for column in self.columns]
        named = any(row.target for row in self.rows)  # of a model of another task
        heads = ["photo", "method", "control", "explained", "scored", *(["target"] if named else []), *names, "reason"]
        writer.writerow(heads)
        for row in self.rows:
            values = [row.values.get(name) for name in names]
            reasons = [f"{name}: {row.reasons[name]}" for name in names if name in row.reasons]
            control = "yes" if row.method in self.controls else "no"
            first = [row.photo, row.method, control, row.explained, row.scored, *([row.target] if named else [])]
            writer.writerow([*first, *values, "; ".join(reasons)])
        return text.getvalue().encode("utf-8", "backslashreplace")

    def _check_method(self, name: str) -> None:
        if name not in self.methods:
            known = ", ".join(self.methods) or "none"
            raise OptionError(f"method {name!r} is unknown; expected one of {known}{nearest(name, self.methods)}")


def _check_once(kind: str, names: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise OptionError(f"{kind} {twice[0]!r} is there twice; expected every {kind} once")


def _write_files(path: Path, files: Mapping[str, bytes]) -> None:
    """Write files into the folder of `path`; `path` itself appears last."""
    with replace_files(path) as unfinished:
        try:
            for name, data in files.items():
                (unfinished / name).write_bytes(data)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
