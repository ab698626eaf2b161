"""Cut out the tail of a model: the nodes that follow the target layer."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from ortcam.errors import LayerError
from ortcam.model.contract import ACTIVATIONS, Sequenced
from ortcam.model.protobuf import constant_of, read_by


def cut_tail(proto: onnx.ModelProto, layer: str, name: str, results: int = 1) -> None:
    """Remove all nodes but those between a layer and the scores, in place.

    No node makes the layer any more. The first outputs stay.

    Args:
        proto: the parsed file.
        layer: the output that holds the layer.
        name: the name of the layer in error messages.
        results: the number of outputs, at the front, that hold scores.

    Raises:
        LayerError: the scores depend on more than the layer.
    """
    graph = proto.graph
    kept = [one.name for one in graph.output[:results]]
    needed = _needed(graph, layer, kept)
    if layer not in needed:
        raise LayerError(
            f"the scores do not follow from layer {name!r}, which the file exposes as a converted copy; this "
            "method needs a float32 layer with channels: choose another layer (see: ortcam inspect), score-cam or rise"
        )
    if "image" in needed:
        _take_shape_from_layer(graph, layer)
        needed = _needed(graph, layer, kept)
    if "image" in needed:
        raise LayerError(
            f"the scores do not follow from layer {name!r} alone: another path leads around the layer; "
            "expected the output of a whole block: choose another layer (see: ortcam inspect)"
        )
    nodes = [node for node in graph.node if layer not in node.output and any(one in needed for one in node.output)]
    read = {one for node in nodes for one in read_by(node)}
    weights = [one for one in graph.initializer if one.name in read]
    sparse = [one for one in graph.sparse_initializer if one.values.name in read]
    described = [one for one in graph.value_info if one.name in needed]
    for field, values in (
        ("node", nodes), ("initializer", weights), ("sparse_initializer", sparse), ("value_info", described),
        ("output", list(graph.output[:results])),
    ):  # fmt: skip
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)


def find_sequence(graph: onnx.GraphProto) -> Sequenced | None:
    """Return the tokens that the target layer is taken from; None if the layer is no copy of tokens.

    An export of a transformer exposes the patches of a sequence as rows and columns.
    """
    producers = {output: node for node in graph.node for output in node.output}
    reshape = producers.get(ACTIVATIONS)
    if reshape is None or reshape.op_type != "Reshape":
        return None
    shape = constant_of(graph, reshape.input[1])
    if shape is None or len(shape) != 4:
        return None
    value, first = reshape.input[0], 0
    node = producers.get(value)
    if node is not None and node.op_type == "Slice":
        begin = constant_of(graph, node.input[1])
        if begin is None:
            return None
        value, first = node.input[0], int(begin[0])
    needed = _needed(graph, ACTIVATIONS, [graph.output[0].name])
    if value not in needed or ACTIVATIONS in needed:
        return None
    return Sequenced(value, first, int(shape[1] * shape[2]))


def _take_shape_from_layer(graph: onnx.GraphProto, layer: str) -> None:
    """Take the batch from the layer where the image is read for its shape alone, as to expand a class token.

    A graph whose image has free sizes is left as it is.
    """
    image = next(value for value in graph.input if value.name == "image")
    shape = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    if not all(shape[1:]):
        return
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Shape" or node.domain or node.input[0] != "image":
            nodes.append(node)
            continue
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        axes = range(len(shape))[ends.get("start", 0) : ends.get("end")]
        sizes = [shape[axis] for axis in axes if axis]
        fixed = helper.make_tensor("sizes", onnx.TensorProto.INT64, [len(sizes)], sizes)
        batch, others = (f"ortcam.{node.output[0]}.{part}" for part in ("batch", "others"))
        nodes += [
            helper.make_node("Shape", [layer], [batch], start=0, end=int(0 in axes)),
            helper.make_node("Constant", [], [others], value=fixed),
            helper.make_node("Concat", [batch, others], list(node.output), axis=0),
        ]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _needed(graph: onnx.GraphProto, layer: str, results: Sequence[str]) -> dict[str, None]:
    """Return the scores and the values that they are computed from, up to the layer."""
    producers = {output: node for node in graph.node for output in node.output if output}
    seen, waiting = dict[str, None](), list(results)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen[value] = None
        if value != layer and value in producers:
            waiting.extend(name for name in read_by(producers[value]) if name)
    return seen
