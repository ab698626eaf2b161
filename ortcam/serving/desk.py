"""Desk: what all doors share. It hands questions to the service, waits for answers, counts and logs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ortcam.errors import ImageError, ModelError, NotFiniteError, OptionError, OrtcamError, TargetError
from ortcam.serving.answers import Answer
from ortcam.serving.metrics import Metrics
from ortcam.serving.questions import Question
from ortcam.serving.refusal import Kind, Refusal
from ortcam.serving.service import Service
from ortcam.serving.works import Work

Made = TypeVar("Made")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_ENCODERS = 2
_log = logging.getLogger("ortcam.serving")


@dataclass(eq=False)
class Call:
    """A request at a door.

    Attributes:
        door: ``rest`` or ``grpc``.
        id: the id of the request in the log and in the answer.
        model: the model, if it is known.
        begin: when it arrived, in seconds of time.perf_counter.
    """

    door: str
    id: str
    model: str = ""
    begin: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begin


def request_id(given: str | None) -> str:
    """Return the client's id of a request if it can be logged, else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


class Desk:
    """Hands questions to a service from an event loop, which it never blocks."""

    def __init__(self, service: Service, metrics: Metrics, keys: frozenset[bytes] = frozenset()) -> None:
        """Begin.

        Args:
            service: the models.
            metrics: counts.
            keys: the keys that clients must send; none to let everybody in.
        """
        self.service, self.metrics, self.limits = service, metrics, service.limits
        self._keys = keys
        self._encoders = ThreadPoolExecutor(_ENCODERS, thread_name_prefix="ortcam-encode")
        self._pending = 0
        self.sending = 0  # bytes of answers that are being sent

    def close(self) -> None:
        """End the threads that encode answers."""
        self._encoders.shutdown(wait=False, cancel_futures=True)

    def check_key(self, authorization: str | None) -> None:
        """Check a header Authorization.

        Raises:
            Refusal: keys are wanted, and it does not hold one.
        """
        import hmac

        if not self._keys:
            return
        scheme, _, key = (authorization or "").partition(" ")
        given = key.strip().encode("utf-8", "surrogateescape")
        same = [hmac.compare_digest(given, one) for one in self._keys]  # all, so that the time says nothing
        if scheme.lower() != "bearer" or not any(same):
            raise Refusal(Kind.UNAUTHORISED, "no valid API key; expected the header 'Authorization: Bearer KEY'")

    def reserve(self, size: int) -> None:
        """Count bytes of a request that is being read; `release` gives them back.

        Raises:
            Refusal: the requests that are being read or wait are too large together.
        """
        if self._pending + self.sending + size > self.limits.pending:
            raise Refusal(Kind.BUSY, "the requests and answers in work are too large together; try again", 1.0)
        self._pending += size
        self.metrics.pending_bytes.set(self._pending)

    def release(self, size: int) -> None:
        """Give back what `reserve` counted."""
        self._pending -= size
        self.metrics.pending_bytes.set(self._pending)

    async def compute(self, function: Callable[..., Made], *arguments: object) -> Made:
        """Run a function in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoders, functools.partial(function, *arguments))

    async def answer(
        self,
        call: Call,
        submit: Callable[..., Work],
        write: Callable[[Answer, Question], Made],
        left: Awaitable[object] | None = None,
    ) -> Made:
        """Return what `write` makes of the answer to a question.

        Args:
            call: the request.
            submit: hands the question to the service; takes `spent` and `held` of `Service.submit`.
            write: encodes the answer; runs in a thread.
            left: ends when the client has left.

        Raises:
            Refusal: there is no answer.
        """
        gone, work = None if left is None else asyncio.ensure_future(left), None
        try:
            work = submit(spent=call.seconds, held=True)
            answer = await self._wait(work, asyncio.wrap_future(work.answer), gone)
            made = await self._wait(work, asyncio.ensure_future(self.compute(write, answer, work.question)), gone)
        except Refusal:
            raise
        except OrtcamError as error:
            raise self._as_refusal(call, error) from error
        finally:
            if work is not None:
                work.release()
            if gone is not None:
                gone.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await gone
        self.metrics.answered(call.model, call.door, answer, call.seconds)
        return made

    async def _wait(self, work: Work, made: asyncio.Future[Made], gone: asyncio.Future[object] | None) -> Made:
        """Return what is made for a client, unless it comes too late or the client has left."""
        timeout = max(0.0, work.deadline - time.monotonic())
        both: set[asyncio.Future[Any]] = {made} if gone is None else {made, gone}
        try:
            await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if made.done():
                return made.result()
        finally:
            if not made.done():
                made.cancel()
        if gone is not None and gone.done():
            raise Refusal(Kind.GONE, "the client has left")
        raise Refusal(Kind.LATE, "the answer is not ready in time; ask for a smaller budget, or wait longer")

    def _as_refusal(self, call: Call, error: OrtcamError) -> Refusal:
        """Return the refusal of an error of the engine."""
        if isinstance(error, ImageError | TargetError | OptionError | NotFiniteError):
            return Refusal(Kind.INVALID, self._without_paths(str(error), call.model))
        _log.error("request %s: model %s failed: %s", call.id, call.model, error)
        kind = "the model" if isinstance(error, ModelError) else type(error).__name__
        return Refusal(Kind.FAILED, f"{kind} failed; the log of the server has the reason at request {call.id}")

    def _without_paths(self, message: str, name: str) -> str:
        """Return a message without the path of the model's file."""
        model = self.service.models.get(name)
        if model is None:
            return message
        for shown in (str(model.path.resolve()), str(model.path), model.path.name):
            message = message.replace(shown, f"model {name}")
        return message

    def told(self, call: Call, status: int | str, refusal: Refusal | None = None) -> None:
        """Count and log a request that ended, with its HTTP or gRPC status."""
        if refusal is not None:
            self.metrics.refused(call.model, call.door, refusal.kind)
        _log.info(
            "%s %s %s in %.3f s%s", call.door, call.model or "-", status, call.seconds,
            "" if refusal is None else f": {refusal}",
            extra={
                "request": call.id, "door": call.door, "model": call.model, "status": status,
                "seconds": round(call.seconds, 4), **({} if refusal is None else {"reason": str(refusal)}),
            },
        )  # fmt: skip
