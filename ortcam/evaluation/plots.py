"""Draw the mean curves of an evaluation: how the probability changes while pixels are shown or removed."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ortcam.errors import OptionError
from ortcam.evaluation.rows import Column
from ortcam.evaluation.statistics import mean_intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from ortcam.evaluation.result import Result

# Okabe and Ito's colours for every kind of sight ("Color Universal Design", 2008), without yellow, which is too light
# for a line on white. A marker of its own tells a line apart in black and white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREYS = ("#555555", "#888888", "#AAAAAA")
_DASHES = ((0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1, 2)))
_MOST_BANDS = 4  # bands of more methods cover each other
_RESAMPLES = 2000  # a band's edge moves by less than a line's width between seeds
_ACROSS = 3  # most panels side by side
_DPI = 150
_LEGEND_POINTS = 37  # from the panel to its legend
KINDS = (".png", ".svg", ".pdf")


def draw_curves(result: Result) -> Figure:
    """Return a figure with a panel for each column that has a curve.

    A line is the mean over photos of a method's scores; its band is the bootstrap 95 % interval at each point. More
    than four methods have no bands. Controls are dashed and grey. The legend holds the mean of the column's values, the
    area under the curve, and half the width of its interval.

    Raises:
        OptionError: no column has a curve, or matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError("curves need matplotlib: pip install 'ortcam[evaluation]'") from error
    columns = result.curve_columns
    if not columns:
        raise OptionError("the result has no curves; expected a metric with a curve: add insertion or deletion")
    down = math.ceil(len(columns) / _ACROSS)
    across = math.ceil(len(columns) / down)
    entries = len(result.methods)
    height = 3.6 + 0.2 * entries  # the legend stands below the panel
    figure = Figure(figsize=(4.6 * across, height * down), dpi=_DPI, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for column, axes in zip(columns, panels, strict=False):
        _draw_panel(figure, axes, result, column)
    for axes in panels[len(columns) :]:
        axes.set_axis_off()
    figure.suptitle(_title(result, columns), fontsize=9, color="#333333")
    return figure


def encode(figure: Figure, suffix: str) -> bytes:
    """Return the bytes of a picture file.

    Args:
        suffix: the end of the file's name: one of `KINDS`.

    Raises:
        OptionError: the suffix is another one.
    """
    if suffix.lower() not in KINDS:
        raise OptionError(
            f"cannot draw a picture of the kind {suffix!r}; expected a name that ends in {', '.join(KINDS)}"
        )
    data = io.BytesIO()
    figure.savefig(data, format=suffix.lower()[1:], facecolor="white")
    return data.getvalue()


def mean_curve(result: Result, method: str, column: str) -> NDArray[np.float64]:
    """Return the mean scores over photos and the bounds of their bootstrap 95 % intervals, float64 [3,points].

    The photos are those of `Result.shared_photos`, as in the table.
    The bounds are NaN for a single photo; without a curve there are 0 points.
    """
    shared = result.shared_photos(column)
    rows_of = [row for row in result.rows if row.method == method and row.photo in shared]
    curves = [row.curves[column] for row in rows_of if column in row.curves]
    points = mean_intervals([list(scores) for scores in zip(*curves, strict=True)], resamples=_RESAMPLES)
    rows = [[point.mean for point in points], [point.low for point in points], [point.high for point in points]]
    return np.array(rows, dtype=np.float64)  # NaN for None


def _title(result: Result, columns: tuple[Column, ...]) -> str:
    shared = [result.shared_photos(column.name) for column in columns]
    least, most = min(map(len, shared)), max(map(len, shared))
    if least == most == 1:
        return f"one photo: {next(iter(shared[0]))}"
    line = f"mean over {most if least == most else f'{least} to {most}'} photos"
    return f"line: {line}; band: its 95 % bootstrap interval" if _bands(result) else line


def _bands(result: Result) -> bool:
    return len(result.methods) - len(result.controls) <= _MOST_BANDS


def _draw_panel(figure: Figure, axes: Axes, result: Result, column: Column) -> None:
    lines: list[tuple[float, Line2D, str]] = []
    lowest, highest = 0.0, 0.0
    for method, style in _styles(result):
        mean, low, high = mean_curve(result, method, column.name)
        if not len(mean):
            continue
        (line,) = axes.plot(column.fractions, mean, markevery=_markers(len(mean), len(lines)), **style)
        if _bands(result) and method not in result.controls:
            axes.fill_between(column.fractions, low, high, color=style["color"], alpha=0.15, linewidth=0)
        lowest, highest = min(lowest, float(mean.min())), max(highest, float(mean.max()))
        lines.append((_rank(result, method, column), line, _legend_text(result, method, column)))
    lines.sort(key=lambda entry: entry[0])
    axes.set_xlabel("pixels removed" if column.metric.startswith("deletion") else "pixels shown")
    is_probability = lowest >= 0 and highest <= 1
    axes.set_ylabel("probability of the class" if is_probability else "score of the class")
    axes.xaxis.set_major_formatter(lambda fraction, _: f"{100 * fraction:.0f} %")
    axes.set_xlim(0, 1)
    if is_probability:
        axes.set_ylim(bottom=0)
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    better = "" if column.better is None else f" ({column.better} is better)"
    axes.set_title(f"{column.name}{better}", fontsize=10, loc="left")
    _draw_legend(figure, axes, [line for _, line, _ in lines], [text for _, _, text in lines])


def _draw_legend(figure: Figure, axes: Axes, lines: list[Line2D], texts: list[str]) -> None:
    """Draw a legend below the panel, at a distance in points that leaves room for the axis' name."""
    from matplotlib.transforms import ScaledTranslation

    below = ScaledTranslation(0, -_LEGEND_POINTS / 72, figure.dpi_scale_trans)
    axes.legend(
        lines,
        texts,
        title="value and method",
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=axes.transAxes + below,
        borderaxespad=0,
        frameon=False,
        fontsize=8,
        title_fontsize=8,
        handlelength=3.5,
    )


def _rank(result: Result, method: str, column: Column) -> float:
    """Return a number that puts the best line first in the legend, and lines without an area last."""
    area = result.summary()[method][column.name].interval.mean
    if area is None:
        return math.inf
    return {"higher": -area, "lower": area, None: 0.0}[column.better]


def _legend_text(result: Result, method: str, column: Column) -> str:
    area = result.summary()[method][column.name].interval
    name = f"{method} (control)" if method in result.controls else method
    if area.mean is None:
        return name
    if area.low is None or area.high is None:
        return f"{area.mean:.3f}  {name}"
    return f"{area.mean:.3f} ±{(area.high - area.low) / 2:.3f}  {name}"


def _styles(result: Result) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each method with the style of its line; controls first, so that they lie below."""
    for place, method in enumerate(result.controls):
        style = {"color": _GREYS[place % len(_GREYS)], "linestyle": _DASHES[place % len(_DASHES)], "linewidth": 1.3}
        yield method, style
    places = count()
    for method in result.methods:
        if method not in result.controls:
            place = next(places)
            colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
            rest = place // len(_COLOURS)  # from the eighth method on, colours come again with hollow markers
            face = "white" if rest else colour
            yield (
                method,
                {"color": colour, "marker": marker, "markersize": 4, "markerfacecolor": face, "linewidth": 1.6},
            )


def _markers(points: int, line: int) -> tuple[int, int]:
    """Return where a line has markers: about six, not at the same points as those of other lines."""
    every = max(1, points // 6)
    return line % every, every
