"""Worker: one model's queue, and the two threads that work it off: one decodes photos ahead, one explains."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ortcam.core.references import Similarity
from ortcam.deploy.packed import PackedExplainer
from ortcam.errors import ImageError, ModelError, OrtcamError
from ortcam.explain.explainer import ModelExplainer
from ortcam.model.pixels import read_image
from ortcam.runtime.session import RUNTIME_ERRORS
from ortcam.serving.answers import Answer, Explained
from ortcam.serving.limits import ServingLimits
from ortcam.serving.questions import Facts, Question, check_photo
from ortcam.serving.refusal import Kind, Refusal
from ortcam.serving.works import Costs, Work

Served = ModelExplainer | PackedExplainer
_AHEAD = 2  # requests that are decoded while another is explained
_TIMES_PIXELS = 4  # the photos and references of a request together, in the largest photos that are taken
_TOGETHER = 16  # photos that are explained together
_CAUTION = 1.25  # times the expected wait: a machine that slows a little must not make all that wait late
_log = logging.getLogger("ortcam.serving")


class Worker:
    """Explains the questions for one model, in the order of their arrival."""

    def __init__(self, name: str, explainer: Served, facts: Facts, limits: ServingLimits) -> None:
        """Start the threads.

        Args:
            name: the name of the model.
            explainer: explains; `close` closes it.
            facts: what questions must know of the model.
            limits: the limits of the server.
        """
        self.name, self.explainer, self.facts = name, explainer, facts
        self._limits, self._costs = limits, Costs()
        self._waiting: deque[Work] = deque()
        self._decoded: deque[Work] = deque()
        self._decoding: Work | None = None
        self._running: list[Work] = []
        self._held = weakref.WeakSet[Work]()
        self._begun, self._closing, self._no_more = 0.0, False, False
        self.broken = False  # whether a thread ended by a fault
        self._changed = threading.Condition()
        self._gathers = explainer.provider != "cpu" and isinstance(explainer, ModelExplainer)
        self._threads = [
            threading.Thread(target=self._run, args=(loop,), name=f"ortcam-{what}-{name}", daemon=True)
            for what, loop in (("decode", self._decode_all), ("explain", self._explain_all))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether a question may be in work."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        """The number of photos that wait."""
        with self._changed:
            return self._count_waiting()

    def _count_waiting(self) -> int:
        """Return the photos that wait to be explained, and those whose answers wait to be written."""
        written = sum(len(work.question.images) for work in list(self._held) if work.held and work.answer.done())
        return written + self._count_ahead()

    def _count_ahead(self) -> int:
        return sum(len(work.question.images) for work in self._ahead() if not work.gone.is_set())

    def _ahead(self) -> list[Work]:
        return [*self._waiting, *self._decoded, *([self._decoding] if self._decoding else [])]

    def check_room(self, photos: int = 1) -> None:
        """Check that photos can be taken now.

        Raises:
            Refusal: the queue is full.
        """
        with self._changed:
            waiting, most = self._count_waiting(), self._limits.queue
            if waiting and waiting + photos > most:
                message = f"model {self.name} is busy: {waiting} photos wait, at most {most} may"
                raise Refusal(Kind.BUSY, message, max(1.0, self._seconds_before()))

    def submit(self, work: Work) -> None:
        """Take a question into the queue; its `answer` follows.

        Raises:
            Refusal: the queue is full, the answer would be late, or the worker is closing.
        """
        known = self._costs.of(work.question)
        with self._changed:
            if self._closing:
                raise Refusal(Kind.LEAVING, f"model {self.name} is shutting down; try again", 1.0)
            self._drop_gone()
            self.check_room(len(work.question.images))
            work.alone = self._is_idle()  # what it takes is then tried, since only answers teach it
            late = work.why_over(0.0 if work.alone else _CAUTION * self._seconds_before() + known)
            if late is not None:
                raise late
            self._waiting.append(work)
            if work.held:
                self._held.add(work)
            self._changed.notify_all()

    def _drop_gone(self) -> None:
        """Let the photos go that nobody waits for: their bytes count no more."""
        for work in [one for one in self._waiting if one.gone.is_set()]:
            self._waiting.remove(work)
            work.fail(Refusal(Kind.GONE, "the client has left"))

    def _is_idle(self) -> bool:
        """Whether a new question would begin at once."""
        at_work = any(not (work.gone.is_set() or work.answer.done()) for work in self._running)
        return not at_work and not self._count_ahead()

    def _seconds_before(self) -> float:
        """Return the expected seconds until a new question begins."""
        running = sum(self._costs.of(work.question) for work in self._running if not work.answer.done())
        left = max(0.0, running - (time.monotonic() - self._begun)) if running else 0.0
        return left + sum(self._costs.of(work.question) for work in self._ahead() if not work.gone.is_set())

    def close(self, wait: bool = True) -> None:
        """Refuse new questions, answer all that were taken, and close the explainer.

        Args:
            wait: return when this is done.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if wait:
            for thread in self._threads:
                thread.join()

    def _run(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException:  # noqa: BLE001 - a fault in ortcam: nobody may wait for ever
            _log.exception("the worker of model %s ended", self.name)
            with self._changed:
                self._closing = self._no_more = self.broken = True
                left = [*self._ahead(), *self._running]
                self._waiting.clear()
                self._decoded.clear()
                self._changed.notify_all()
            for work in left:
                work.fail(Refusal(Kind.FAILED, f"model {self.name} failed"))

    # Decoding

    def _decode_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._may_decode() or (self._closing and not self._waiting))
                if not self._waiting:
                    self._no_more = True
                    self._changed.notify_all()
                    return
                work = self._decoding = self._waiting.popleft()
            ready = self._decode(work)
            with self._changed:
                self._decoding = None
                if ready is not None:
                    self._decoded.append(ready)
                self._changed.notify_all()
            del work, ready  # the next may come much later

    def _may_decode(self) -> bool:
        ahead = sum(len(work.question.images) for work in self._decoded)
        most = _TOGETHER if self._gathers else _AHEAD
        return bool(self._waiting) and ahead < most

    def _decode(self, work: Work) -> Work | None:
        over = work.why_over(0.0 if work.alone else self._costs.of(work.question))
        if over is not None:
            work.fail(over)
            return None
        try:
            work.question = self._decoded_question(work.question)
        except OrtcamError as error:
            work.fail(error)
            return None
        except Exception as error:  # noqa: BLE001 - of a library; the next question is another
            _log.exception("model %s: a photo cannot be decoded", self.name)
            work.fail(Refusal(Kind.FAILED, f"a photo cannot be decoded ({type(error).__name__})"))
            return None
        return work

    def _decoded_question(self, question: Question) -> Question:
        """Return a question with arrays in the place of pictures."""
        most, images, pixels = self._limits.pixels, [], 0
        for number, image in enumerate(question.images):
            photo = _decoded(image, most, f"image {number}" if len(question.images) > 1 else "image")
            size = (photo.shape[0], photo.shape[1]) if photo.ndim == 3 else self._size_of(photo.shape)
            check_photo(question, size, self.facts, self._limits)
            pixels += size[0] * size[1]
            _check_together(pixels, most)
            images.append(photo)
        targets = []
        for target in question.targets or ():
            if isinstance(target, Similarity) and isinstance(target.like, bytes):
                like = _decoded(target.like, most, "like")
                pixels += like.shape[0] * like.shape[1]
                _check_together(pixels, most)
                target = Similarity(like)
            targets.append(target)
        return replace(question, images=tuple(images), targets=question.targets and tuple(targets))

    def _size_of(self, shape: Sequence[int]) -> tuple[int, int]:
        height, width = self.facts.input_size
        return height or shape[-2], width or shape[-1]

    # Explaining

    def _explain_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._decoded or self._no_more)
                if not self._decoded:
                    break
                if self._gathers and sum(len(one.question.images) for one in self._decoded) < _TOGETHER:
                    self._changed.wait_for(lambda: self._no_more, self._limits.gather)
                together = self._running = self._take()
                self._begun = time.monotonic()
                self._changed.notify_all()  # there is room for decoded photos
            self._explain(together)
            with self._changed:
                self._running = []
                self._changed.notify_all()
            del together  # the next may come much later
        self.explainer.close()

    def _take(self) -> list[Work]:
        """Take the first decoded question, and others that can be explained together with it."""
        first = self._decoded.popleft()
        key, photos, found, others = first.question.together, len(first.question.images), [first], deque[Work]()
        while self._decoded:
            one = self._decoded.popleft()
            fits = key is not None and one.question.together == key
            if fits and photos + len(one.question.images) <= _TOGETHER:
                found.append(one)
                photos += len(one.question.images)
            else:
                others.append(one)
        self._decoded = others
        return found

    def _explain(self, together: list[Work]) -> None:
        works = []
        for work in together:
            over = work.why_over(0.0 if work.alone else self._costs.of(work.question))
            if over is None:
                works.append(work)
            else:
                work.fail(over)
        if not works:
            return
        try:
            if works[0].question.wants_maps or isinstance(self.explainer, PackedExplainer):
                self._explain_works(works)
            else:
                self._predict(works)
        except _Over:
            photos = sum(len(work.question.images) for work in works)
            for work in works:
                if not work.answer.done():
                    self._costs.learn_least(work.question, (time.monotonic() - self._begun) / photos)
                work.fail(work.why_over() or Refusal(Kind.GONE, "the client has left"))
        except OrtcamError as error:
            for work in works:
                work.fail(error)
        except Exception as error:  # noqa: BLE001 - of a library, or a fault; the next question is another
            _log.exception("model %s failed", self.name)
            kind = ModelError if isinstance(error, RUNTIME_ERRORS) else type(error)
            for work in works:
                work.fail(Refusal(Kind.FAILED, f"model {self.name} failed ({kind.__name__})"))

    def _explain_works(self, works: list[Work]) -> None:
        """Explain the photos of questions that can be explained together."""
        first = works[0].question
        failed: deque[OrtcamError] = deque()
        explained = self.explainer.explain_batch(
            [image for work in works for image in work.question.images],
            list(first.targets) if first.targets is not None else None,
            top_k=first.top_k,
            on_error=lambda _, error: failed.append(error),
            on_progress=lambda _: _check(works),
            budget=first.budget,
            tolerance=first.tolerance,
        )
        outcomes, photos = _in_order(explained, failed), 0
        for work in works:
            found = [next(outcomes) for _ in work.question.images]
            photos += sum(not isinstance(one, OrtcamError) for one in found)
            if work is works[-1] and photos:  # of all together: a device gives the answers of a group at its end
                self._costs.learn(first, (time.monotonic() - self._begun) / photos)
            self._finish(work, found)

    def _finish(self, work: Work, found: list[Explained | OrtcamError]) -> None:
        explained = []
        for number, one in enumerate(found):
            if isinstance(one, OrtcamError):
                message = f"image {number}: {one}" if len(found) > 1 else str(one)
                work.fail(type(one)(message))
                return
            explained.append(one)
        work.finish(Answer([one.targets for one in explained], explained, time.monotonic() - self._begun))

    def _predict(self, works: list[Work]) -> None:
        assert isinstance(self.explainer, ModelExplainer)
        for work in works:
            begin = time.monotonic()
            try:
                question = work.question
                wanted = None if question.targets is None else list(question.targets)
                targets = [self.explainer.predict(one, question.top_k, targets=wanted) for one in question.images]
            except OrtcamError as error:
                work.fail(error)
                continue
            seconds = time.monotonic() - begin
            self._costs.learn(work.question, seconds / len(targets))
            work.finish(Answer(targets, [], seconds))


class _Over(Exception):  # noqa: N818 - no error
    """Nobody waits for the rest of a group."""


def _check(works: Sequence[Work]) -> None:
    """Stop the work on a group whose clients have all left, or whose answers are all late."""
    if all(work.answer.done() or work.why_over() is not None for work in works):
        raise _Over


def _in_order(explained: Iterator[Explained], failed: deque[OrtcamError]) -> Iterator[Explained | OrtcamError]:
    """Yield the explanations and errors of photos in their order."""
    for one in explained:
        while failed:  # photos before this one
            yield failed.popleft()
        yield one
    yield from failed


def _decoded(image: Any, most_pixels: int, name: str) -> Any:
    if not isinstance(image, bytes):
        return image
    try:
        return read_image(image, most_pixels)[0]
    except ImageError as error:
        raise ImageError(str(error).replace("image", name, 1)) from error


def _check_together(pixels: int, most: int) -> None:
    if pixels > _TIMES_PIXELS * most:
        shown = f"{_TIMES_PIXELS * most / 1e6:g} million"
        raise Refusal(Kind.TOO_LARGE, f"the photos have over {shown} pixels together; send fewer at once")
