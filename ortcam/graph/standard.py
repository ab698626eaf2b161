"""Rewrite a model's graph for ONNX's checker: without functions, and without operators that the checker refuses.

ONNX Runtime runs operators outside the standard: GroupNormalization of opset 18 to 20, which the standard has
withdrawn, and SimplifiedLayerNormalization, which its optimizer writes. Packed files must run in other runtimes too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, inliner, numpy_helper

from ortcam.model.protobuf import inner_graphs, read_by

# Writes a node in other operators.
_Rewrite = Callable[[onnx.NodeProto], list[onnx.NodeProto]]


def standardize(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return an equivalent model with its functions inlined and refused operators written in standard operators.

    Args:
        proto: the model with its weights inside; it may be changed.
    """
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    _standardize_weights(proto.graph)
    _standardize_graph(proto.graph, opset)
    return proto


def in_order(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Put every node behind the nodes that it reads, as ONNX requires. Runtimes are lenient, so not every file is."""
    nodes = list(nodes)
    maker = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    after = [{maker[name] for name in read_by(node) if name in maker} for node in nodes]
    return [nodes[at] for at in TopologicalSorter(dict(enumerate(after))).static_order()]


def _standardize_weights(graph: onnx.GraphProto) -> None:
    """Make sparse weights dense, and keep the last of several weights with one name, as ONNX Runtime does."""
    graph.initializer.extend(map(_to_dense, graph.sparse_initializer))
    del graph.sparse_initializer[:]
    kept = {tensor.name: tensor for tensor in graph.initializer}
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept.values())


def _to_dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """Return a sparse tensor as a dense tensor.

    Source: onnx.proto, SparseTensorProto: indices [n] into the flat tensor, or coordinates [n,rank].
    """
    values, indices, shape = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices), [*sparse.dims]
    dense = np.zeros(shape, values.dtype)
    dense[np.unravel_index(indices, shape) if indices.ndim == 1 else tuple(indices.T)] = values
    return numpy_helper.from_array(dense, sparse.values.name)


def _standardize_graph(graph: onnx.GraphProto, opset: int) -> None:
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for inner in inner_graphs(node):
            _standardize_graph(inner, opset)
        rewrite = _rewrite_of(node, opset)
        nodes.extend([node] if rewrite is None else rewrite(node))
    if len(nodes) != len(graph.node):
        del graph.node[:]
        graph.node.extend(nodes)


def _rewrite_of(node: onnx.NodeProto, opset: int) -> _Rewrite | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "GroupNormalization" and opset < 21:  # from 21 on there is a scale for each channel
        return _write_group_normalization
    if node.op_type == "MeanVarianceNormalization":
        return _state_axes
    if node.op_type == "SimplifiedLayerNormalization" and not any(node.output[1:]):
        return _write_root_mean_square
    return None


def _write_group_normalization(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Write a GroupNormalization as an InstanceNormalization whose channels are the groups.

    Scale and bias are given for each group.
    """
    image, scale, bias = node.input
    write = _Writer(node)
    shape = write.op("Shape", image)
    rows = write.constant(np.array([0, _attribute(node, "num_groups", 1), -1], np.int64))
    groups = write.op("Reshape", image, rows)
    epsilon = _attribute(node, "epsilon", 1e-5)
    normalized = write.op("InstanceNormalization", groups, scale, bias, epsilon=epsilon)
    return write.end("Reshape", normalized, shape)


def _state_axes(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """State the default axes of a node, because shape inference fails without them."""
    if not any(attribute.name == "axes" for attribute in node.attribute):
        node.attribute.append(helper.make_attribute("axes", [0, 2, 3]))
    return [node]


def _write_root_mean_square(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Write x / sqrt(mean(x^2) + epsilon) * scale over the last axes, in float32 (Zhang and Sennrich 2019, RMSNorm).

    ONNX Runtime fuses these nodes into one node again.
    """
    values, scale = node.input
    write = _Writer(node)
    first = int(_attribute(node, "axis", -1))
    floats = write.op("Cast", values, to=onnx.TensorProto.FLOAT)
    squares = write.op("Pow", floats, write.constant(np.array(2, np.float32)))
    if first == -1:
        axes = write.constant(np.array([-1], np.int64))
    else:  # from `first` to the last one
        rank = write.op("Size", write.op("Shape", values))
        begin = write.constant(np.array(first, np.int64))
        end = rank if first >= 0 else write.constant(np.array(0, np.int64))
        axes = write.op("Range", begin, end, write.constant(np.array(1, np.int64)))
    mean = write.op("ReduceMean", squares, axes, keepdims=1)
    epsilon = write.constant(np.array(_attribute(node, "epsilon", 1e-5), np.float32))
    root = write.op("Sqrt", write.op("Add", mean, epsilon))
    normalized = write.op("CastLike", write.op("Div", floats, root), scale)
    return write.end("Mul", normalized, scale)


def _attribute(node: onnx.NodeProto, name: str, default: float) -> Any:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


class _Writer:
    """Writes nodes that replace another node; their names begin with the name of its output."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self._node, self._made = node, list[onnx.NodeProto]()

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self._node.output[0]}/ortcam.{len(self._made)}"
        self._made.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: NDArray[Any]) -> str:
        return self.op("Constant", value=numpy_helper.from_array(value))

    def end(self, op_type: str, *inputs: str) -> list[onnx.NodeProto]:
        """Write the last node, which makes the output, and return all nodes."""
        output = self._node.output[0]
        return [*self._made, helper.make_node(op_type, inputs, [output], name=self._node.name or output)]
