"""Remove outputs that are not tensors of numbers (maps, sequences, class names), and the nodes that only they need.

Converters of classical models, and services, put a label and a map from label to probability behind the scores. Neither
the opset's converter nor the engine supports these outputs; the scores come before them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

# Nodes that only move the index or the name of a class.
_PASSING = {"Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
# Nodes that turn the index of a class into its name.
_LOOK_UPS = {"LabelEncoder", "ArrayFeatureExtractor", "Gather"}


def unwrap_outputs(proto: onnx.ModelProto) -> tuple[str, ...] | None:
    """Replace maps, sequences and optionals among the outputs by the tensors in them, in place; drop names of classes.

    Returns:
        The class names by index that the graph puts into maps or returns as labels; None if it has none.
    """
    graph = proto.graph
    producers = {name: node for node in graph.node for name in node.output}
    labels = _find_labels(graph, producers)
    kept: list[onnx.ValueInfoProto] = []
    for output in graph.output:
        for name in _find_tensors(output.name, producers):
            if name == output.name and _is_number(output):
                kept.append(output)
            elif name != output.name and all(name != other.name for other in (*graph.output, *kept)):
                kept.append(onnx.ValueInfoProto(name=name))
    if not any(map(_is_float, kept)):  # only labels: find the scores that they rank
        kept = [onnx.ValueInfoProto(name=name) for name in _find_scores(graph, producers)] or kept
    if kept and [output.name for output in kept] != [output.name for output in graph.output]:
        keep_outputs(proto, kept)
    return labels


def keep_outputs(proto: onnx.ModelProto, outputs: list[onnx.ValueInfoProto], layers: Collection[str] = ()) -> None:
    """Make these the only outputs, in place, and remove the nodes, weights and inputs that nothing else needs.

    An input that no node reads stays, and the tensors `layers` stay as well.
    """
    graph = proto.graph
    entries = [onnx.ValueInfoProto.FromString(output.SerializeToString()) for output in outputs]
    read_before = {name for node in graph.node for name in _read(node)}
    needed = {output.name for output in entries} | set(layers)
    nodes = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            needed.update(_read(node))
            nodes.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(nodes)]
    unread = read_before - needed
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    graph.output.extend(entries)
    for values in (graph.input, graph.initializer):
        for place in reversed(range(len(values))):
            if values[place].name in unread:
                del values[place]
    _drop_domains(proto)


def _drop_domains(proto: onnx.ModelProto) -> None:
    """Remove the operator sets that no node needs any more."""
    functions = [node for function in proto.functions for node in function.node]
    used = {"", "ai.onnx"} | {inner.domain for node in (*proto.graph.node, *functions) for inner in _nested(node)}
    for place in reversed(range(len(proto.opset_import))):
        if proto.opset_import[place].domain not in used:
            del proto.opset_import[place]


def _nested(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Yield a node and all nodes in its subgraphs."""
    yield node
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _nested(inner)


def _read(node: onnx.NodeProto) -> set[str]:
    """Return the names of the tensors that a node or its subgraphs read, or that a subgraph returns."""
    names = {name for inner in _nested(node) for name in inner.input}
    for inner in _nested(node):
        for attribute in inner.attribute:
            for graph in (attribute.g, *attribute.graphs):
                names.update(output.name for output in graph.output)
    return names


def _is_number(output: onnx.ValueInfoProto) -> bool:
    """Return whether an output is a tensor of numbers, or of an unknown type."""
    kind = output.type.WhichOneof("value")
    return kind is None or (kind == "tensor_type" and output.type.tensor_type.elem_type != onnx.TensorProto.STRING)


