"""Asking: what a packed file is asked for, in its inputs, and what it answers beside the maps.

`ClassAsking` is that of a classifier. `ortcam.graph.packed_tasks` has those of the other tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ortcam.graph.builder import Builder, Dims, Value
from ortcam.graph.checks import check, is_any, is_wild
from ortcam.graph.packing import Packing
from ortcam.graph.photo import Side

Values = Mapping[str, Value]


@dataclass(frozen=True)
class Explained:
    """The results of an explainer for one photo.

    Attributes:
        kept: what was kept of the plain pass (`Asking.keep`).
        maps: float32 [T,h_in,w_in] in [0,1], at the size of the model's input.
        scored: int64 [1], the number of changed inputs that were run.
        error: float32 [T,3], the estimated errors; NaN where they are unknown.
    """

    kept: Values
    maps: Value
    scored: Value
    error: Value


class Asking(Protocol):
    """Writes the inputs that say what to explain, and the outputs of the plain pass."""

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs and outputs of the file; no value of the model may have such a name."""

    @property
    def ranks(self) -> Mapping[str, int]:
        """The ranks of what `keep` returns, by name."""

    def write_inputs(self) -> None:
        """Write the inputs beside the image."""

    def locate(self, sides: tuple[Side, Side] | None) -> None:
        """Take the place of the model's input in the photo; None if the file takes tensors."""

    def count(self) -> Value:
        """Return T, the number of targets, int64 [1]."""

    def begin(self, one: Value) -> dict[str, Value]:
        """Return what is kept before the plain pass. `one` is 1, int64 [1]; no shape may be a constant."""

    def find(self, results: Values, layer: Value) -> dict[str, Value]:
        """Find the targets, after all checks: results [1,...] and the layer of the plain pass -> ``targets`` and more.

        ``targets`` int64 [T] are the columns of the scores that the model's graph returns.
        """

    def keep(self, results: Values, found: Values) -> dict[str, Value]:
        """Return what is kept of the plain pass, with the names and ranks of `ranks`."""

    def feeds(self, kept: Values) -> dict[str, Value]:
        """Return the inputs of a scoring graph that hold the targets, beside TARGETS."""

    def logits(self, results: Values, found: Values) -> Value:
        """Return the scores of the plain pass that ``targets`` are columns of, float32 [1,N]."""

    def write_outputs(self, made: Explained, place: Callable[[Value], Value], size: Dims) -> None:
        """Write all outputs; `place` puts maps on the photo, whose `size` is (height, width)."""


class ClassAsking:
    """Classes: `target` int64 [T] in, scores [N] and `target_class` out."""

    names = ("image", "target", "target_class", "saliency", "scored", "error")
    ranks: Mapping[str, int] = {"output": 1, "targets": 1}

    def __init__(self, graph: Builder, plan: Packing, name: str) -> None:
        """Begin; `name` is the output of the model's scores."""
        self._graph, self._plan, self._name = graph, plan, name

    def write_inputs(self) -> None:
        self._target = self._graph.input("target", np.int64, ["targets"])
        if self._plan.target is not None:
            self._graph.default("target", np.array([self._plan.target], np.int64))

    def locate(self, sides: tuple[Side, Side] | None) -> None:
        pass  # classes have no place

    def count(self) -> Value:
        return self._graph.size(self._target, 0)

    def begin(self, one: Value) -> dict[str, Value]:
        graph = self._graph
        return {"output": graph.full(one, 0.0, np.float32), "targets": graph.full(self.count(), 0, np.int64)}

    def find(self, results: Values, layer: Value) -> dict[str, Value]:
        graph, target, logits = self._graph, self._target, results["logits"]
        wild = is_wild(graph, logits) | is_wild(graph, layer)
        fault = check(graph, wild, "the model returns NaN or infinite values for this image")
        valid = self._is_valid(graph.size(logits, 1))
        none = graph.equal(graph.size(target, 0), 0)
        wrong = none | is_any(graph, ~valid)
        fault = fault + check(
            graph, wrong, "target is out of range; expected class indices from 0, or -1: the top class"
        )
        top = graph.reshape(graph.op("ArgMax", logits, axis=1, keepdims=1), 1)
        return {"targets": graph.where(graph.equal(target, -1), top, graph.where(valid, target, 0)) + fault}

    def keep(self, results: Values, found: Values) -> dict[str, Value]:
        return {"output": self._graph.reshape(results["output"], -1), **found}

    def feeds(self, kept: Values) -> dict[str, Value]:
        return {}

    def logits(self, results: Values, found: Values) -> Value:
        return results["logits"]

    def write_outputs(self, made: Explained, place: Callable[[Value], Value], size: Dims) -> None:
        graph, output = self._graph, made.kept["output"]
        valid = self._is_valid(graph.size(output, 0))
        saliency = place(made.maps * graph.reshape(graph.cast(valid, np.float32), -1, 1, 1))
        graph.output(output, self._name, ["classes"])
        # Inputs and outputs have one namespace, so it is not called `target` again.
        graph.output(graph.where(valid, made.kept["targets"], self._target), "target_class", ["targets"])
        graph.output(saliency, "saliency", ["targets", *size])
        graph.output(made.scored, "scored", [1])
        graph.output(made.error, "error", ["targets", 3])

    def _is_valid(self, classes: Value) -> Value:
        return (self._target >= -1) & (classes > self._target)
