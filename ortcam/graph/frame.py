"""Write what all explainer graphs share: inputs, outputs, preprocessing, targets and checks.

image, target -> the model's scores, target, saliency, scored, error
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ortcam.graph.builder import Builder, Value
from ortcam.graph.packing import Packing
from ortcam.graph.photo import photo_sides, write_placing, write_preprocessing
from ortcam.model.contract import Contract

INNER = "ortcam.inner."  # prefix of the model's values whose names the explainer uses itself
OURS = ("image", "target", "target_class", "saliency", "scored", "error")


@dataclass(frozen=True)
class Explained:
    """The results of an explainer for one photo.

    Attributes:
        output: float32 [N], the model's own output; for a single score [2], its negation first.
        targets: int64 [T], the classes; 0 for an invalid target.
        maps: float32 [T,h_in,w_in] in [0,1], at the size of the model's input.
        scored: int64 [1], the number of changed inputs that were run.
        error: float32 [T,3], the estimated errors; NaN where they are unknown.
    """

    output: Value
    targets: Value
    maps: Value
    scored: Value
    error: Value


class Frame:
    """Writes an explainer graph; a subclass writes the method."""

    def __init__(self, graph: Builder, contract: Contract, plan: Packing, single: bool) -> None:
        """Begin a graph.

        Args:
            graph: the empty graph.
            contract: the contract of the model.
            plan: the options of the explainer.
            single: the model has a single score, and so two classes.
        """
        self.graph, self.contract, self.plan, self.single = graph, contract, plan, single
        self.size = plan.input_size(contract.image_layout)

    def explain(self, image: Value, target: Value) -> Explained:
        """Write the method: the model's input [1,C,H,W] or [1,H,W,C], and target int64 [T] -> the results."""
        raise NotImplementedError

    def write(self, name: str) -> None:
        """Write the whole graph; `name` is the output of the model's scores."""
        graph, plan = self.graph, self.plan
        if plan.raw:
            photo = graph.input("image", np.uint8, ["height", "width", 3])
        else:
            photo = graph.input("image", np.float32, [1, *plan.input_shape])
        target = graph.input("target", np.int64, ["targets"])
        if plan.target is not None:
            graph.default("target", np.array([plan.target], np.int64))
        image, place = self._write_raw(photo) if plan.raw else self._write_tensor(photo)
        made = self.explain(image, target)
        valid = self._is_valid(target, graph.size(made.output, 0))
        saliency = place(made.maps * graph.reshape(graph.cast(valid, np.float32), -1, 1, 1))
        size = ["height", "width"] if plan.raw else self.size
        graph.output(made.output, name, ["classes"])
        # Inputs and outputs have one namespace, so it is not called `target` again.
        graph.output(graph.where(valid, made.targets, target), "target_class", ["targets"])
        graph.output(saliency, "saliency", ["targets", *size])
        graph.output(made.scored, "scored", [1])
        graph.output(made.error, "error", ["targets", 3])

    def _write_raw(self, photo: Value) -> tuple[Value, Callable[[Value], Value]]:
        graph, known = self.graph, self.contract.preprocessing
        assert known is not None
        pixels = graph.size(photo, 0) * graph.size(photo, 1)
        fault = self.check(graph.equal(pixels, 0), "the image has no pixels; expected uint8 [height,width,3]")
        rows, columns = photo_sides(graph, photo, known, fault)
        image = write_preprocessing(graph, photo, rows, columns, known, self.contract.image_layout)
        return image, lambda maps: write_placing(graph, maps, rows, columns, known)

    def _write_tensor(self, image: Value) -> tuple[Value, Callable[[Value], Value]]:
        fault = self.check(self.is_wild(image), "the image has NaN or infinite values; expected finite numbers")
        return image + self.graph.cast(fault, np.float32), lambda maps: maps

    def write_targets(self, logits: Value, layer: Value, target: Value) -> Value:
        """logits [1,N] and the layer of the plain pass, target int64 [T] -> the classes int64 [T], after all checks."""
        graph = self.graph
        wild = self.is_wild(logits) | self.is_wild(layer)
        fault = self.check(wild, "the model returns NaN or infinite values for this image")
        valid = self._is_valid(target, graph.size(logits, 1))
        none = graph.equal(graph.size(target, 0), 0)
        wrong = none | graph.cast(graph.reduce("Max", graph.concat([
            graph.cast(~valid, np.int64), graph.constant([0])], 0), keep=True), np.bool_)  # fmt: skip
        fault = fault + self.check(wrong, "target is out of range; expected class indices from 0, or -1: the top class")
        top = graph.reshape(graph.op("ArgMax", logits, axis=1, keepdims=1), 1)
        return graph.where(graph.equal(target, -1), top, graph.where(valid, target, 0)) + fault

    def checked(self, scores: Value, what: str = "a masked image") -> Value:
        """Return scores [n,T] of changed inputs, `what` in the message, after a check; once for each `what`."""
        fault = self.check(self.is_wild(scores), f"the model returns NaN or infinite values for {what}")
        return scores + self.graph.cast(fault, np.float32)

    def write_both_sides(self, output: Value, logits: Value) -> Value:
        """output [b,1] and its logits [b,2] -> [b,2]: the model's output for each of its two classes."""
        graph, contract = self.graph, self.contract
        factor, offset = contract.output_scale or (1.0, 0.0)
        if contract.output == "log_probabilities":
            return graph.op("Softplus", -logits) * -factor + offset
        both = output * np.array([[-1.0, 1.0]], np.float32)
        ends = 2 * offset if contract.output == "logits" else factor + 2 * offset  # the sum of the two sides
        return both + np.array([[ends, 0.0]], np.float32)

    def _is_valid(self, target: Value, classes: Value) -> Value:
        return (target >= -1) & (classes > target)

    def is_wild(self, value: Value) -> Value:
        """Whether a tensor has NaN or infinite values, bool [1]."""
        graph = self.graph
        wild = graph.op("IsNaN", value) | graph.op("IsInf", value)
        flat = graph.concat([graph.reshape(graph.cast(wild, np.int32), -1), graph.constant(np.zeros(1, np.int32))], 0)
        return graph.cast(graph.reduce("Max", flat, 0, keep=True), np.bool_)

    def check(self, wrong: Value, message: str) -> Value:
        """Fail if `wrong`, bool [1], is true: ONNX has no errors, so an index of a named node goes out of bounds.

        Returns:
            int64 [1], 0. Add it to values that must be computed after the check.
        """
        graph = self.graph
        return graph.gather(graph.constant([0]), graph.cast(wrong, np.int64), name=f"ortcam: {message}")
