"""Draw the result of a sanity check: curves of similarity, and a strip of maps. Matplotlib draws them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ortcam.errors import OptionError

if TYPE_CHECKING:
    from ortcam.evaluation.sanity_result import SanityResult, Stage, Summary

_DOTS = 130  # per inch
_MOST_STAGES = 8  # in the strip
_LINES = (("spearman", "Spearman", "#1f5fa8"), ("ssim", "SSIM", "#c2571a"), ("hog", "HOG", "#2d8a4e"))
_GREY = "#6b6b6b"


def draw_curve(result: SanityResult, path: Path) -> None:
    """Draw the mean similarities at every stage, and the range of Spearman's correlation over the photos.

    Raises:
        OptionError: matplotlib is missing.
    """
    stages = result.stages
    figure = _figure(max(7.5, 0.62 * len(stages) + 1.5), 5.6)
    axes = figure.subplots()
    for name, label, colour in _LINES:
        at, found = _known(stages, [stage.measures[name] for stage in stages])
        axes.plot(at, [one.mean for one in found], "o-", color=colour, label=label, markersize=4, linewidth=1.8)
        if name == "spearman" and any(one.count > 1 for one in found):
            lows, highs = [one.low for one in found], [one.high for one in found]
            axes.fill_between(
                at, lows, highs, color=colour, alpha=0.12, linewidth=0, label="Spearman, range over the photos"
            )
    at, found = _known(stages, [stage.control["spearman"] for stage in stages])
    axes.plot(at, [one.mean for one in found], ":", color=_GREY, label="Spearman, plain sum of the channels (control)")
    apart = result.unrelated["spearman"]
    if apart is not None:
        axes.axhline(apart.mean, color=_GREY, linewidth=0.8, linestyle="--", label="Spearman, maps of different photos")
    _mark_target(axes, stages)
    axes.set_xticks(
        [stage.number for stage in stages], [_label(stage) for stage in stages], rotation=35, ha="right", fontsize=8
    )
    axes.set_xlim(0.6, len(stages) + 0.4)
    axes.set_ylim(min(-0.2, axes.get_ylim()[0]), 1.05)
    axes.set_ylabel("similarity to the original map (1: the same)")
    alone = result.settings["mode"] == "independent"
    axes.set_xlabel(
        "the one layer that is randomised" if alone else "stage: randomised from the scores down to this layer"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_title(result), fontsize=10, x=0.01, ha="left")
    figure.legend(frameon=False, fontsize=8, loc="outside lower left", ncols=2)
    figure.savefig(path, dpi=_DOTS)


def _known(stages: Sequence[Stage], values: Sequence[Summary | None]) -> tuple[list[int], list[Summary]]:
    """Return the numbers of the stages that have a value, and the values."""
    pairs = [(stage.number, value) for stage, value in zip(stages, values, strict=True) if value is not None]
    return [number for number, _ in pairs], [value for _, value in pairs]


def _mark_target(axes: Any, stages: Sequence[Stage]) -> None:
    """Mark the boundary between the stages that change only the scores and those that change the activations."""
    above = sum(not stage.changes_activations for stage in stages)
    if not 0 < above < len(stages):
        return
    axes.axvline(above + 0.5, color="black", linewidth=0.8)
    axes.text(above + 0.46, 0.01, "above the target layer", rotation=90, ha="right", va="bottom", fontsize=7,
              transform=axes.get_xaxis_transform())  # fmt: skip
    axes.text(above + 0.54, 0.01, "below", rotation=90, ha="left", va="bottom", fontsize=7,
              transform=axes.get_xaxis_transform())  # fmt: skip


def draw_strip(result: SanityResult, path: Path) -> None:
    """Draw the first photos in rows: the photo, its map, and its map at (at most eight of) the stages.

    Raises:
        OptionError: matplotlib is missing.
    """
    stages, strips = result.stages, result.strips
    chosen = sorted({round(at) for at in np.linspace(0, len(stages) - 1, min(_MOST_STAGES, len(stages)))})
    columns = len(chosen) + 2
    figure = _figure(1.55 * columns, 1.72 * len(strips) + 0.9)
    grid = figure.subplots(len(strips), columns, squeeze=False)
    heads = [
        "photo",
        "original model",
        *(f"stage {stages[at].number}\n{_short(stages[at].label, 20)}" for at in chosen),
    ]
    rows = {(row.photo, row.stage): row for row in result.rows}
    for line, strip in zip(grid, strips, strict=True):
        cells = [strip.photo, strip.overlays[0], *(strip.overlays[at + 1] for at in chosen)]
        for axes, cell in zip(line, cells, strict=True):
            _draw_cell(axes, cell)
        line[0].set_xlabel(_short(strip.name), fontsize=7)
        line[1].set_xlabel(_short(strip.explained), fontsize=7)
        for axes, at in zip(line[2:], chosen, strict=True):
            found = rows[strip.name, stages[at].number].similarity
            axes.set_xlabel("" if found is None else f"Spearman {found.spearman:.2f}", fontsize=7)
    for axes, head in zip(grid[0], heads, strict=True):
        axes.set_title(head, fontsize=6.5)
    figure.suptitle(_title(result), fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=_DOTS)


def _draw_cell(axes: Any, cell: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    if isinstance(cell, str):
        axes.text(0.5, 0.5, cell if len(cell) <= 24 else "no map", ha="center", va="center", fontsize=8, color=_GREY,
                  transform=axes.transAxes)  # fmt: skip
        axes.set_aspect("equal")
    else:
        axes.imshow(cell)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _title(result: SanityResult) -> str:
    settings = result.settings
    alone = settings["mode"] == "independent"
    how = "layers randomised one at a time" if alone else "weights randomised from the scores down"
    what = f"{settings['method']['name']} on {settings['model']['name']}"
    return f"{what}: {how} ({settings['draw']}, seed {settings['seed']})"


def _label(stage: Stage) -> str:
    return f"{stage.number}: {_short(stage.label)}"


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else "…" + text[-most + 1 :]


def require_matplotlib() -> None:
    """Raise an OptionError if matplotlib is missing."""
    _figure(1, 1)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError("pictures of the result need matplotlib: pip install 'ortcam[evaluation]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
