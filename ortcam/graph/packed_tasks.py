"""The targets of packed models of other tasks: their inputs, the references of the photo, and their outputs.

| task | inputs beside the image | outputs beside the maps |
|---|---|---|
| detect | `target` int64 [T], `box` float32 [T,4] | `boxes` [N,4], `scores` [N,C], `target_class`, `target_box` [T,4] |
| segment | `target` int64 [T] | `mask` [C,h,w], `target_class` [T] |
| embed | `like` float32 [T,D] | `embedding` [D] |
| value | `target` int64 [T], `sign` float32 [T] | `values` [N], `target_class` [T] |

All return `target_score` [T] too, the score of each target in the unmasked photo. The references are those of
`ortcam.core.references`. They are found after the plain pass; then the nodes of `ortcam.graph.tasks` score masked
images. A target that the photo does not have gets a map of zeros, and an unknown error.
"""

from __future__ import annotations

import numpy as np

from ortcam.core.convention import TINY
from ortcam.core.regions import BACKGROUND, CERTAIN
from ortcam.graph.asking import Values
from ortcam.graph.builder import Builder, Value
from ortcam.graph.checks import check, is_any
from ortcam.graph.packing import Packing
from ortcam.graph.photo import Side
from ortcam.graph.task_asking import TaskAsking
from ortcam.model.contract import Contract, Task

_LARGEST = 1e9  # the largest coordinate of a box, which infinite ones exceed


class Boxes(TaskAsking):
    """A box of zeros stands for the model's own surest box of the class; the class -1 with it, of all classes."""

    kept = ("targets", "references", "present", "reference_classes", "target_class", "target_box")

    def __init__(self, graph: Builder, contract: Contract, plan: Packing) -> None:
        self.dims = {"boxes": ["boxes", 4], "scores": ["boxes", plan.references[1]]}
        super().__init__(graph, contract, plan)

    def write_inputs(self) -> None:
        graph, target = self.graph, self.write_target()
        box = graph.input("box", np.float32, ["target_boxes", 4])
        if self.plan.target is not None:
            graph.default("box", np.zeros((1, 4), np.float32))
        self._target, self._box = self.repeat(target, box)

    def refer(self, results: Values, fault: Value) -> dict[str, Value]:
        graph, target, box = self.graph, self._target + fault, self._box
        boxes, scores = results["boxes"], results["scores"]
        zeros = graph.equal(graph.reduce("Max", graph.op("Abs", box), 1), 0.0)
        known, valid = self._check(target, box, zeros)
        target = graph.where(known, target, 0)
        any_class = graph.equal(target, -1)
        row, has_box = self._surest(boxes, scores, target, any_class)
        best = graph.op("ArgMax", scores, axis=1, keepdims=0)  # [N]
        index = graph.where(any_class, graph.gather(best, row), target)
        if self.classes == 1:
            index = index * 0
        own = graph.gather(boxes, row)  # [T,4]
        is_own = graph.expand_dims(zeros, 1)
        present = valid & (~zeros | has_box)
        references = graph.where(is_own, own, self.to_input(box))
        found = graph.cast(self.to_photo(own), np.float32) * graph.expand_dims(self.as_number(present), 1)
        return {
            "references": references.T,
            "reference_classes": self.one_hot(index, self.classes),
            "present": self.as_number(present),
            "target_class": graph.where(present, index, self._target),
            "target_box": graph.where(is_own, found, box),
        }

    def _check(self, target: Value, box: Value, zeros: Value) -> tuple[Value, Value]:
        """Check the targets; return which classes are known, and which targets are valid, bool [T] each."""
        graph = self.graph
        known = (target >= -1) & (graph.constant(self.classes, np.int64) > target)
        left, top, right, bottom = self.sides(box)
        sized = (right > left) & (bottom > top)  # false for NaN
        sized = sized & (graph.constant(_LARGEST) > graph.reduce("Max", graph.op("Abs", box), 1))
        shown = self._is_seen(graph.cast(box, np.float64))
        fault = check(
            graph,
            is_any(graph, ~known),
            "target is out of range; expected class indices from 0, or -1: the surest box",
        )
        fault = fault + check(
            graph,
            is_any(graph, ~(zeros | sized)),
            "box is empty, inverted or NaN; expected left < right and top < bottom, or zeros: the surest box",
        )
        fault = fault + check(
            graph, is_any(graph, ~zeros & sized & ~shown), "box lies outside the part of the photo that the model sees"
        )
        named = zeros | (target >= 0)
        if self.classes > 1:
            fault = fault + check(
                graph, is_any(graph, ~named), "box has no class; expected its class as target, not -1"
            )
        else:
            named = zeros | ~zeros
        return known, graph.equal(graph.cast(known & named & (zeros | (sized & shown)), np.int64) + fault, 1)

    def _is_seen(self, boxes: Value) -> Value:
        """Whether boxes of the photo, float64 [n,4], overlap the part that the model sees, bool [n]."""
        graph = self.graph
        left, top, right, bottom = self.sides(boxes)
        first_x, first_y, last_x, last_y = (graph.slice(self._seen, at, at + 1, 0) for at in range(4))
        return (last_x > left) & (right > first_x) & (last_y > top) & (bottom > first_y)

    def _surest(self, boxes: Value, scores: Value, target: Value, any_class: Value) -> tuple[Value, Value]:
        """Return the row of the surest box of each target, int64 [T], and whether there is one.

        Like a detection, it is a row whose best class is the target's; if there is none, any row counts. No threshold
        applies. It differs from the surest detection only if a surer box of its class lies in the padding over it.
        """
        graph = self.graph
        left, top, right, bottom = self.sides(boxes)
        good = (right > left) & (bottom > top) & self._is_seen(self.to_photo(boxes))  # [N]
        good = graph.expand_dims(good, 0)
        best = graph.expand_dims(graph.op("ArgMax", scores, axis=1, keepdims=0), 0)
        anything, column = graph.expand_dims(any_class, 1), graph.expand_dims(target, 1)
        of_class = graph.gather(scores.T, graph.maximum(target, 0))  # [T,N]
        sure = graph.where(anything, graph.expand_dims(graph.reduce("Max", scores, 1), 0), of_class)
        fits = good & (anything | graph.equal(best, column))
        fitting = graph.where(fits, sure, -1.0)
        some = graph.reduce("Max", fitting, 1, keep=True) >= 0.0
        chosen = graph.where(some, fitting, graph.where(good, sure, -1.0))
        return graph.op("ArgMax", chosen, axis=1, keepdims=0), graph.reduce("Max", chosen, 1) >= 0.0


