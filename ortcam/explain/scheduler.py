"""Run a method on a group of photos in lockstep, so that their changed inputs share batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ortcam.core.forward import Forward
from ortcam.core.method import MapResult, Scores
from ortcam.core.query import Change, Query, Rows
from ortcam.core.references import Reference
from ortcam.core.targets import Wanted
from ortcam.errors import NotFiniteError, OrtcamError
from ortcam.runtime.classifier import Classifier
from ortcam.runtime.scorer import Group, Progress

if TYPE_CHECKING:
    from ortcam.core.method import Run


@dataclass
class InWork:
    """A photo in progress.

    Attributes:
        forward: its plain pass.
        targets: the targets to explain.
        run: the method's run.
        references: those of a model of another task: the targets again; else empty.
        scored: the number of changed inputs that were run.
        error: the reason why it cannot be explained; None if there is none.
        result: its maps, once they are known.
    """

    forward: Forward
    targets: Sequence[Wanted]
    run: Run
    references: Sequence[Reference] = ()
    scored: int = 0
    error: OrtcamError | None = field(default=None)
    result: MapResult | None = None


@dataclass(frozen=True)
class _Asked:
    """A query of one photo, and the photo's number in the group."""

    photo: int
    work: InWork
    query: Query


def run_together(
    classifier: Classifier,
    group: Group,
    begin: Callable[[int, Forward], InWork | OrtcamError],
    on_progress: Progress | None,
) -> tuple[list[InWork | OrtcamError], float]:
    """Run a method on all photos of a group.

    Args:
        classifier: runs the model.
        group: the photos' plain passes.
        begin: begins a photo, given its number in the group, or returns the reason why it cannot be explained.
        on_progress: called with (done, M) after every batch.

    Returns:
        The photos in order, each with its maps or an error; the seconds from the first query to the last score.
    """
    works = classifier.workers.map(begin, range(len(group.passes)), group.passes)
    references = [work.references if isinstance(work, InWork) else () for work in works]
    if any(references):
        group = classifier.with_references(group, references)
    start = time.perf_counter()
    _score(classifier, group, [(at, work) for at, work in enumerate(works) if isinstance(work, InWork)], on_progress)
    seconds = time.perf_counter() - start
    return classifier.workers.map(_finish, works), seconds


def _finish(work: InWork | OrtcamError) -> InWork | OrtcamError:
    if isinstance(work, InWork):
        if work.error is not None:
            return work.error
        work.result = work.run.finish()
    return work


def _score(classifier: Classifier, group: Group, works: list[tuple[int, InWork]], on_progress: Progress | None) -> None:
    """Run the queries of all photos, the next query of each photo together, until no photo has a query."""

    def ask(photo: int, work: InWork) -> _Asked | None:
        query = None if work.error is not None else work.run.next()
        return None if query is None else _Asked(photo, work, query)

    done, total = 0, sum(work.run.most for _, work in works)
    while works:
        asked = [one for one in classifier.choosers.map(ask, *zip(*works, strict=True)) if one is not None]
        works = [(one.photo, one.work) for one in asked]  # a photo that has stopped is not asked again
        if not works:
            break
        answers = list[tuple[_Asked, Scores]]()
        for change in dict.fromkeys(one.query.change for one in asked):
            of_change = [one for one in asked if one.query.change == change]
            report = None if on_progress is None else _shifted(on_progress, done, total)
            answers += _run(classifier, group, change, of_change, report)
            done += sum(len(one.query) for one in of_change)
        for one, scores in answers:
            if not (np.isfinite(scores.logits).all() and np.isfinite(scores.log_probabilities).all()):
                one.work.error = not_finite(classifier.name, "a masked image")
        classifier.choosers.map(_observe, *zip(*answers, strict=True))  # all photos observe before the next queries
    if on_progress is not None and (done < total or not total):
        on_progress(max(total, 1), max(total, 1))  # a method without changed inputs has one step


def _run(
    classifier: Classifier, group: Group, change: Change, asked: list[_Asked], report: Progress | None
) -> list[tuple[_Asked, Scores]]:
    """Run the queries of several photos with the same change. Return each query with its scores."""
    most = max(len(one.work.targets) for one in asked)
    padded = [[*one.work.targets, *[one.work.targets[-1]] * (most - len(one.work.targets))] for one in asked]
    rows = Rows.join([Rows.of_query(one.query, one.photo, wanted) for one, wanted in zip(asked, padded, strict=True)])
    scores = classifier.score(group, rows, change, report)
    ends = np.cumsum([len(one.query) for one in asked])
    return [
        (one, scores.take(end - len(one.query), end, len(one.work.targets)))
        for one, end in zip(asked, ends, strict=True)
    ]


def _observe(asked: _Asked, scores: Scores) -> None:
    if asked.work.error is None:
        asked.work.run.observe(scores)
        asked.work.scored += len(asked.query)


def not_finite(model: str, what: str) -> NotFiniteError:
    """Return the error of a model with NaN or infinite scores."""
    return NotFiniteError(f"{model} returns NaN or infinite values for {what}")


def _shifted(on_progress: Progress, done: int, total: int) -> Progress:
    """Return a callback that adds the changed inputs of earlier rounds."""
    return lambda now, _: on_progress(done + now, total)
