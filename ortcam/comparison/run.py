"""Explain the same photos by several columns, photo by photo, and compare the maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ortcam.comparison.bench import Bench
from ortcam.comparison.columns import Column, open_columns
from ortcam.comparison.folder import RECORD, TABLE, keep_pages, options_of, why_occupied
from ortcam.comparison.grid import Grid
from ortcam.comparison.result import Compared, Comparison, Repeated
from ortcam.comparison.strips import LONGEST
from ortcam.core.files import replace_directory
from ortcam.core.references import Detecting
from ortcam.errors import DatasetError, OrtcamError
from ortcam.evaluation.earlier import Question, hash_photos
from ortcam.evaluation.rows import Failure
from ortcam.evaluation.samples import name_photos
from ortcam.model.pixels import read_image
from ortcam.runtime.providers import ProviderLike

if TYPE_CHECKING:
    from ortcam.core.pictures import Image, Photo


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
    overwrite: bool = False,
    on_compared: Callable[[Compared, Sequence[Photo]], None] | None = None,
    on_error: Callable[[Any, OrtcamError], None] | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> Comparison:
    """Explain the same photos by several columns, and compare each two maps of a photo.

    All columns explain the same target: what the first column's model resolves. Classes of another model are found by
    label if both models have labels, else by index; boxes and regions are the same place of the photo. Columns that
    differ only in the target share their passes. Photos whose files have the same bytes count once. Memory holds one
    photo, and the numbers of the others.

    Args:
        columns: 2 to 12. The first is the reference: all others are compared with it. The record holds every pair.
        photos: images as for `ModelExplainer.explain`. Paths give the photos their names.
        budget: the most masked inputs per map, for methods that take a budget and state none; None for all.
        provider, batch_size, threads, detecting: as for `ModelExplainer`.
        folder: where comparison.json, comparison.csv and grid.png are written, whole or not at all; None for nowhere.
            An earlier comparison of the same photos by the same columns is replaced.
        overwrite: replace any earlier comparison. Other files are never deleted.
        on_compared: called with each photo, and its pictures uint8 [h,w,3] RGB: the photo, then the map of each column
            over it; `ortcam.report.CompareReport.add` takes them.
        on_error: called with each photo that a column cannot explain and its error; the others go on. If None, the
            error is raised.
        on_progress: called with the current photo, and the part of the work that is done, in [0,1].

    Raises:
        OptionError: there are fewer than two columns or more than 12, two are the same, or an option is invalid.
        ModelError, LayerError, ProviderError: a model cannot be opened, or the models do not match.
        TargetError: a class is unknown.
        DatasetError: no photo was given, or none can be compared.
        OccupiedError: the folder holds another comparison, or other files.
        OutputError: the folder cannot be written.
    """
    named = name_photos(photos)
    opened = open_columns(columns, budget)
    names = tuple(one.name for one in opened)
    found, failures, repeated = list[Compared](), list[Failure](), list[Repeated]()
    seen = dict[str, str]()  # the names of photos, by the hash of their file
    with ExitStack() as stack:
        bench = Bench(stack, opened, provider, batch_size, threads, detecting)
        grid = None
        if folder is not None:
            question = None if overwrite else lambda: Question(options_of(bench.describe()), hash_photos(named))
            writing = replace_directory(Path(folder), lambda path: why_occupied(path, question))
            unfinished = stack.enter_context(writing)
            grid = Grid(unfinished, names)
        sides = [*([] if grid is None else [grid.side]), *([] if on_compared is None else [LONGEST])]
        for number, (name, image) in enumerate(named):

            def report(share: float, name: str = name, number: int = number) -> None:
                if on_progress is not None:
                    on_progress(name, (number + share) / len(named))

            try:
                pixels, origin = read_image(image)
                if origin is not None and seen.setdefault(origin.sha256, name) != name:
                    repeated.append(Repeated(name, seen[origin.sha256]))
                    continue
                compared, strips = bench.compare(name, pixels, origin, report, sides)
            except OrtcamError as error:
                if on_error is None:
                    raise
                on_error(image, error)
                failures.append(Failure(name, str(error)))
                continue
            found.append(compared)
            if grid is not None:
                grid.add(strips[0])
            if on_compared is not None:
                on_compared(compared, strips[-1].pictures)
        if not found:
            raise DatasetError(f"0 of {len(named)} photos can be compared; the first error: {failures[0].error}")
        settings, unrelated = bench.settings(budget), bench.unrelated_r()
        result = Comparison(names, settings, tuple(found), tuple(failures), unrelated, tuple(repeated))
        if folder is not None and grid is not None:
            grid.draw(result)
            result.write_json(unfinished / RECORD)
            result.write_csv(unfinished / TABLE)
            keep_pages(Path(folder), unfinished)
    return result
