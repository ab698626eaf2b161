"""TaskAsking: what packed models of other tasks share; `ortcam.graph.packed_tasks` has the tasks.

The references are those of `ortcam.core.references`. They are found after the plain pass; then the nodes of
`ortcam.graph.tasks` score masked images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from ortcam.graph import names
from ortcam.graph.asking import Explained, Values
from ortcam.graph.builder import Builder, Dims, Value
from ortcam.graph.checks import check, is_wild
from ortcam.graph.packing import Packing
from ortcam.graph.photo import Side, photo_span
from ortcam.graph.tails import leading_to
from ortcam.graph.tasks import write_task_scores
from ortcam.model.contract import Contract
from ortcam.model.protobuf import rename

_OURS = (
    "image", "target", "box", "like", "sign",
    "target_class", "target_box", "target_score", "saliency", "scored", "error",
)  # fmt: skip


class TaskAsking:
    """What the tasks share; a subclass writes the inputs and finds the references.

    Attributes:
        kept: the names of what is kept of the plain pass, beside the model's results.
        ranks: their ranks, and those of the results.
        dims: the dimensions of the results without the batch, in the file.
    """

    names = _OURS
    kept: tuple[str, ...] = ("targets", "references", "present", "target_class")
    dims: dict[str, Dims]

    def __init__(self, graph: Builder, contract: Contract, plan: Packing) -> None:
        self.graph, self.contract, self.plan = graph, contract, plan
        self.length, self.classes = plan.references
        self.size = plan.input_size(contract.image_layout)
        own = {"targets": 1, "references": 3, "present": 1, "reference_classes": 3, "target_class": 1, "target_box": 2}
        self.ranks = {name: own[name] for name in self.kept} | {role: len(dims) for role, dims in self.dims.items()}

    def write_inputs(self) -> None:
        raise NotImplementedError

    def refer(self, results: Values, fault: Value) -> dict[str, Value]:
        """Find the targets in the results of the photo, without the batch; `fault` is a checked 0, int64 [1].

        Returns:
            ``references`` [R,T], ``reference_classes`` [C,T] if references have classes, ``present`` float32 [T], 1 or
            0, and the targets' outputs. A target that is not present or invalid has a reference all the same.
        """
        raise NotImplementedError

    def write_target(self) -> Value:
        """Write the input `target` int64 [T], and its default."""
        target = self.graph.input("target", np.int64, ["target_classes"])
        if self.plan.target is not None:
            self.graph.default("target", np.array([self.plan.target], np.int64))
        return target

    def repeat(self, *inputs: Value) -> list[Value]:
        """Return inputs [T,...] of the same length: one that has a single row is repeated. They are checked."""
        graph = self.graph
        sizes = [graph.size(one, 0) for one in inputs]
        count, least = sizes[0], sizes[0]
        for size in sizes[1:]:
            count, least = graph.maximum(count, size), graph.minimum(least, size)
        wrong = graph.equal(least, 0)
        for size in sizes:
            wrong = wrong | ~(graph.equal(size, count) | graph.equal(size, 1))
        fault = check(graph, wrong, "the inputs of the targets are empty, or have different lengths")
        self._count = count + fault
        trailing = [graph.op("Shape", one, start=1) for one in inputs]
        return [
            graph.op("Expand", one, graph.shape(self._count, rest)) for one, rest in zip(inputs, trailing, strict=True)
        ]

    def locate(self, sides: tuple[Side, Side] | None) -> None:
        """Write `Crop`: the offset and scale of the input in the photo, and the part of the photo that it shows."""
        graph = self.graph
        height, width = self.size
        if sides is None:
            self._offset, self._scale = (graph.constant(np.full(4, value), np.float64) for value in (0.0, 1.0))
            self._seen = graph.constant(np.array([0, 0, width, height]), np.float64)
            return
        known = self.contract.preprocessing
        assert known is not None
        spans, edges = [], []
        for side, size in zip(sides, self.size, strict=True):
            if known.fit == "letterbox":
                length = graph.cast(side.length, np.float64)
                begin = graph.cast(side.begin, np.float64)
                per_pixel = length / graph.cast(side.full, np.float64)
                spans.append((begin * per_pixel, (begin + float(size)) * per_pixel))
                edges.append((length * 0.0, length))
            else:
                first, last = photo_span(graph, side, size)
                spans.append((graph.cast(first, np.float64), graph.cast(last, np.float64)))
                edges.append(spans[-1])
        (top, bottom), (left, right) = spans
        scale = [(right - left) / float(width), (bottom - top) / float(height)]
        self._offset, self._scale = graph.concat([left, top] * 2, 0), graph.concat(scale * 2, 0)
        (top, bottom), (left, right) = edges
        self._seen = graph.concat([left, top, right, bottom], 0)

    def to_photo(self, boxes: Value) -> Value:
        """Boxes of the input float32 [n,4] -> of the photo, float64: `Crop.to_photo`."""
        return self.graph.cast(boxes, np.float64) * self._scale + self._offset

    def to_input(self, boxes: Value) -> Value:
        """Boxes of the photo [n,4] -> of the input, float32: `Crop.to_input`."""
        graph = self.graph
        return graph.cast((graph.cast(boxes, np.float64) - self._offset) / self._scale, np.float32)

    def sides(self, boxes: Value) -> list[Value]:
        """Return left, top, right and bottom of boxes [n,4], [n] each."""
        return [self.graph.reshape(self.graph.slice(boxes, at, at + 1, -1), -1) for at in range(4)]

    def count(self) -> Value:
        return self._count

    def begin(self, one: Value) -> dict[str, Value]:
        graph, count = self.graph, self._count
        shapes = {
            "targets": (count,), "references": (one, self.length, count), "present": (count,),
            "reference_classes": (one, self.classes, count), "target_class": (count,), "target_box": (count, 4),
        }  # fmt: skip
        kinds = {"targets": np.int64, "target_class": np.int64}
        made = {name: graph.full(graph.shape(*shapes[name]), 0, kinds.get(name, np.float32)) for name in self.kept}
        return made | {
            role: graph.full(graph.shape(*[one] * len(dims)), 0, np.float32) for role, dims in self.dims.items()
        }

    def find(self, results: Values, layer: Value) -> dict[str, Value]:
        graph = self.graph
        wild = is_wild(graph, layer)
        for result in results.values():
            wild = wild | is_wild(graph, result)
        fault = check(graph, wild, "the model returns NaN or infinite values for this image")
        batch = graph.constant([0], np.int64)
        plain = {role: graph.op("Squeeze", results[role], batch) for role in self.dims}
        found = self.refer(plain, fault)
        found["targets"] = graph.arange(self._count)
        # A target that is not present takes the reference of another one, so that it has no say in the choice of masks.
        first = graph.op("ArgMax", found["present"], axis=0, keepdims=1)
        taken = graph.where(found["present"] > 0.0, found["targets"], first)
        for name in ("references", "reference_classes"):
            if name in found:
                found[name] = graph.expand_dims(graph.gather(found[name], taken, 1), 0)
        return {name: found[name] for name in self.kept} | plain

    def keep(self, results: Values, found: Values) -> dict[str, Value]:
        return dict(found)

    def feeds(self, kept: Values) -> dict[str, Value]:
        feeds = {names.REFERENCES: kept["references"]}
        return feeds | ({names.REFERENCE_CLASSES: kept["reference_classes"]} if "reference_classes" in kept else {})

    def logits(self, results: Values, found: Values) -> Value:
        """Write the scores of the targets in the photo, [1,T], once more beside those of masked images."""
        graph, prefix = self.graph, self.graph.unused("plain") + "."
        roles = self.contract.outputs
        feeds = {roles[role]: graph.expand_dims(found[role], 0) for role in self.dims}
        feeds |= {**self.feeds(found), names.PHOTO_INDEX: graph.constant([0])}
        for name, value in feeds.items():
            graph.named(value, prefix + name)
        body = onnx.GraphProto()
        body.node.extend(leading_to({names.LOGITS}, write_task_scores(self.contract)))
        for node in body.node:
            node.name = prefix + node.name if node.name else ""
        made = {name for node in body.node for name in node.output}
        rename(body, {name: prefix + name for name in (*feeds, *made)})
        graph.embed(body.node, (), ())
        return graph.refer(prefix + names.LOGITS, np.float32)

    def write_outputs(self, made: Explained, place: Callable[[Value], Value], size: Dims) -> None:
        graph, kept = self.graph, made.kept
        score = graph.reshape(self.logits({}, kept), -1) * kept["present"]
        saliency = place(made.maps * graph.reshape(kept["present"], -1, 1, 1))
        for role, dims in self.dims.items():
            value = graph.cast(self.to_photo(kept[role]), np.float32) if role == "boxes" else kept[role]
            graph.output(value, role, dims)
        if "target_class" in kept:
            graph.output(kept["target_class"], "target_class", ["targets"])
        if "target_box" in kept:
            graph.output(kept["target_box"], "target_box", ["targets", 4])
        graph.output(score, "target_score", ["targets"])
        graph.output(saliency, "saliency", ["targets", *size])
        graph.output(made.scored, "scored", [1])
        error = graph.where(graph.expand_dims(kept["present"], 1) > 0.0, made.error, np.nan)
        graph.output(error, "error", ["targets", 3])

    def one_hot(self, indices: Value, depth: int) -> Value:
        """int64 [T] -> float32 [depth,T]."""
        graph = self.graph
        return graph.op("OneHot", indices, graph.constant([depth]), graph.constant([0.0, 1.0]), axis=0)

    def as_number(self, condition: Value) -> Value:
        return self.graph.cast(condition, np.float32)
