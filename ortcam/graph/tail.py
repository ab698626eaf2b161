"""Cut out the tail of a model: the nodes that follow the target layer."""

from __future__ import annotations

import onnx

from ortcam.errors import LayerError

LAYER = "activations"  # the output that holds the layer


def cut_tail(proto: onnx.ModelProto, name: str) -> None:
    """Remove all nodes but those between the target layer and the scores, in place.

    No node makes the layer any more. The first output stays.

    Args:
        proto: the parsed file.
        name: the name in error messages.

    Raises:
        LayerError: the scores depend on more than the layer.
    """
    graph = proto.graph
    producers = {output: node for node in graph.node for output in node.output if output}
    needed = _needed(graph.output[0].name, producers)
    if LAYER not in needed:
        raise LayerError(
            f"the scores of {name} do not follow from its exposed target layer, which is a converted copy; this "
            "method needs a float32 layer with channels: choose another layer (see: ortcam inspect), or score-cam"
        )
    if "image" in needed:
        raise LayerError(
            f"the scores of {name} do not follow from its target layer alone: another path leads around the "
            "layer; expected the output of a whole block: choose another layer (see: ortcam inspect)"
        )
    nodes = [node for node in graph.node if LAYER not in node.output and any(one in needed for one in node.output)]
    read = {one for node in nodes for one in _read(node)}
    weights = [one for one in graph.initializer if one.name in read]
    sparse = [one for one in graph.sparse_initializer if one.values.name in read]
    described = [one for one in graph.value_info if one.name in needed]
    first = graph.output[0]
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(first)
    for field, values in (
        ("node", nodes), ("initializer", weights), ("sparse_initializer", sparse), ("value_info", described),
        ("output", [copy]),
    ):  # fmt: skip
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)


def _needed(name: str, producers: dict[str, onnx.NodeProto]) -> dict[str, None]:
    """Return a value and the values that it is computed from, up to the layer."""
    seen, waiting = dict[str, None](), [name]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen[value] = None
        if value != LAYER and value in producers:
            waiting.extend(_read(producers[value]))
    return seen


def _read(node: onnx.NodeProto) -> set[str]:
    """Return the values that a node and its subgraphs read."""
    read = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            own = {value.name for value in graph.input} | {one.name for one in graph.initializer}
            own |= {name for inner in graph.node for name in inner.output}
            read |= {name for inner in graph.node for name in _read(inner)} - own
    return read
