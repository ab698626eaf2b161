"""Find a network's earlier stages: feature maps of a larger size that every path to the target layer goes through.

The scores follow from such a feature map alone, so it has a tail (`ortcam.graph.tail`). Of each size, the last one is
the best: its tail is the shortest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import TensorProto

from ortcam.model.contract import ACTIVATIONS, Layout, Stage
from ortcam.model.protobuf import read_by

_SMALL = 64  # numbers of an initializer that shapes may depend on


def find_stages(proto: onnx.ModelProto, image: Sequence[int], layout: Layout) -> list[Stage]:
    """Return the stages before the target layer, the nearest first: the last one of each size larger than the layer's.

    Args:
        proto: a model file whose target layer is the output `activations`.
        image: the dimensions of the image without the batch.
        layout: the order of the dimensions of the target layer.
    """
    shapes = _infer_shapes(proto, image)
    layer = _size_of_layer(shapes, layout)
    found = dict[tuple[int, int], Stage]()
    if layer is None:
        return []
    for name in _cuts(proto.graph):
        stage = _as_stage(name, shapes.get(name), layer)
        if stage is not None and stage.rows > layer[0] and stage.columns > layer[1]:
            found[stage.rows, stage.columns] = stage  # a later value of the same size replaces an earlier one
    return sorted(found.values(), key=lambda one: one.rows * one.columns)


def find_stage(proto: onnx.ModelProto, image: Sequence[int], layout: Layout, value: str) -> Stage | None:
    """Return a value of the graph as a stage; None if it is no float32 feature map. Arguments as in `find_stages`."""
    shapes = _infer_shapes(proto, image)
    layer = _size_of_layer(shapes, layout)
    return None if layer is None else _as_stage(value, shapes.get(value), layer)


def comes_before(graph: onnx.GraphProto, value: str, later: str) -> bool:
    """Return whether a value is another one than `later`, which is computed from it."""
    return value != later and value in _ancestors(list(graph.node), later)


def _size_of_layer(shapes: Mapping[str, Sequence[int]], layout: Layout) -> tuple[int, int] | None:
    shape = shapes.get(ACTIVATIONS, ())
    if len(shape) != 4 or not all(shape):
        return None
    return (shape[2], shape[3]) if layout == "NCHW" else (shape[1], shape[2])


def _cuts(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the values, in order, that every path from the image to the target layer goes through.

    After each node, the values that are made of the image and still read by a later node are counted. If there is only
    one, it is a cut. The image's shape is no part of the image.
    """
    nodes = list(graph.node)
    wanted = _ancestors(nodes, graph.output[0].name)
    last: dict[str, int] = {}
    for at, node in enumerate(nodes):
        if wanted & set(node.output):
            last.update(dict.fromkeys(read_by(node), at))
    last[graph.output[0].name] = len(nodes)
    from_image, alive = {"image"}, {"image"}
    for at, node in enumerate(nodes):
        made = [name for name in node.output if name in wanted]
        if ACTIVATIONS in node.output:
            return
        if not made or node.op_type == "Shape" or not from_image & set(read_by(node)):
            continue
        from_image.update(made)
        alive.update(made)
        alive = {name for name in alive if last.get(name, -1) > at}
        if len(alive) == 1:
            yield next(iter(alive))


def _ancestors(nodes: list[onnx.NodeProto], name: str) -> set[str]:
    """Return the names of the values that a value is computed from, and its own."""
    wanted = {name}
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted.update(read_by(node))
    return wanted


def _infer_shapes(proto: onnx.ModelProto, image: Sequence[int]) -> dict[str, list[int]]:
    """Return the shapes of the float32 values of a graph for one image, where they are known."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.GraphProto(name="stages")
    graph.node.extend(proto.graph.node)  # its values may have been described for another size; that is left out
    graph.output.extend(value(one.name, one.type.tensor_type.elem_type, None) for one in proto.graph.output)
    for one in proto.graph.input:
        kind = one.type.tensor_type.elem_type
        graph.input.append(value(one.name, kind, [1, *image]) if one.name == "image" else one)
    for weights in proto.graph.initializer:
        count = 1
        for dim in weights.dims:
            count *= dim
        if count <= _SMALL:  # a shape may be computed from it
            graph.initializer.append(weights)
        else:
            graph.input.append(value(weights.name, weights.data_type, list(weights.dims)))
    small = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, graph=graph)
    small.functions.extend(proto.functions)
    shapes = {}
    inferred = onnx.shape_inference.infer_shapes(small, data_prop=True).graph
    for one in (*inferred.value_info, *inferred.output):
        kind = one.type.tensor_type
        if kind.elem_type == TensorProto.FLOAT:
            shapes[one.name] = [dim.dim_value for dim in kind.shape.dim]
    return shapes


def _as_stage(name: str, shape: list[int] | None, layer: tuple[int, int]) -> Stage | None:
    """Return a value as a stage; None if it is no feature map of the form of the layer."""
    if shape is None or len(shape) != 4 or not all(shape):
        return None
    _, first, second, third = shape
    # Rows and columns keep the layer's proportion, but for a place that is rounded off.
    for layout, channels, rows, columns in (("NCHW", first, second, third), ("NHWC", third, first, second)):
        if abs(rows * layer[1] - columns * layer[0]) <= max(layer) * 2:
            return Stage(name, channels, rows, columns, "NCHW" if layout == "NCHW" else "NHWC")
    return None
