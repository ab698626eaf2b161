"""Write the nodes that change the features of a layer: features and masks -> what the tail of the model reads.

If the tail begins with a pooling over all places, masked features are never made: the pooling of a product with a mask
is a product of matrices. So the tail of a last layer costs little more than its classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ortcam.graph.masks import write_mask, write_masks
from ortcam.graph.names import NUMBERS, OTHER_TOKENS, PHOTO_INDEX, PHOTOS
from ortcam.graph.scores import make_node
from ortcam.graph.wiring import Wiring
from ortcam.model.contract import Layout, Sequenced
from ortcam.model.protobuf import constant_of, read_by


@dataclass(frozen=True)
class Pooling:
    """A pooling over all places.

    Attributes:
        made: the name of its result.
        shape: the dimensions of the result; -1 for the batch.
    """

    made: str
    shape: tuple[int, ...]


def take_pooling(graph: onnx.GraphProto, layer: str, dims: Sequence[Any], layout: Layout) -> Pooling | None:
    """Remove the node that pools a layer over all its places, in place. Return None if the tail has no such node.

    Args:
        graph: the tail.
        layer: the name of the layer.
        dims: its dimensions without the batch.
        layout: the order of its dimensions.
    """
    readers = [node for node in graph.node if layer in read_by(node)]
    if len(readers) != 1 or not all(isinstance(dim, int) for dim in dims):
        return None
    node = readers[0]
    kept = _pools_all(graph, node, dims, layout)
    if kept is None:
        return None
    shape = (-1, dims[0], 1, 1) if layout == "NCHW" else (-1, 1, 1, dims[2])
    graph.node.remove(node)
    return Pooling(node.output[0], shape if kept else (-1, prod(shape[1:])))


def _pools_all(graph: onnx.GraphProto, node: onnx.NodeProto, dims: Sequence[int], layout: Layout) -> bool | None:
    """Return whether a node that averages all places keeps their dimensions; None for any other node."""
    given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    if node.op_type == "GlobalAveragePool" and layout == "NCHW":
        return True
    if node.op_type == "AveragePool" and layout == "NCHW":
        plain = not any(given.get("pads", [])) and given.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        return True if plain and list(given["kernel_shape"]) == list(dims[1:]) else None
    if node.op_type != "ReduceMean":
        return None
    axes = given.get("axes")
    if axes is None and len(node.input) > 1:
        axes = constant_of(graph, node.input[1])
    if axes is None or sorted(int(axis) % 4 for axis in axes) != ([2, 3] if layout == "NCHW" else [1, 2]):
        return None
    return bool(given.get("keepdims", 1))


def write_features(
    wiring: Wiring, layout: Layout, dims: Sequence[Any], made: str, pooling: Pooling | None
) -> list[onnx.NodeProto]:
    """Return the nodes that write the changed features of a batch, or their pooling.

    Args:
        wiring: what is changed.
        layout: the order of the dimensions of the features.
        dims: these dimensions, without the batch.
        made: the name of the features that the tail reads.
        pooling: the pooling that is written instead; None if the tail has none.
    """
    channels = dims[0] if layout == "NCHW" else dims[2]
    if pooling is None and not wiring.copied:
        return write_masks(wiring, layout, made, channels)
    nodes: list[onnx.NodeProto] = []
    mask = write_mask(nodes, wiring, channels)
    write = _Writer(nodes)
    photo = write.node("Gather", [PHOTOS, PHOTO_INDEX], "photo", axis=0)
    if layout == "NCHW":
        photo = write.node("Transpose", [photo], "photo_last", perm=[0, 2, 3, 1])
    lanes = write.node("Reshape", [photo, write.numbers("lanes_shape", [0, -1, channels])], "lanes")  # [R,hw,K]
    if wiring.copied:
        mask_last = write.node("Transpose", [mask], "mask_last", perm=[0, 2, 3, 1])
        column = write.node("MatMul", [_write_places(write, dims, layout), lanes], "column")  # [B,1,K]
        column = write.node("Unsqueeze", [column, write.numbers("column_axis", [1])], "column_last")  # [B,1,1,K]
        if pooling is None:
            shown = write.node("Mul", [column, mask_last], "copies")
            return [*nodes, helper.make_node("Transpose", [shown], [made], perm=[0, 3, 1, 2])
                    if layout == "NCHW" else helper.make_node("Identity", [shown], [made])]  # fmt: skip
        share = write.node("ReduceMean", [mask_last, write.numbers("mask_axes", [1, 2])], "share", keepdims=1)
        pooled = write.node("Mul", [column, share], "pooled")
    elif wiring.bank == "ablations":
        mean = write.node("ReduceMean", [lanes, write.numbers("lane_axis", [1])], "mean", keepdims=1)  # [R,1,K]
        flat = write.node("Reshape", [mask, write.numbers("mask_shape", [-1, 1, channels])], "flat_mask")
        pooled = write.node("Mul", [mean, flat], "pooled")
    else:
        places = prod(dims) // channels
        flat = write.node("Reshape", [mask, write.numbers("mask_shape", [-1, 1, places])], "flat_mask")
        summed = write.node("MatMul", [flat, lanes], "summed")  # [B,1,K]
        nodes.append(make_node("Constant", [], "places", value_float=float(places)))
        pooled = write.node("Div", [summed, "ortcam.places"], "pooled")
    assert pooling is not None
    shape = write.numbers("pooled_shape", pooling.shape)
    return [*nodes, helper.make_node("Reshape", [pooled, shape], [pooling.made], name="ortcam.pooled_features")]


class _Writer:
    """Adds nodes to a list; see `make_node`."""

    def __init__(self, nodes: list[onnx.NodeProto]) -> None:
        self._nodes = nodes

    def node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(make_node(op_type, inputs, output, **attributes))
        return f"ortcam.{output}"

    def numbers(self, output: str, values: Any) -> str:
        tensor = numpy_helper.from_array(np.asarray(values, np.int64), output)
        return self.node("Constant", [], output, value=tensor)


def _write_places(write: _Writer, dims: Sequence[int], layout: Layout) -> str:
    """Add nodes that mark the place of each row: [B,1,hw], 1 at the place with the number of the mask, else 0."""
    places = prod(dims[1:] if layout == "NCHW" else dims[:2])
    number = write.node("Unsqueeze", [NUMBERS, write.numbers("place_axes", [1, 2])], "place")
    marks = write.node("Equal", [number, write.numbers("every_place", np.arange(places)[None, None])], "at_place")
    return write.node("Cast", [marks], "places_marked", to=TensorProto.FLOAT)


def write_sequence(sequence: Sequenced, patches: str, made: str) -> list[onnx.NodeProto]:
    """Return the nodes that put changed patches [B,h,w,D] among the other tokens of a sequence: `made`, [B,T,D].

    The other tokens, such as the class token, stay as they are in the photo: OTHER_TOKENS [P,O,D].
    """
    nodes: list[onnx.NodeProto] = []
    write = _Writer(nodes)
    others = write.node("Gather", [OTHER_TOKENS, PHOTO_INDEX], "others", axis=0)  # [R,O,D]
    flat = write.node("Reshape", [patches, write.numbers("patch_rows", [0, sequence.places, -1])], "patch_tokens")
    count = write.node("Shape", [flat], "row_count", start=0, end=1)
    rest = write.node("Shape", ["ortcam.others"], "others_shape", start=1, end=3)
    shape = write.node("Concat", [count, rest], "others_of_rows", axis=0)
    others = write.node("Expand", [others, shape], "others_expanded")
    axis, end = write.numbers("token_axis", [1]), write.numbers("last_token", [np.iinfo(np.int64).max])
    first = write.numbers("first_patch", [sequence.first])
    before = write.node("Slice", [others, write.numbers("first_token", [0]), first, axis], "tokens_before")
    after = write.node("Slice", [others, first, end, axis], "tokens_after")
    return [*nodes, helper.make_node("Concat", [before, flat, after], [made], axis=1)]
