"""Photos in the works: prepared ahead of the scoring, and what is to be done for each."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats, Masks
from ortcam.core.pictures import Crop, Photo, Tensor
from ortcam.core.provenance import Origin
from ortcam.core.selection import EXACT, ErrorEstimate, Plan, Selection
from ortcam.errors import OrtcamError
from ortcam.runtime.binding import ForwardPass, Progress, Rows

Given = TypeVar("Given")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """A photo that was read and preprocessed; `seconds` is what that took."""

    source: Path | None
    origin: Origin
    photo: Photo | None
    tensor: Tensor
    crop: Crop
    seconds: float


@dataclass
class Work:
    """What there is to do for a photo after its plain pass, and how many masked inputs were run."""

    plain: ForwardPass
    classes: list[int]
    masks: Masks
    selection: Selection
    plan: Plan
    most: int
    scored: int = 0

    def rows(self, photo: int, chosen: NDArray[np.intp]) -> Rows:
        """Return the rows that run `chosen` masks of the `photo`-th photo of a group."""
        return Rows(
            np.full(len(chosen), photo, np.int64),
            self.selection.channels[chosen],
            self.selection.affine[chosen],
            np.tile(np.array(self.classes, np.int64), (len(chosen), 1)),
        )

    def channel_scores(self) -> Floats:
        """Return the scores of all channels, [K,T]."""
        nothing = np.empty((0, len(self.classes)), np.float32)
        return self.selection.spread(self.plan.scores() if self.scored else nothing)

    def errors(self) -> tuple[ErrorEstimate | None, ...]:
        return self.plan.errors() if self.scored else (EXACT,) * len(self.classes)


def prepared_ahead(
    images: Iterable[Any], prepare: Callable[[Any], Job], size: int, at_once: int
) -> Generator[list[tuple[Any, Job | OrtcamError]], None, None]:
    """Yield groups of `size` images with what `prepare` makes of them, `at_once` at once; the next group meanwhile.

    The iterable is read in the caller's thread, and never further than one group ahead.
    """

    def attempt(image: Any) -> Job | OrtcamError:
        try:
            return prepare(image)
        except OrtcamError as error:
            return error

    def submit() -> list[tuple[Any, Future[Job | OrtcamError]]]:
        group: list[tuple[Any, Future[Job | OrtcamError]]] = []
        try:
            for image in itertools.islice(source, 0 if failures else size):
                group.append((image, worker.submit(attempt, image)))  # noqa: PERF401 - one by one, up to a failure
        except Exception as error:  # noqa: BLE001 - the caller's own, raised after what came before it
            failures.append(error)
        return group

    source, failures = iter(images), list[Exception]()
    worker = ThreadPoolExecutor(at_once, thread_name_prefix="ortcam-decode")
    try:
        group = submit()
        while group:
            ready = [(image, future.result()) for image, future in group]
            group = submit()
            yield ready
        if failures:
            raise failures[0]
    finally:  # also where the caller stops early: what was not begun is not waited for
        worker.shutdown(wait=True, cancel_futures=True)


def in_turn(function: Callable[[Given], Result], items: Iterable[Given], at_once: int) -> Generator[Result, None, None]:
    """Yield what the function makes of each item, in order; so many items are worked on at once.

    With one, all happens in the caller's thread.
    """
    if at_once == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="ortcam-group")
    running: deque[Future[Result]] = deque()
    source, failure = iter(items), None
    try:
        while failure is None:
            while len(running) < at_once and failure is None:
                try:
                    running.append(pool.submit(function, next(source)))
                except Exception as error:  # noqa: BLE001 - the end, or the caller's own: raised after what came before
                    failure = error
            if running:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
        if not isinstance(failure, StopIteration):
            raise failure
    finally:  # also where the caller stops early
        pool.shutdown(wait=True, cancel_futures=True)


def shifted(on_progress: Progress, done: int, total: int) -> Progress:
    """Count the masked inputs of one stage on from those of earlier stages."""
    return lambda now, _: on_progress(done + now, total)


def share_of(on_progress: Callable[[float], None], done: int, photos: int) -> Progress:
    """Count photos instead of masked inputs."""
    return lambda now, total: on_progress(done + photos * now / total)


def top_classes(logits: Floats, count: int) -> list[int]:
    """Return the classes with the highest logits, best first; the lower index first among equals."""
    return [int(index) for index in np.argsort(-logits, kind="stable")[:count]]
