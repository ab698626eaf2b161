"""Service: the models of a server, without a network."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ortcam.core.budget import Limits
from ortcam.deploy.packed import PackedExplainer
from ortcam.errors import OptionError, OrtcamError, nearest
from ortcam.explain.explainer import ModelExplainer
from ortcam.explain.protocol import Explainer
from ortcam.model.contract import Contract
from ortcam.serving.limits import ServingLimits
from ortcam.serving.protocol import InferRequest
from ortcam.serving.questions import Facts, Question, read_question, read_timeout
from ortcam.serving.refusal import Kind, Refusal
from ortcam.serving.tensors import show
from ortcam.serving.worker import Served, Worker
from ortcam.serving.works import Work

VERSION = "1"  # of every model: a file that replaces another is the same model to its clients
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_log = logging.getLogger("ortcam.serving")

Load = Callable[[Path], Explainer]
State = tuple[int, int, int]  # of a file: inode, size, time of the last change


@dataclass(frozen=True, eq=False)
class Model:
    """A model that is served.

    Attributes:
        path: its file.
        state: the state of the file when it was loaded.
        worker: its queue and threads.
    """

    path: Path
    state: State | None
    worker: Worker


class Service:
    """Models by name, each with its queue. All methods may be called from any thread."""

    def __init__(self, load: Load, limits: ServingLimits | None = None) -> None:
        """Begin without models.

        Args:
            load: opens a file.
            limits: what is taken from clients; None for the defaults.
        """
        self.limits = limits or ServingLimits()
        self._load, self._models = load, dict[str, Model]()
        self._loading = threading.Lock()
        self._replaced: list[Worker] = []  # which may have questions still
        self.draining = self.leaving = False

    @property
    def models(self) -> Mapping[str, Model]:
        """The models by name, in the order of their first loading."""
        return self._models

    @property
    def ready(self) -> bool:
        """Whether clients should send requests: there are models, all of them work, and the server goes on."""
        models = self._models.values()
        works = bool(models) and not any(model.worker.broken for model in models)
        return works and not self.draining and not self.leaving

    def load(self, name: str, path: Path) -> None:
        """Load a model, or a new file for a model. Requests that wait are answered by the file that took them.

        Raises:
            OptionError: the name is invalid.
            Refusal: the server is shutting down.
            OrtcamError: the file cannot be used; an earlier file of the model stays.
        """
        if _NAME.fullmatch(name) is None:
            raise OptionError(f"model name is {name!r}; expected letters, digits, '.', '_' and '-', at most 100")
        with self._loading:
            if self.leaving:
                raise Refusal(Kind.LEAVING, "the server is shutting down")
            state, begin = state_of(path), time.perf_counter()
            explainer = self._load(path)
            assert isinstance(explainer, ModelExplainer | PackedExplainer)
            try:
                _rehearse(explainer)
                worker = Worker(name, explainer, facts_of(explainer), self.limits)
            except BaseException:
                explainer.close()
                raise
            before = self._models.get(name)
            self._models = {**self._models, name: Model(path, state, worker)}  # others may iterate over the one before
            if before is not None:
                before.worker.close(wait=False)
                self._replaced = [*(one for one in self._replaced if one.alive), before.worker]
        done = "replaced" if before is not None else "loaded"
        seconds = time.perf_counter() - begin
        _log.info("model %s %s from %s in %.1f s, on %s", name, done, path.name, seconds, explainer.provider)

    def reload(self) -> list[OrtcamError]:
        """Load the models again whose files have changed; return the errors, which are logged."""
        changed = {name: model.path for name, model in self._models.items() if _changed(model)}
        return self.try_to_load(changed)

    def try_to_load(self, paths: Mapping[str, Path]) -> list[OrtcamError]:
        """Load models; return the errors, which are logged. Models that were loaded before stay on errors."""
        errors = []
        for name, path in paths.items():
            try:
                self.load(name, path)
            except OrtcamError as error:
                goes_on = "; the model that was loaded before goes on" if name in self._models else ""
                _log.error("model %s cannot be loaded: %s%s", name, error, goes_on)
                errors.append(error)
        return errors

    def find(self, name: str, version: str | None = None) -> Worker:
        """Return the worker of a model.

        Raises:
            Refusal: there is no such model or version.
        """
        model = self._models.get(name)
        if model is None:
            raise Refusal(Kind.UNKNOWN, f"model {show(name)} is unknown{nearest(name[:100], self._models)}")
        if version not in (None, "", VERSION):
            raise Refusal(Kind.UNKNOWN, f"model {name} has no version {show(version)}; expected {VERSION}")
        return model.worker

    def ask(
        self, name: str, version: str | None, request: InferRequest, *, spent: float = 0.0, held: bool = False
    ) -> Work:
        """Take a request of the protocol; `spent` and `held` as for `submit`.

        Raises:
            Refusal: it is wrong, or cannot be taken now.
        """
        question = read_question(request, self.find(name, version).facts, self.limits)
        timeout = read_timeout(request.parameters, self.limits.timeout)
        return self.submit(name, question, timeout, spent=spent, held=held)

    def check_room(self, name: str) -> None:
        """Check that a photo can be taken now: what would be refused need not be read.

        Raises:
            Refusal: the model is unknown, busy or shutting down.
        """
        self._find_open(name).check_room()

    def _find_open(self, name: str) -> Worker:
        if self.leaving:
            raise Refusal(Kind.LEAVING, "the server is shutting down; try another one", 1.0)
        return self.find(name)

    def submit(
        self, name: str, question: Question, timeout: float | None = None, *, spent: float = 0.0, held: bool = False
    ) -> Work:
        """Take a question.

        Args:
            name: the name of the model.
            question: the question.
            timeout: seconds from its arrival to its answer; None for the server's.
            spent: seconds since its arrival.
            held: count its photos as waiting until `Work.release`, and not only until it is answered.

        Raises:
            Refusal: the model is unknown, busy or shutting down, or the answer would be late.
        """
        most = self.limits.timeout
        work = Work(question, time.monotonic() - spent + (most if timeout is None else min(timeout, most)), held)
        for attempt in (1, 2):
            worker = self._find_open(name)
            try:
                worker.submit(work)
                break
            except Refusal as refusal:  # another file took the model's place in between
                if attempt == 2 or refusal.kind != Kind.LEAVING or worker is self.find(name):
                    raise
        return work

    def close(self) -> None:
        """Refuse new questions, answer all that were taken, and release the models."""
        self.leaving = True
        with self._loading:
            workers = [*self._replaced, *(model.worker for model in self._models.values())]
        for worker in workers:
            worker.close(wait=False)
        for worker in workers:
            worker.close()


def facts_of(explainer: Served) -> Facts:
    """Return what questions must know of an explainer."""
    contract, packed = _contract(explainer), isinstance(explainer, PackedExplainer)
    known = contract.preprocessing is not None
    if isinstance(explainer, PackedExplainer):
        raw, shape = bool(explainer.facts["raw"]), tuple(explainer.facts["input_shape"])
    else:
        raw, shape = False, tuple(explainer.model.input_shape)
    takes = {"photos"} if raw and known else {"photos", "tensors"} if known else {"tensors"}
    size = (shape[1], shape[2]) if contract.image_layout == "NCHW" else (shape[0], shape[1])
    sizes = ("photo",) if packed and raw else ("input", "photo")
    return Facts(contract.task, shape, size, frozenset(takes), sizes, bool(contract.labels), _has_budgets(explainer))


def _has_budgets(explainer: Served) -> bool:
    """Return whether the method of an explainer takes a budget."""
    if isinstance(explainer, PackedExplainer):
        return False
    try:
        explainer.method.check(Limits(1))
    except OptionError:
        return False
    return True


def _contract(explainer: Served) -> Contract:
    return explainer.contract if isinstance(explainer, PackedExplainer) else explainer.model.contract


def _rehearse(explainer: Served) -> None:
    """Run the model once, so that the first client does not wait for its planning, and no broken file is served."""
    if isinstance(explainer, ModelExplainer):
        explainer.rehearse()


def state_of(path: Path) -> State | None:
    """Return the state of a file; None if it is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _changed(model: Model) -> bool:
    state = state_of(model.path)
    return state is not None and state != model.state