def _is_float(output: onnx.ValueInfoProto) -> bool:
    integers = (onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
    return output.type.tensor_type.elem_type not in integers


def _find_scores(graph: onnx.GraphProto, producers: dict[str, onnx.NodeProto]) -> list[str]:
    """Return the tensors whose largest number the outputs name, by index or class name."""
    found = []
    for output in graph.output:
        node = producers.get(output.name)
        while node is not None and node.op_type in _PASSING | _LOOK_UPS and node.input:
            node = producers.get(node.input[1 if node.op_type in ("ArrayFeatureExtractor", "Gather") else 0])
        if node is not None and node.op_type in ("ArgMax", "TopK") and node.input[0] in producers:
            found.append(node.input[0])
    return list(dict.fromkeys(found))


def _find_tensors(name: str, producers: dict[str, onnx.NodeProto]) -> list[str]:
    """Return the names of the tensors in a map, a sequence or an optional; for a tensor, its own name.

    The largest numbers of a tensor are replaced by the tensor: they are sorted, so their indices are not classes.
    """
    node = producers.get(name)
    if node is not None and node.op_type in ("ZipMap", "SequenceConstruct", "Optional"):
        return [inner for given in node.input for inner in _find_tensors(given, producers)]
    if node is not None and _is_best(node, producers):
        return [node.input[0]]
    if node is not None and node.op_type == "Identity":  # of a sequence as well
        inner = _find_tensors(node.input[0], producers)
        return [name] if inner == [node.input[0]] else inner
    return [name]


def _is_best(node: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> bool:
    """Return whether a node returns the largest of some scores: TopK, or a maximum beside the index of the maximum."""
    if node.input[:1] and node.input[0] not in producers:
        return False
    siblings = {other.op_type for other in producers.values() if other.input[:1] == node.input[:1]}
    return node.op_type == "TopK" or (node.op_type == "ReduceMax" and "ArgMax" in siblings)


def _find_labels(graph: onnx.GraphProto, producers: dict[str, onnx.NodeProto]) -> tuple[str, ...] | None:
    """Return the class names by index, from a ZipMap or else from an output of labels."""
    for node in graph.node:
        if node.op_type == "ZipMap":
            found = _names_of(node, "classlabels_strings", "classlabels_int64s")
            if found is not None:
                return found
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for output in graph.output:
        name = output.name
        while (node := producers.get(name)) is not None and node.input:
            found = _labels_of(node, weights, producers)
            if found is not None:
                return found
            if node.op_type not in _PASSING:
                break
            name = node.input[0]
    return None


def _labels_of(
    node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], producers: dict[str, onnx.NodeProto]
) -> tuple[str, ...] | None:
    """Return the class names by index that a node looks up."""
    if node.op_type == "LabelEncoder":
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if "classes_strings" in attributes:  # ai.onnx.ml before version 2: the index of each is its place
            return _named(attributes["classes_strings"])
        keys, values = (_tensor_or_list(attributes, kind) for kind in ("keys", "values"))
        try:
            names = {int(key): value for key, value in zip(keys, values, strict=True)}
        except (ValueError, TypeError):
            return None
        return _named([names[index] for index in range(len(names))]) if sorted(names) == [*range(len(names))] else None
    if node.op_type in ("ArrayFeatureExtractor", "Gather"):  # an index reads names from an array
        tensor = weights.get(node.input[0]) or _constant(producers.get(node.input[0]))
        if tensor is not None and tensor.data_type == onnx.TensorProto.STRING:
            return _named(list(numpy_helper.to_array(tensor).reshape(-1)))
    if node.op_type in ("LinearClassifier", "TreeEnsembleClassifier", "SVMClassifier"):
        return _names_of(node, "classlabels_strings", "classlabels_ints", "classlabels_int64s")
    return None


def _constant(node: onnx.NodeProto | None) -> onnx.TensorProto | None:
    if node is None or node.op_type != "Constant":
        return None
    for attribute in node.attribute:
        if attribute.name == "value":
            tensor: onnx.TensorProto = attribute.t
            return tensor
        if attribute.name == "value_strings":
            return onnx.helper.make_tensor("", onnx.TensorProto.STRING, [len(attribute.strings)], attribute.strings)
    return None


def _tensor_or_list(attributes: dict[str, Any], kind: str) -> list[Any]:
    """Return the keys or the values of a LabelEncoder, from whichever attribute holds them."""
    for name, value in attributes.items():
        if name.startswith(f"{kind}_"):
            return list(numpy_helper.to_array(value).reshape(-1)) if name.endswith("_tensor") else list(value)
    return []


def _names_of(node: onnx.NodeProto, *names: str) -> tuple[str, ...] | None:
    """Return the class names in an attribute of a node; None if they are only the numbers of the classes."""
    for attribute in node.attribute:
        if attribute.name in names and (attribute.strings or attribute.ints):
            return _named(list(attribute.strings or attribute.ints))
    return None


def _named(values: list[object]) -> tuple[str, ...] | None:
    if not values or [*map(_as_text, values)] == [str(index) for index in range(len(values))]:
        return None
    return tuple(map(_as_text, values))


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value.item() if isinstance(value, np.generic) else value)
