"""Values of a parsed graph: who reads them, and giving them other names. The graphs inside nodes read them too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs inside a node: the body of a loop, the branches of an If."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename values in a graph and in the graphs inside its nodes."""
    for one in (*graph.input, *graph.initializer, *graph.value_info):
        one.name = names.get(one.name, one.name)
    for node in graph.node:
        for strings in (node.input, node.output):
            for at, name in enumerate(strings):
                if name in names:
                    strings[at] = names[name]
        for inner in inner_graphs(node):
            rename(inner, names)
    for output in graph.output:
        output.name = names.get(output.name, output.name)


def read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, those that the graphs inside it read from outside included."""
    yield from node.input
    for inner in inner_graphs(node):
        own = {one.name for one in (*inner.input, *inner.initializer)}
        own.update(name for one in inner.node for name in one.output)  # values outside may have these names too
        yield from (name for one in inner.node for name in read_by(one) if name not in own)
        yield from (output.name for output in inner.output if output.name not in own)


def drop_outputs(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Take outputs from a graph, and the nodes that were there for them alone, in place.

    ONNX Runtime would run such nodes, and would not fuse the node that they read from with the next.
    """
    kept = [output for output in graph.output if output.name not in names]
    if len(kept) == len(graph.output):
        return
    del graph.output[:]
    graph.output.extend(kept)
    readers = Counter(name for node in graph.node for name in read_by(node))
    readers.update(output.name for output in kept)
    makers = {name: node for node in graph.node for name in node.output if name}
    waiting = list(names)
    while waiting:
        node = makers.get(waiting.pop())
        made = [] if node is None else [name for name in node.output if name]
        if node is None or any(readers[name] for name in made):
            continue
        for name in made:
            del makers[name]
        graph.node.remove(node)
        read = list(read_by(node))
        readers.subtract(read)
        waiting.extend(read)


def constant_of(graph: onnx.GraphProto, name: str) -> NDArray[Any] | None:
    """Return the numbers of a constant of a graph in one row; None if the value is computed."""
    tensors = [one for one in graph.initializer if one.name == name]
    tensors += [
        attribute.t
        for node in graph.node
        if node.op_type == "Constant" and name in node.output
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    return onnx.numpy_helper.to_array(tensors[0]).ravel() if tensors else None


def add_output(graph: onnx.GraphProto, value: str, name: str, dims: Sequence[int | str]) -> None:
    """Make a float32 value an output, in place, and give it a name. If another value has the name, they swap names."""
    rename(graph, {value: name, name: value})
    described = [one for one in graph.value_info if one.name != name]
    del graph.value_info[:]
    graph.value_info.extend(described)
    graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims))


def choose_output(graph: onnx.GraphProto, chosen: str, name: str, others: Collection[str]) -> None:
    """Give the output `chosen` the name of another output, and take all of `others` from the outputs, in place.

    The two names are swapped inside the graph, so that none is there twice.
    """
    drop_outputs(graph, others)
    rename(graph, {chosen: name, name: chosen})
