"""The surrogate as graphs that ONNX Runtime runs: `ortcam.surrogate`, for many photos at once.

NumPy's calls are short, and between them threads wait for Python's lock; a graph runs from end to end without it. Two
threads take 16 ms for each photo of 2048 masks, with NumPy 23. On the CPU, where the passes take most of the time,
NumPy does without sessions to create, and holds half of the kernel only.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray
from onnx import helper

from ortcam.convention import Floats
from ortcam.graph import budget
from ortcam.graph.builder import Builder
from ortcam.runtime.session import CPU, create_session, make_options
from ortcam.surrogate import Prediction, distance_factors, expected_error, smooth_directions

_OPSET, _IR_VERSION = 18, 9
_BLOCK = 128  # rows of the kernel
_making = Lock()  # all photos of the first group want the same sessions at once
_CHOSEN = ("factor", "inverse", "variance", "chosen", "free")  # what a choice changes of the state
_PREDICTED = ("importance", "direction", "logs")  # what a prediction does
_TYPES: dict[str, DTypeLike] = {"inverse": np.float64, "chosen": np.int64}  # the others are float32


class _Steps(NamedTuple):
    kernel: ort.InferenceSession
    choose: ort.InferenceSession
    predict: ort.InferenceSession
    times: ort.InferenceSession


class GraphSurrogate:
    """Does what `ortcam.surrogate.Surrogate` does, to float rounding. Takes 4 D * D bytes."""

    def __init__(self, masks: Floats, parts: Floats, grid: tuple[int, int]) -> None:
        """Start without any score, as `Surrogate` does."""
        count = len(masks)
        with _making:
            self._steps = _steps(grid)
        self._basis = smooth_directions(grid)
        kernel = np.empty((count, count), np.float32)
        left, right = distance_factors(masks, parts)
        binding = self._steps.kernel.io_binding()
        binding.bind_ortvalue_input("right", _value(right))
        for begin in range(0, count, _BLOCK):  # a block stays in the processor's cache
            binding.bind_ortvalue_input("left", _value(left[begin : begin + _BLOCK]))
            binding.bind_ortvalue_output("kernel", _value(kernel[begin : begin + _BLOCK]))
            self._steps.kernel.run_with_iobinding(binding)
        area = masks.mean(axis=1)
        start: dict[str, NDArray[Any]] = {
            "kernel": kernel,
            "parts": parts,
            "area": area - area.mean(),
            "factor": np.zeros((1, count), np.float32),
            "inverse": np.zeros((1, 1)),
            "variance": np.ones(count, np.float32),
            "chosen": np.zeros(0, np.int64),
            "free": np.ones(count, np.float32),
            "importance": np.ones(count, np.float32),
            "direction": parts.sum(axis=0),
            "logs": np.zeros((count, 1), np.float32),
        }
        self._parts = parts
        self._state = {name: _value(value) for name, value in start.items()}
        self.chosen: list[int] = []

    def choose(self, count: int) -> NDArray[np.intp]:
        """Return the next `count` masks to score."""
        begin = len(self.chosen)
        self._run(self._steps.choose, _CHOSEN, "count", np.array([count]))
        self.chosen = self._state["chosen"].numpy().tolist()
        return np.array(self.chosen[begin:], np.intp)

    def predict(self, scores: Floats) -> list[Prediction]:
        """Return the weights of all masks for every target, from the scores [n,T] of the chosen ones so far."""
        (amplitudes,) = self._run(self._steps.predict, _PREDICTED, "scores", scores, "amplitudes")
        logs = self._state["logs"].numpy()
        return [Prediction(column, float(s2)) for column, s2 in zip(logs.T, amplitudes.numpy()[0], strict=True)]

    def expected_error(self, prediction: Prediction) -> float:
        """Return the expected 1 - r of the map at the layer's size against the exact one, to first order."""
        factor = self._state["factor"].numpy()
        return expected_error(prediction, self._parts, self._basis, self._times, factor, self.chosen)

    def _times(self, columns: Floats) -> Floats:
        feeds = {"kernel": self._state["kernel"], "columns": _value(columns)}
        product: Floats = self._steps.times.run_with_ort_values(["product"], feeds)[0].numpy()
        return product

    def _run(
        self, step: ort.InferenceSession, changed: tuple[str, ...], name: str, value: NDArray[Any], *more: str
    ) -> list[Any]:
        """Let a step change the state; return what else it gives."""
        results = step.run_with_ort_values(
            [*(_new(key) for key in changed), *more], self._state | {name: _value(value)}
        )
        self._state.update(zip(changed, results[: len(changed)], strict=True))
        return list(results[len(changed) :])


@lru_cache(8)
def _steps(grid: tuple[int, int]) -> _Steps:
    """Return the sessions of all photos whose masks have so many rows and columns; one thread each."""
    graph = Builder()
    left, right = graph.input("left", np.float32, ["b", "Q"]), graph.input("right", np.float32, ["Q", "D"])
    graph.output(budget.write_matern(graph, left @ right), "kernel", ["b", "D"])
    kernel = _session(graph)

    graph = Builder()
    state = _write_state(graph)
    _write_changes(graph, budget.write_choice(graph, state, graph.input("count", np.int64, [1]), grid), _CHOSEN)
    choose = _session(graph)

    graph = Builder()
    state = _write_state(graph)
    state, amplitudes = budget.write_prediction(graph, state, graph.input("scores", np.float32, ["n", "T"]))
    _write_changes(graph, state, _PREDICTED)
    graph.output(amplitudes, "amplitudes", [1, "T"])
    predict = _session(graph)

    graph = Builder()
    left, right = graph.input("kernel", np.float32, ["D", "D"]), graph.input("columns", np.float32, ["D", "R"])
    graph.output(left @ right, "product", ["D", "R"])
    return _Steps(kernel, choose, predict, _session(graph))


def _write_state(graph: Builder) -> budget.Surrogate:
    fields = zip(budget.Surrogate._fields, budget.RANKS, strict=True)
    return budget.Surrogate(*(graph.input(name, _TYPES.get(name, np.float32), [None] * rank) for name, rank in fields))


def _write_changes(graph: Builder, state: budget.Surrogate, names: tuple[str, ...]) -> None:
    ranks = dict(zip(budget.Surrogate._fields, budget.RANKS, strict=True))
    for name in names:
        graph.output(getattr(state, name), _new(name), [None] * ranks[name])


def _session(graph: Builder) -> ort.InferenceSession:
    proto = helper.make_model(
        graph.to_proto("surrogate"), opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    return create_session(proto, CPU, "the surrogate", Path(), make_options(1))  # photos are what runs side by side


def _new(name: str) -> str:
    return f"new_{name}"


def _value(array: NDArray[Any]) -> Any:
    """Return the array as ONNX Runtime's, in the same memory where it is contiguous."""
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cpu", 0)
