"""The service without a network: what happens to questions that wait, are late or given up, or whose model goes."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import SECONDS
from torch import nn

import ortcam
from ortcam import Box
from ortcam.deploy.load import load_explainer
from ortcam.errors import ImageError, OrtcamError
from ortcam.exporters import export
from ortcam.serving.answers import Answer
from ortcam.serving.desk import Call, Desk
from ortcam.serving.limits import ServingLimits
from ortcam.serving.metrics import Metrics
from ortcam.serving.questions import Question, read_timeout
from ortcam.serving.refusal import Kind, Refusal
from ortcam.serving.service import Service
from ortcam.serving.works import Costs, Work

CHANNELS = 384


@pytest.fixture(scope="session")
def wide(models: Path) -> Path:
    """A classifier whose exact map takes nearly fifty times as long as one with a budget of 8."""
    torch.manual_seed(1)
    parts = nn.Conv2d(3, CHANNELS, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 5)
    module = nn.Sequential(*parts).eval()
    return export(module, models / "wide.onnx", "1", preprocess="imagenet", input_size=128, output_kind="logits").path


@pytest.fixture
def soon(wide: Path, served: Path) -> float:
    """Seconds: half of what `long` would take to the end."""
    engine, begin = ortcam.ScoreCAM(wide), time.monotonic()
    engine.explain(served / "cat.jpg")
    return 8 * (time.monotonic() - begin)


@pytest.fixture
def start(wide: Path) -> Iterator[Callable[..., Service]]:
    """Start services that serve `wide`; they are closed after the test."""
    started = []

    def begin(**limits: Any) -> Service:
        started.append(Service(load_explainer, ServingLimits(**limits)))
        started[-1].load("wide", wide)
        return started[-1]

    yield begin
    for service in started:
        service.close()


@pytest.fixture
def quick(served: Path) -> Question:
    return Question(((served / "cat.jpg").read_bytes(),), budget=8)


@pytest.fixture
def long(quick: Question) -> Question:
    """Sixteen exact maps: nobody waits for them to the end."""
    return replace(quick, images=quick.images * 16, budget=None)


def begin(service: Service, question: Question, timeout: float | None = None) -> Work:
    """Submit a question, and return when it is being explained."""
    work, worker = service.submit("wide", question, timeout), service.find("wide")
    limit = time.monotonic() + SECONDS
    while worker.waiting:
        assert time.monotonic() < limit
        time.sleep(0.002)
    return work


def refusal_of(work: Work) -> Refusal:
    error = work.answer.exception(SECONDS)
    assert isinstance(error, Refusal), error
    return error


def refused(service: Service, question: Question, timeout: float | None = None, spent: float = 0.0) -> Refusal:
    with pytest.raises(Refusal) as info:
        service.submit("wide", question, timeout, spent=spent)
    return info.value


def test_a_full_queue(start: Callable[..., Service], quick: Question, long: Question) -> None:
    """A question that would wait too long in line is refused; one with more photos than the queue holds is not."""
    service = start(queue=2)
    many = service.submit("wide", replace(quick, images=quick.images * 3))  # nobody waits
    assert len(many.answer.result(SECONDS).explained) == 3
    running = begin(service, long)
    waiting = [service.submit("wide", quick) for _ in range(2)]
    busy = refused(service, quick)
    assert (busy.kind, str(busy)) == (Kind.BUSY, "model wide is busy: 2 photos wait, at most 2 may")
    assert busy.retry_after is not None and busy.retry_after >= 1
    running.gone.set()
    assert all(work.answer.result(SECONDS).explained for work in waiting)
    assert service.submit("wide", quick).answer.result(SECONDS).explained


def test_a_client_that_has_left_is_not_worked_for(
    start: Callable[..., Service], quick: Question, long: Question, soon: float
) -> None:
    service, began = start(), time.monotonic()
    running, waiting, other = begin(service, long), service.submit("wide", long), service.submit("wide", quick)
    waiting.gone.set()
    running.gone.set()
    assert other.answer.result(SECONDS).explained
    assert time.monotonic() - began < soon
    assert refusal_of(running).kind == refusal_of(waiting).kind == Kind.GONE


def test_late_answers(start: Callable[..., Service], quick: Question, long: Question, soon: float) -> None:
    """Work on an answer stops when it is late. Once the cost is known, nothing waits in line that would be late."""
    service = start(timeout=600.0)
    late = begin(service, long, timeout=soon / 40)  # the cost is unknown
    assert refusal_of(late).kind == Kind.LATE
    began = time.monotonic()
    assert service.submit("wide", quick).answer.result(SECONDS).explained
    assert time.monotonic() - began < soon
    one = service.submit("wide", replace(long, images=long.images[:1])).answer.result(SECONDS)
    began = time.monotonic()
    first = begin(service, replace(long, images=long.images[:2]))
    assert refused(service, long, timeout=4 * one.seconds).kind == Kind.LATE, "sixteen photos"
    first.gone.set()
    running = begin(service, long)
    assert refused(service, quick, timeout=2 * one.seconds).kind == Kind.LATE, "it would wait for the first"
    running.gone.set()
    assert time.monotonic() - began < soon
    assert service.submit("wide", quick, timeout=1000).deadline - time.monotonic() <= service.limits.timeout
    assert service.submit("wide", quick, spent=590).deadline - time.monotonic() <= 10, "counted from the arrival"
    assert refused(service, quick, timeout=0.0).kind == refused(service, quick, spent=600).kind == Kind.LATE


def test_a_slow_answer_locks_nobody_out(
    start: Callable[..., Service], quick: Question, long: Question, soon: float
) -> None:
    """What was once slow is tried when nothing is ahead of it: only answers teach what it takes."""
    service = start(timeout=100.0)
    costs = service.find("wide")._costs
    costs.learn(quick, 1000.0)  # the machine stood still
    assert service.submit("wide", quick).answer.result(SECONDS).explained
    assert costs.of(quick) < 1000
    running = begin(service, long)
    assert refused(service, quick).kind == Kind.LATE
    running.gone.set()
    assert refusal_of(running).kind == Kind.GONE
    late = service.submit("wide", long, timeout=soon / 20)
    assert refusal_of(late).kind == Kind.LATE
    assert costs.of(long) > soon / 40, "what ended late taught nothing"


def test_a_new_file_while_questions_wait(start: Callable[..., Service], quick: Question, served: Path) -> None:
    """Each is answered by the file that took it. A file that cannot be loaded replaces nothing."""
    service = start()
    before = [begin(service, replace(quick, budget=None)), *(service.submit("wide", quick) for _ in range(3))]
    (served / "broken.bin").write_bytes(b"no model")
    assert len(service.try_to_load({"wide": served / "broken.bin"})) == 1
    before.append(service.submit("wide", quick))
    service.load("wide", served / "tiny.onnx")
    after = service.submit("wide", quick)
    assert [work.answer.result(SECONDS).explained[0].channels for work in before] == [CHANNELS] * 5
    assert after.answer.result(SECONDS).explained[0].channels == 16


def test_closing_answers_everything(start: Callable[..., Service], quick: Question) -> None:
    service = start()
    works = [begin(service, replace(quick, budget=None)), *(service.submit("wide", quick) for _ in range(5))]
    service.close()
    assert all(work.answer.done() and work.answer.result().explained for work in works)
    leaving = refused(service, quick)
    assert (leaving.kind, leaving.kind.http, leaving.kind.grpc) == (Kind.LEAVING, 503, "UNAVAILABLE")
    assert not service.ready


def test_questions_that_are_explained_together(
    start: Callable[..., Service], wide: Path, served: Path, quick: Question
) -> None:
    """Those with equal options, one among them with other options; each gets what it would get alone."""
    service, engine = start(), ortcam.ScoreCAM(wide)
    data = [(served / name).read_bytes() for name in ("cat.jpg", "cup.jpg", "cat.png", "mirrored.png")]
    questions = [Question((one,), budget=8, top_k=2) for one in data] + [Question((data[0],), (3,), budget=9)]
    questions.insert(2, questions.pop())
    running = begin(service, replace(quick, budget=None))
    works = [service.submit("wide", one) for one in questions]
    assert not running.answer.done(), "the questions did not wait"
    for question, work in zip(questions, works, strict=True):
        (found,) = work.answer.result(SECONDS).explained
        expected = engine.explain(question.images[0], question.targets, top_k=question.top_k, budget=question.budget)
        assert np.array_equal(found.input_maps, expected.input_maps)
        assert expected.input_maps.std() > 0.05, "a map this flat would prove nothing"
        assert [one.index for one in found.targets] == [one.index for one in expected.targets]
    assert questions[0].together == questions[1].together != questions[2].together
    assert Question(data, (Box(1),)).together is None


def test_a_broken_photo_of_a_group(start: Callable[..., Service], quick: Question) -> None:
    """Its number is in the error, and the next question is answered."""
    service, good = start(), quick.images[0]
    error = service.submit("wide", replace(quick, images=(good, good[:50]))).answer.exception(SECONDS)
    assert isinstance(error, ImageError) and str(error).startswith("image 1 ")
    error = service.submit("wide", replace(quick, images=(good[:50],))).answer.exception(SECONDS)
    assert isinstance(error, ImageError) and str(error).startswith("image ") and "image 0" not in str(error)
    unknown = service.submit("wide", replace(quick, targets=(7,))).answer.exception(SECONDS)
    assert isinstance(unknown, OrtcamError) and not isinstance(unknown, Refusal)
    assert service.submit("wide", quick).answer.result(SECONDS).explained


def test_costs_are_learned() -> None:
    """Seconds of a photo: the first time, then .7 of the old and .3 of the new; of equal options only."""
    costs, exact = Costs(), Question((b"", b""))
    assert costs.of(exact) == 0
    costs.learn(exact, 2.0)
    assert costs.of(exact) == 4.0
    costs.learn(replace(exact, images=(b"",)), 1.0)
    assert costs.of(exact) == pytest.approx(2 * (0.7 * 2.0 + 0.3 * 1.0))
    for other in ({"budget": 8}, {"tolerance": 0.1}, {"top_k": 2}, {"outputs": ("label",)}):
        assert costs.of(replace(exact, **other)) == 0


def test_what_ended_late_is_learned() -> None:
    """It took at least that long; the first answer says better."""
    costs, one = Costs(), Question((b"",))
    for seconds, expected in ((2.0, 2.0), (1.0, 2.0), (3.0, 3.0)):
        costs.learn_least(one, seconds)
        assert costs.of(one) == expected
    costs.learn(one, 5.0)
    assert costs.of(one) == 5.0
    costs.learn_least(one, 6.0)
    costs.learn(one, 5.0)
    assert costs.of(one) == pytest.approx(0.7 * 6.0 + 0.3 * 5.0)


def test_answers_that_wait_to_be_written(start: Callable[..., Service], quick: Question) -> None:
    """They hold photos and maps, so they count as photos that wait, and their deadline goes on."""
    service, go_on = start(queue=2), threading.Event()
    desk, worker = Desk(service, Metrics(service)), service.find("wide")

    def write(answer: Answer, question: Question) -> int:
        go_on.wait(SECONDS)
        return len(answer.explained)

    async def ask(timeout: float) -> int:
        return await desk.answer(Call("rest", "1", "wide"), partial(service.submit, "wide", quick, timeout), write)

    async def ask_all() -> None:
        taken = []
        for _ in range(2):
            taken.append(asyncio.create_task(ask(SECONDS)))
            await asyncio.sleep(0)
            while worker._running or worker._count_ahead():
                await asyncio.sleep(0.002)
        with pytest.raises(Refusal, match="busy: 2 photos wait"):
            await ask(SECONDS)
        go_on.set()
        assert await asyncio.gather(*taken) == [1, 1]
        go_on.clear()
        assert worker.waiting == 0
        with pytest.raises(Refusal, match="not ready in time"):
            await ask(0.3)
        assert worker.waiting == 0
        go_on.set()

    try:
        asyncio.run(ask_all())
    finally:
        go_on.set()
        desk.close()


def test_an_idle_worker_keeps_nothing(start: Callable[..., Service], quick: Question) -> None:
    service, limit = start(), time.monotonic() + SECONDS
    work = service.submit("wide", quick)
    assert work.answer.result(SECONDS).explained
    last = weakref.ref(work)
    del work
    while last() is not None and time.monotonic() < limit:
        time.sleep(0.002)
    assert last() is None


class Faulty(Work):
    """Its error cannot be told at first."""

    def fail(self, error: Exception) -> None:
        if self.question.images:
            self.question = replace(self.question, images=())
            raise ZeroDivisionError
        super().fail(error)


def test_a_worker_that_ended_is_not_ready(start: Callable[..., Service], quick: Question, wide: Path) -> None:
    """A new file makes the server ready again, but none is loaded once it shuts down."""
    service = start()
    models = service.models
    work = Faulty(replace(quick, images=(b"no photo",)), time.monotonic() + SECONDS)
    assert service.ready
    service.find("wide").submit(work)
    assert refusal_of(work).kind == Kind.FAILED
    assert not service.ready
    service.load("wide", wide)
    service.load("other", wide)
    assert service.ready and list(models) == ["wide"], "a loop over the models would end by an error"
    service.close()
    with pytest.raises(Refusal, match="shutting down"):
        service.load("wide", wide)


def test_the_time_that_a_client_waits() -> None:
    """Microseconds, as Triton's clients send them; never more than the server's."""
    assert [read_timeout(given, 30.0) for given in ({}, {"timeout": 2_000_000}, {"timeout": 10**9})] == [30, 2, 30]
    for wrong in (0, -1, 1.5, "9", True):
        with pytest.raises(Refusal, match="timeout is"):
            read_timeout({"timeout": wrong}, 30.0)
