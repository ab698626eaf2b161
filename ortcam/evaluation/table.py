"""Draw the means of an evaluation as text."""

from __future__ import annotations

import itertools
import shutil
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ortcam.evaluation.rows import Column

if TYPE_CHECKING:
    from ortcam.evaluation.result import Result

_PIPE_WIDTH = 160
_NARROWEST = 40  # of footnotes
_GAP = "  "
_BETTER = {"higher": "high is good", "lower": "low is good", None: ""}
_MOST_NOTES = 12  # lines of missing values
_MOST_FAILURES = 3
_FEWEST = 6  # photos for a clear difference: by chance, 6 of 6 favour one method in 1 of 32 cases, 5 of 5 in 1 of 16


def draw_table(result: Result, width: int | None = None) -> str:
    """Return `Result.table`."""
    if width is None:
        width = shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns
    order = [name for name in result.methods if name not in result.controls]
    order += result.controls
    names = [f"{name} (control)" if name in result.controls else name for name in order]
    left = max(map(len, names), default=0)
    drawn = [_draw_column(result, column, order) for column in result.columns]
    lines = [*_wrap(_title(result), width), ""]
    for block in _blocks(drawn, width - left):
        for name, *cells in zip(("", "", *names), *block, strict=True):
            lines.append((name.ljust(left) + "".join(_GAP + cell for cell in cells)).rstrip())
        lines.append("")
    for note in _notes(result):
        lines += _wrap(note, width)
    return "\n".join(lines).rstrip("\n")


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, _NARROWEST), subsequent_indent="  ", break_on_hyphens=False)


def _title(result: Result) -> str:
    count, dataset = len(result.photos), result.record.get("dataset", {})
    full = dataset.get("samples", count)
    noun = "sample" if _shares_photos(result) else "photo"
    title = f"{count}{f' of {full}' if count != full else ''} {noun}{'' if full == 1 else 's'}"
    if noun == "sample":
        title += f" (each class of the {dataset['photos']} photos is a sample)"
    only, most = result.record.get("only", "all"), result.record.get("most_per_class")
    chosen = [*([f"only {only} ones"] if only != "all" else []), *([f"at most {most} a class"] if most else [])]
    if chosen:
        title += f"; {', '.join(chosen)}"
    if count == 1:
        title += f"; one {noun} has no intervals"
    if count > 1:
        title += f"; mean over {noun}s ± half the width of its 95 % bootstrap interval"
    return title


def _shares_photos(result: Result) -> bool:
    """Return whether a photo may have several samples, one for each class in it."""
    dataset = result.record.get("dataset", {})
    return bool(dataset.get("photos") != dataset.get("samples"))


def _draw_column(result: Result, column: Column, order: list[str]) -> list[str]:
    """Return the name of a column, what is good, and a cell for each method, all of one width."""
    intervals = [result.summary()[method][column.name].interval for method in order]
    best = result.best(column, [name for name in order if name not in result.controls])
    compared = len(order) - len(result.controls) > 1
    largest = max((abs(each.mean) for each in intervals if each.mean is not None), default=0.0)
    digits = 3 if largest < 10 else 1
    means = ["-" if each.mean is None else f"{each.mean:.{digits}f}" for each in intervals]
    spreads = [
        "" if each.low is None or each.high is None else f" ±{(each.high - each.low) / 2:.{digits}f}"
        for each in intervals
    ]
    wide, broad = max(map(len, means), default=0), max(map(len, spreads), default=0)
    cells = [
        f"{mean.rjust(wide)}{spread.ljust(broad)}{' *' if compared and method in best else '  '}"
        for method, mean, spread in zip(order, means, spreads, strict=True)
    ]
    column_lines = [column.name, _BETTER[column.better], *cells]
    width = max(map(len, column_lines))
    return [line.ljust(width) for line in column_lines]


