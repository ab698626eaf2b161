"""Work on several photos at once: read ahead, and in turn."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from ortcam.errors import OrtcamError
from ortcam.explain.jobs import Job

Given = TypeVar("Given")
Result = TypeVar("Result")


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
