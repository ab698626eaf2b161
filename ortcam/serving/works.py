"""Work: a question in work, and the seconds that questions are expected to take."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from ortcam.serving.answers import Answer
from ortcam.serving.questions import Question
from ortcam.serving.refusal import Kind, Refusal, forget

_LEARN = 0.3  # the share of a new time in the expected time


@dataclass(eq=False)
class Work:
    """A question in work.

    Attributes:
        question: the question.
        deadline: when its answer is late, in seconds of time.monotonic.
        held: whether it counts until `release`, because its answer must still be written; else until it is answered.
        answer: the answer, or a Refusal.
        gone: set when nobody waits for the answer.
        alone: whether nothing was ahead of it, so that it is begun whatever its expected time.
    """

    question: Question
    deadline: float
    held: bool = False
    answer: Future[Answer] = field(default_factory=Future)
    gone: threading.Event = field(default_factory=threading.Event)
    alone: bool = False

    def why_over(self, seconds: float = 0.0) -> Refusal | None:
        """Return why no work of that many seconds should be done; None if it should."""
        if self.gone.is_set():
            return Refusal(Kind.GONE, "the client has left")
        if time.monotonic() + seconds > self.deadline:
            return Refusal(Kind.LATE, "the answer would be late; ask for a smaller budget, or wait longer")
        return None

    def fail(self, error: Exception) -> None:
        """Answer with an error, if there is no answer yet."""
        forget(error)
        with contextlib.suppress(InvalidStateError):  # nobody waits any more
            self.answer.set_exception(error)

    def finish(self, answer: Answer) -> None:
        """Answer, if there is no answer yet."""
        with contextlib.suppress(InvalidStateError):
            self.answer.set_result(answer)

    def release(self) -> None:
        """Say that the answer was written, or that nobody waits for it."""
        self.held = False
        self.gone.set()


class Costs:
    """The expected seconds per photo of questions, learned from those that were explained."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[float, bool]] = {}  # seconds, and whether an answer took them

    def learn(self, question: Question, seconds: float) -> None:
        """Learn what a photo took that was answered."""
        before, answered = self._known.get(question.cost, (seconds, False))
        self._note(question, before + _LEARN * (seconds - before) if answered else seconds, True)

    def learn_least(self, question: Question, seconds: float) -> None:
        """Learn what a photo takes at least, because the work on it ended before its answer."""
        before, answered = self._known.get(question.cost, (0.0, False))
        if seconds > before:
            self._note(question, seconds, answered)

    def _note(self, question: Question, seconds: float, answered: bool) -> None:
        if question.cost not in self._known and len(self._known) >= 1000:  # of a client that varies its options
            self._known.clear()
        self._known[question.cost] = seconds, answered

    def of(self, question: Question) -> float:
        """Return the expected seconds of a question; 0 if nothing is known."""
        return self._known.get(question.cost, (0.0, False))[0] * len(question.images)
