"""Find the boxes and scores that a graph has before it suppresses or sorts its detections."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from ortcam.exporters.tasks.options import BoxFormat

# Nodes that keep the scores of all boxes, and only arrange or reduce them for a TopK.
_ARRANGING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "ReduceMax", "Transpose"}
_FILTERING = {"NonZero", "TopK", "Compress", "NonMaxSuppression"}
_PICKING = {"Gather", "GatherElements", "GatherND"}


@dataclass(frozen=True)
class Cut:
    """Boxes and scores before a node at the graph's top level.

    Attributes:
        kind: the node's operator, ``NonMaxSuppression`` or ``TopK``.
        boxes, scores: the tensors' names; several candidates for a TopK's boxes, which are those of rank 3.
        box_format: how the corners stand; None if the graph does not say.
    """

    kind: str
    boxes: tuple[str, ...]
    scores: tuple[str, ...]
    box_format: BoxFormat | None = None


def find_cut(proto: onnx.ModelProto) -> Cut | None:
    """Return where the detections of a graph begin to be suppressed; None without such a node at the top level."""
    graph = proto.graph
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "NonMaxSuppression" and not depends_on_values(proto, node.input[0]):
            centred = any(attribute.name == "center_point_box" and attribute.i for attribute in node.attribute)
            # ONNX allows any two opposite corners, so the graph does not say whether x or y comes first.
            form: BoxFormat = "cxcywh" if centred else "xyxy" if "torch" in proto.producer_name.lower() else "yxyx"
            return Cut("NonMaxSuppression", (node.input[0],), (node.input[1],), form)
    for node in graph.node:
        if node.op_type == "TopK":
            scores = _arranged(node.input[0], makers)
            picked = [
                user.input[0] for user in graph.node
                if user.op_type in _PICKING and user.input[0] in makers and user.input[0] not in scores
            ]  # fmt: skip
            if picked and not depends_on_values(proto, scores[-1]):
                return Cut("TopK", tuple(dict.fromkeys(picked)), tuple(scores))
    return None


def _arranged(name: str, makers: dict[str, onnx.NodeProto]) -> list[str]:
    """Return a tensor and those of which it is only an arrangement, the nearest first."""
    names = [name]
    while (node := makers.get(names[-1])) is not None and node.op_type in _ARRANGING and node.input[0] in makers:
        names.append(node.input[0])
    return names


def depends_on_values(proto: onnx.ModelProto, name: str) -> bool:
    """Return whether the number of a tensor's rows depends on the image: detections were filtered or sorted before."""
    makers = {output: node for node in proto.graph.node for output in node.output}
    waiting, seen = [name], set[str]()
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        if node.op_type in _FILTERING:
            return True
        waiting.extend(node.input)
    return False


def has_suppression_inside(proto: onnx.ModelProto) -> bool:
    """Return whether a subgraph of an If or a Loop suppresses detections."""
    waiting = [inner for node in proto.graph.node for attribute in node.attribute for inner in (attribute.g,)]
    while waiting:
        graph = waiting.pop()
        for node in graph.node:
            if node.op_type == "NonMaxSuppression":
                return True
            waiting.extend(attribute.g for attribute in node.attribute)
    return False