class Regions(TaskAsking):
    """The region of a class is where the model sees it; the class -1 stands for the largest, without the background."""

    kept = ("targets", "references", "present", "reference_classes", "target_class")

    def __init__(self, graph: Builder, contract: Contract, plan: Packing) -> None:
        self.dims = {"mask": [plan.references[1], *plan.cells]}
        super().__init__(graph, contract, plan)

    def write_inputs(self) -> None:
        (self._target,) = self.repeat(self.write_target())

    def locate(self, sides: tuple[Side, Side] | None) -> None:
        super().locate(sides)
        graph = self.graph
        (rows, columns), (height, width) = self.plan.cells, self.size
        middles = np.zeros((max(rows, columns), 4))
        middles[:columns, 0] = (np.arange(columns) + 0.5) * width / columns
        middles[:rows, 1] = (np.arange(rows) + 0.5) * height / rows
        x, y, _, _ = self.sides(graph.constant(middles, np.float64) * self._scale + self._offset)
        left, top, right, bottom = (graph.slice(self._seen, at, at + 1, 0) for at in range(4))
        across = graph.slice((x >= left) & (right > x), 0, columns, 0)
        down = graph.slice((y >= top) & (bottom > y), 0, rows, 0)
        self._inside = graph.reshape(graph.expand_dims(down, 1) & across, 1, -1)  # [1,hw]

    def refer(self, results: Values, fault: Value) -> dict[str, Value]:
        graph, target = self.graph, self._target + fault
        known = (target >= -1) & (graph.constant(self.classes, np.int64) > target)
        said = "target is out of range; expected class indices from 0, or -1: the largest region"
        target = graph.where(known, target, 0) + check(graph, is_any(graph, ~known), said)
        flat = graph.reshape(results["mask"], self.classes, -1)
        if self.classes > 1:
            seen = graph.op("ArgMax", flat, axis=0, keepdims=1)  # [1,hw]
            of_class = graph.equal(seen, graph.constant(np.arange(self.classes)[:, None]))
        else:
            of_class = flat >= CERTAIN
        regions = self.as_number(of_class & self._inside)  # [C,hw]
        sizes = graph.reduce("Sum", regions, 1)
        labels = self.contract.labels or ()
        counted = np.array([at >= len(labels) or labels[at].lower() not in BACKGROUND for at in range(self.classes)])
        offered = sizes * counted.astype(np.float32)
        largest = graph.op("ArgMax", offered, axis=0, keepdims=1)  # [1]
        anything = graph.equal(target, -1)
        index = graph.where(anything, largest, target)
        size = graph.where(anything, graph.reduce("Max", offered), graph.gather(sizes, index))
        present = known & (size > 0.0)
        regions = graph.gather(regions, index) / graph.expand_dims(graph.maximum(size, 1.0), 1)
        return {
            "references": regions.T,
            "reference_classes": self.one_hot(index, self.classes),
            "present": self.as_number(present),
            "target_class": graph.where(present, index, self._target),
        }


