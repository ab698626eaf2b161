"""Explain the same photos by several columns, photo by photo, and compare the maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ortcam.comparison.bench import Bench
from ortcam.comparison.columns import Column, open_columns
from ortcam.comparison.grid import Grid, is_ours, require_matplotlib
from ortcam.comparison.result import RECORD, TABLE, Compared, Comparison
from ortcam.core.files import only, replace_directory
from ortcam.core.references import Detecting
from ortcam.errors import DatasetError, OrtcamError
from ortcam.evaluation.rows import Failure
from ortcam.evaluation.samples import name_photos
from ortcam.runtime.providers import ProviderLike

if TYPE_CHECKING:
    from ortcam.core.pictures import Image


def compare(
    columns: Sequence[Column],
    photos: Iterable[Image],
    *,
    budget: int | None = None,
    provider: ProviderLike = "auto",
    batch_size: int | Literal["auto"] | None = None,
    threads: int | None = None,
    detecting: Detecting | None = None,
    folder: str | PathLike[str] | None = None,
    on_error: Callable[[Any, OrtcamError], None] | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> Comparison:
    """Explain the same photos by several columns, and compare each two maps of a photo.

    All columns explain the same target: what the first column's model resolves. Classes of another model are found by
    label if both models have labels, else by index; boxes and regions are the same place of the photo. Columns that
    differ only in the target share their passes. Memory holds one photo, and the numbers of the others.

    Args:
        columns: 2 to 12. The first is the reference: all others are compared with it. The record holds every pair.
        photos: images as for `ModelExplainer.explain`. Paths give the photos their names.
        budget: the most masked inputs per map, for methods that take a budget and state none; None for all.
        provider, batch_size, threads, detecting: as for `ModelExplainer`.
        folder: where comparison.json, comparison.csv and grid.png are written, whole or not at all; None for nowhere.
            An earlier comparison is replaced. matplotlib draws the grid.
        on_error: called with each photo that a column cannot explain and its error; the others go on. If None, the
            error is raised.
        on_progress: called with the current photo, and the part of the work that is done, in [0,1].

    Raises:
        OptionError: there are fewer than two columns or more than 12, two are the same, an option is invalid, or
            matplotlib is missing.
        ModelError, LayerError, ProviderError: a model cannot be opened, or the models do not match.
        TargetError: a class is unknown.
        DatasetError: no photo was given, or none can be compared.
        OccupiedError: the folder holds other files.
        OutputError: the folder cannot be written.
    """
    named = name_photos(photos)
    opened = open_columns(columns, budget)
    names = tuple(one.name for one in opened)
    if folder is not None:
        require_matplotlib()
    found, failures = list[Compared](), list[Failure]()
    writing = nullcontext() if folder is None else replace_directory(Path(folder), only(is_ours))
    with writing as unfinished, ExitStack() as stack:
        bench = Bench(stack, opened, provider, batch_size, threads, detecting)
        grid = None if unfinished is None else Grid(unfinished, names)
        for number, (name, image) in enumerate(named):

            def report(share: float, name: str = name, number: int = number) -> None:
                if on_progress is not None:
                    on_progress(name, (number + share) / len(named))

            try:
                compared, strip = bench.compare(name, image, report, None if grid is None else grid.side)
            except OrtcamError as error:
                if on_error is None:
                    raise
                on_error(image, error)
                failures.append(Failure(name, str(error)))
                continue
            found.append(compared)
            if grid is not None and strip is not None:
                grid.add(strip)
        if not found:
            raise DatasetError(f"0 of {len(named)} photos can be compared; the first error: {failures[0].error}")
        result = Comparison(names, bench.settings(budget), tuple(found), tuple(failures), bench.unrelated_r())
        if grid is not None and unfinished is not None:
            grid.draw(result)
            result.write_json(unfinished / RECORD)
            result.write_csv(unfinished / TABLE)
    return result
