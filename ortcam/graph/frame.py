"""Write what all explainer graphs share: inputs, outputs and preprocessing.

image, targets -> the model's results, targets, saliency, scored, error
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ortcam.graph.asking import Asking, Explained
from ortcam.graph.builder import Builder, Value
from ortcam.graph.checks import check, is_wild
from ortcam.graph.packing import Packing
from ortcam.graph.photo import photo_sides, write_placing, write_preprocessing
from ortcam.model.contract import Contract

INNER = "ortcam.inner."  # prefix of the model's values whose names the explainer uses itself


class Frame:
    """Writes an explainer graph; a subclass writes the method."""

    def __init__(self, graph: Builder, contract: Contract, plan: Packing, asking: Asking, single: bool) -> None:
        """Begin a graph.

        Args:
            graph: the empty graph.
            contract: the contract of the model.
            plan: the options of the explainer.
            asking: the targets.
            single: the model has a single score, and so two classes.
        """
        self.graph, self.contract, self.plan, self.asking, self.single = graph, contract, plan, asking, single
        self.size = plan.input_size(contract.image_layout)

    def explain(self, image: Value) -> Explained:
        """Write the method: the model's input [1,C,H,W] or [1,H,W,C] -> the results."""
        raise NotImplementedError

    def write(self) -> None:
        """Write the whole graph."""
        graph, plan = self.graph, self.plan
        if plan.raw:
            photo = graph.input("image", np.uint8, ["height", "width", 3])
        else:
            photo = graph.input("image", np.float32, [1, *plan.input_shape])
        self.asking.write_inputs()
        image, place = self._write_raw(photo) if plan.raw else self._write_tensor(photo)
        self.asking.write_outputs(self.explain(image), place, ["height", "width"] if plan.raw else self.size)

    def _write_raw(self, photo: Value) -> tuple[Value, Callable[[Value], Value]]:
        graph, known = self.graph, self.contract.preprocessing
        assert known is not None
        pixels = graph.size(photo, 0) * graph.size(photo, 1)
        fault = check(graph, graph.equal(pixels, 0), "the image has no pixels; expected uint8 [height,width,3]")
        rows, columns = photo_sides(graph, photo, known, fault)
        self.asking.locate((rows, columns))
        image = write_preprocessing(graph, photo, rows, columns, known, self.contract.image_layout)
        return image, lambda maps: write_placing(graph, maps, rows, columns, known)

    def _write_tensor(self, image: Value) -> tuple[Value, Callable[[Value], Value]]:
        wild = is_wild(self.graph, image)
        fault = check(self.graph, wild, "the image has NaN or infinite values; expected finite numbers")
        self.asking.locate(None)
        return image + self.graph.cast(fault, np.float32), lambda maps: maps

    def checked(self, scores: Value, what: str = "a masked image") -> Value:
        """Return scores [n,T] of changed inputs, `what` in the message, after a check; once for each `what`."""
        fault = check(self.graph, is_wild(self.graph, scores), f"the model returns NaN or infinite values for {what}")
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
