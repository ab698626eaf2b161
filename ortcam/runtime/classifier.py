"""Classifier: a model file that runs in this process, with worker threads beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from threading import Lock
from typing import Literal

from ortcam.core.budget import HostPredictors, Predictors
from ortcam.core.convention import Floats
from ortcam.core.method import Scores
from ortcam.core.query import Change, Rows
from ortcam.core.references import Reference, stack
from ortcam.graph import names
from ortcam.graph.wiring import MASKED_IMAGE, Wiring
from ortcam.model.cam_model import CamModel
from ortcam.runtime.engine import Engine
from ortcam.runtime.providers import Provider
from ortcam.runtime.scorer import Group, Progress, Scorer
from ortcam.runtime.threads import Workers, usable_processors

_log = logging.getLogger("ortcam")
_FREE_THE_PROCESSOR = ("cuda", "tensorrt")  # providers; others may need the processor, or may not run in two threads
_TAILS_FOR_AN_IMAGE = 8  # in a batch: a tail takes far less time and memory than the whole model
_MOST_BYTES_OF_TAILS = 16 << 20  # of the features in a batch
_ENOUGH_THREADS = 4  # beside a device; more threads would only wait for Python's lock


@dataclass(frozen=True)
class Setup:
    """The options for running a model file. It can be pickled.

    Attributes:
        model: the model file.
        scored: the tensor that the scores are taken from, as in `Convention`.
        provider: the requested provider.
        batch_size: the number of changed inputs per run; ``auto``, or None for the default.
        threads: the number of CPU threads; None for one per physical core.
        change: the change of the first queries.
    """

    model: CamModel
    scored: Literal["logits", "output"]
    provider: Provider
    batch_size: int | Literal["auto"] | None
    threads: int | None
    change: Change


class Classifier:
    """Runs a model on photos and on changed inputs, in batches. It raises the errors of `Engine` and `Scorer`.

    Attributes:
        name: the model's name in messages.
        provider: the execution provider that runs the model.
        frees_processor: whether the processor is free while the model runs.
        workers: threads for work on several photos, between runs.
        choosers: the same for work that uses predictors.
    """

    def __init__(self, setup: Setup) -> None:
        """Open a session for the first queries; sessions for other queries are opened on demand."""
        setup.model.source.check_unchanged()
        self._setup, self._lock = setup, Lock()
        first = Wiring.of(setup.change)
        # The plain pass needs the whole model, and no noise.
        whole = first if first.at == "image" and not first.noisy else MASKED_IMAGE
        engine = Engine(setup.model, setup.scored, setup.provider, setup.batch_size, setup.threads, wiring=whole)
        self.provider, self.name = engine.provider, setup.model.name
        self._whole, self._scorers = engine.scorer, {whole: engine.scorer}
        if first not in self._scorers:  # now, so that a layer without a tail is an error at once
            self._scorers[first] = self._open(first)
        self.frees_processor = self.provider.name in _FREE_THE_PROCESSOR
        self._predictors: Callable[[], Predictors]
        if self.frees_processor:
            from ortcam.runtime.surrogate import DeviceSurrogates

            surrogates = DeviceSurrogates(self.provider.device)
            self._predictors, self._close_predictors = surrogates.group, surrogates.close
            self.workers = Workers(setup.threads or min(usable_processors(), _ENOUGH_THREADS))
            self.choosers = Workers(1)
        else:
            self._predictors, self._close_predictors = HostPredictors, _nothing
            self.workers = self.choosers = Workers(setup.threads)

    @property
    def batch_size(self) -> int:
        """The largest number of changed inputs per run."""
        return self._whole.batch_size

    def open(self, change: Change) -> None:
        """Open the session for a kind of change now, so that a model that cannot be changed so is an error at once."""
        self._scorer(Wiring.of(change))

    def forward(self, tensors: Floats) -> Group:
        """Run the model once on the input tensors [P,...]: `Scorer.forward`."""
        return self._whole.forward(tensors)

    def with_references(self, group: Group, references: Sequence[Sequence[Reference]]) -> Group:
        """Return a group whose photos have references, of a model of another task."""
        vectors, classes = stack(references, self._setup.model.reference_sizes[1])
        arrays = {names.REFERENCES: vectors, names.REFERENCE_CLASSES: classes}
        return replace(group, references={name: arrays[name] for name in group.references})

    def score(self, group: Group, rows: Rows, change: Change, on_progress: Progress | None = None) -> Scores:
        """Run changed inputs of a group's photos: `Scorer.score`."""
        return self._scorer(Wiring.of(change)).score(group, rows, change, on_progress)

    def predictors(self) -> Predictors:
        """Return the factory of predictors for one group of photos."""
        return self._predictors()

    def close(self) -> None:
        """End the threads. Sessions end with their last reference."""
        self._close_predictors()
        self.workers.close()
        self.choosers.close()
        for scorer in self._scorers.values():
            scorer.close()

    def _scorer(self, wiring: Wiring) -> Scorer:
        with self._lock:
            if wiring not in self._scorers:
                self._scorers[wiring] = self._open(wiring)
            return self._scorers[wiring]

    def _open(self, wiring: Wiring) -> Scorer:
        setup = self._setup
        size = self.batch_size
        if wiring.at == "layer":
            stages = setup.model.stages
            shape = stages[wiring.layer - 1].dims if wiring.layer else setup.model.activations_shape
            bytes_of_row = 4 * prod(dim for dim in shape if dim)
            size = min(size * _TAILS_FOR_AN_IMAGE, max(size, _MOST_BYTES_OF_TAILS // bytes_of_row))
        _log.debug("%s: a session of its own for changes at the %s", self.name, wiring.at)
        return Engine(setup.model, setup.scored, self.provider, size, setup.threads, wiring=wiring).scorer


def _nothing() -> None:
    pass
