"""Work on several photos at once: prepare them ahead, and process groups in order."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from ortcam.errors import OrtcamError
from ortcam.explain.jobs import Job

Given = TypeVar("Given")
Result = TypeVar("Result")


def prepared_ahead(
    images: Iterable[Any], prepare: Callable[[Any], Job], size: int, at_once: int
) -> Generator[list[tuple[Any, Job | OrtcamError]], None, None]:
    """Yield groups of `size` images, each image with its job or error. The next group is prepared meanwhile.

    At most `at_once` images are prepared at the same time. The iterable is read in the caller's thread, at most one
    group ahead.
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
                group.append((image, worker.submit(attempt, image)))  # noqa: PERF401 - one by one, because the source may fail
        except Exception as error:  # noqa: BLE001 - the caller's own; raised after the images before it
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
    finally:  # also if the caller stops early: tasks that wait are cancelled
        worker.shutdown(wait=True, cancel_futures=True)


def in_turn(function: Callable[[Given], Result], items: Iterable[Given], at_once: int) -> Generator[Result, None, None]:
    """Yield the function's result for each item, in order. At most `at_once` items are processed at the same time.

    If `at_once` is 1, the function runs in the caller's thread.
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
                except Exception as error:  # noqa: BLE001 - the end, or the caller's own: raised after earlier results
                    failure = error
            if running:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
        if not isinstance(failure, StopIteration):
            raise failure
    finally:  # also if the caller stops early
        pool.shutdown(wait=True, cancel_futures=True)


def read_ahead(items: Iterable[Given], most: int) -> Generator[Given, None, None]:
    """Yield the items in order; a thread reads at most `most` + 1 of them ahead."""
    waiting: queue.Queue[tuple[Literal["item"], Given] | tuple[Literal["end"], Exception | None]] = queue.Queue(most)
    stopped = threading.Event()

    def put(one: tuple[Literal["item"], Given] | tuple[Literal["end"], Exception | None]) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(one, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        failure: Exception | None = None
        source = iter(items)
        try:
            for item in source:
                if not put(("item", item)):
                    break
        except Exception as error:  # noqa: BLE001 - the caller's own; raised after the items before it
            failure = error
        finally:
            if isinstance(source, Generator):
                source.close()
        put(("end", failure))

    reader = threading.Thread(target=read, name="ortcam-read", daemon=True)
    reader.start()
    try:
        while True:
            one = waiting.get()
            if one[0] == "end":
                break
            yield one[1]
            del one
        if one[1] is not None:
            raise one[1]
    finally:  # also if the caller stops early
        stopped.set()
        reader.join()