def _blocks(columns: list[list[str]], width: int) -> Iterator[list[list[str]]]:
    """Yield groups of columns that fit side by side; a column that is too wide stands alone."""
    block: list[list[str]] = []
    used = 0
    for column in columns:
        needed = len(_GAP) + len(column[0])
        if block and used + needed > width:
            yield block
            block, used = [], 0
        block.append(column)
        used += needed
    if block:
        yield block


def _notes(result: Result) -> Iterator[str]:
    methods = [name for name in result.methods if name not in result.controls]
    if len(methods) > 1 and any(result.best(column, methods) for column in result.columns):
        yield "* the best mean among the methods that are not controls"
    yield from _compare_with_controls(result, methods)
    yield from _shared_photos(result)
    missing = list(_missing_values(result))
    yield from missing[:_MOST_NOTES]
    if len(missing) > _MOST_NOTES:
        yield f"... and {len(missing) - _MOST_NOTES} more reasons for missing values: see the JSON"
    yield from result.record.get("dataset", {}).get("notes", [])
    if _shares_photos(result) and len(result.photos) > 1:
        yield "intervals take the samples of one photo as independent, so they may be too narrow"
    if failures := len(result.failures):
        named = (one.error if one.photo in one.error else f"{one.photo}: {one.error}" for one in result.failures)
        shown = [f"- {line}" for line in itertools.islice(named, _MOST_FAILURES)]
        noun = "sample" if _shares_photos(result) else "photo"
        some = (
            f"{noun} could not be evaluated and counts"
            if failures == 1
            else f"{noun}s could not be evaluated and count"
        )
        yield f"{failures} {some} nowhere:"
        yield from shown
        if failures > len(shown):
            yield f"- ... and {failures - len(shown)} more: see the JSON"


def _compare_with_controls(result: Result, methods: list[str]) -> Iterator[str]:
    """Yield a line for each column in which a method is not clearly better than the best control."""
    best = {column.name: result.best(column, result.controls)[:1] for column in result.columns}
    pairs = {(method, control) for controls in best.values() for control in controls for method in methods}
    compared = result.compare_all(sorted(pairs)) if len(result.photos) > 1 else {}
    for column in result.columns:
        unclear = []
        for control in best[column.name]:
            for method in methods:
                found = compared[method, control][column.name].difference if compared else None
                if found is None or found.low is None or found.high is None:
                    continue
                clear = found.low > 0 if column.better == "higher" else found.high < 0
                if not clear or found.count < _FEWEST:
                    unclear.append(method)
        if unclear:
            control = best[column.name][0]
            which = "no method is" if len(unclear) == len(methods) else f"{', '.join(unclear)}: not"
            yield f"{column.name}: {which} clearly better than the control {control}, photo by photo (95 %)"


def _shared_photos(result: Result) -> Iterator[str]:
    """Yield a line for columns whose means leave out photos on which some method has a value, and another has none."""
    counts: dict[int, list[str]] = {}
    for column in result.columns:
        shared = len(result.shared_photos(column.name))
        if any(len(result.values(method, column.name)) > shared for method in result.methods):
            counts.setdefault(shared, []).append(column.name)
    noun = "sample" if _shares_photos(result) else "photo"
    for count, names in counts.items():
        where = "" if len(names) == len(result.columns) else f"{', '.join(names)}: "
        mean = f"the means are those of the {count} of {len(result.photos)} {noun}s"
        yield f"{where}{mean if count else f'no means, because there is no {noun}'} on which every method has a value"


def _missing_values(result: Result) -> Iterator[str]:
    """Yield a line for each method and reason: in which columns values are missing, and how often."""
    for method, columns in result.summary().items():
        counts: dict[tuple[str, int], list[str]] = {}
        for name, summary in columns.items():
            for reason, count in summary.undefined.items():
                counts.setdefault((reason, count), []).append(name)
        for (reason, count), names in counts.items():
            where = "" if len(names) == len(result.columns) else f" in {', '.join(names)}"
            maps = next(iter(columns.values())).maps
            yield f"{method}: no value{where} for {count} of {maps} maps: {reason}"