class Similarities(TaskAsking):
    """The reference is an embedding, of any length but zero."""

    kept = ("targets", "references", "present")

    def __init__(self, graph: Builder, contract: Contract, plan: Packing) -> None:
        self.dims = {"embedding": [plan.references[0]]}
        super().__init__(graph, contract, plan)

    def write_inputs(self) -> None:
        (self._like,) = self.repeat(self.graph.input("like", np.float32, ["targets", self.length]))

    def refer(self, results: Values, fault: Value) -> dict[str, Value]:
        graph = self.graph
        like = graph.cast(self._like + graph.cast(fault, np.float32), np.float64)
        length = graph.op("Sqrt", graph.reduce("Sum", like * like, 1, keep=True))
        usable = (length >= float(TINY)) & (graph.constant(np.array(np.inf), np.float64) > length)  # false for NaN
        said = "like is a vector of zeros, or not finite; expected an embedding that has a direction"
        fault = check(graph, is_any(graph, graph.reshape(~usable, -1)), said)
        own = graph.reduce("Max", graph.op("Abs", results["embedding"])) >= float(TINY)
        unit = graph.where(usable, like, 0.0) / graph.where(usable, length, 1.0)
        present = self.as_number(graph.reshape(usable, -1) & own) + graph.cast(fault, np.float32)
        return {"references": graph.cast(unit, np.float32).T, "present": present}


class Numbers(TaskAsking):
    """A value is explained upwards (sign 1) or downwards (-1)."""

    def __init__(self, graph: Builder, contract: Contract, plan: Packing) -> None:
        self.dims = {"values": [plan.references[0]]}
        super().__init__(graph, contract, plan)

    def write_inputs(self) -> None:
        graph, target = self.graph, self.write_target()
        sign = graph.input("sign", np.float32, ["target_signs"])
        if self.plan.target is not None:
            graph.default("sign", np.ones(1, np.float32))
        self._target, self._sign = self.repeat(target, sign)

    def refer(self, results: Values, fault: Value) -> dict[str, Value]:
        graph, target, sign = self.graph, self._target + fault, self._sign
        known = (target >= 0) & (graph.constant(self.length, np.int64) > target)
        said = f"target is out of range; expected numbers of values, 0 to {self.length - 1}"
        fault = check(graph, is_any(graph, ~known), said)
        signed = graph.equal(graph.op("Abs", sign), 1.0)
        fault = fault + check(graph, is_any(graph, ~signed), "sign is neither 1 nor -1; expected one of them")
        valid = known & signed
        factors = graph.where(valid, sign, 0.0)
        references = self.one_hot(graph.where(known, target, 0) + fault, self.length) * factors
        return {"references": references, "present": self.as_number(valid), "target_class": self._target}


ASKING: dict[Task, type[TaskAsking]] = {
    "detect": Boxes,
    "segment": Regions,
    "embed": Similarities,
    "value": Numbers,
}
