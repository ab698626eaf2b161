"""Write Ablation-CAM's scores of a linear head behind a pooling: only what the hidden channel loses is computed.

    logit_bt = clean_pt - w_tk * m_pk        p and k are the photo and the hidden channel of row b, m_p the pooled layer

The clean logits are computed once for each photo. No row needs the logits of all classes, or features of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ortcam.graph.names import NUMBERS, PHOTO_INDEX, PHOTOS, TARGETS
from ortcam.graph.scores import make_node
from ortcam.model.contract import Layout

_SHAPED = frozenset({"Flatten", "Identity", "Reshape", "Squeeze"})  # they keep the numbers of [B,K,1,1] and [B,N]


@dataclass(frozen=True)
class LinearHead:
    """A linear layer from pooled features to logits.

    Attributes:
        weights: the name of its weights.
        biases: the names of what is added; there may be none.
        transposed: the weights are [N,K], not [K,N].
        factor: the number that multiplies the product.
    """

    weights: str
    biases: tuple[str, ...]
    transposed: bool
    factor: float


def find_linear_head(graph: onnx.GraphProto, pooled: str, logits: str) -> LinearHead | None:
    """Return the head between a pooling and the logits; None if it is not a single linear layer.

    Args:
        graph: the tail. Its initializers may be missing, if their shapes are stated.
        pooled: the name of the pooled layer.
        logits: the name of the logits.
    """
    producers = {output: node for node in graph.node for output in node.output}
    constants = {one.name: len(one.dims) for one in graph.initializer if one.data_type == TensorProto.FLOAT}
    for value in graph.value_info:
        kind = value.type.tensor_type
        if value.name not in producers and kind.elem_type == TensorProto.FLOAT:
            constants[value.name] = len(kind.shape.dim)

    def through_shapes(name: str) -> str:
        while name != pooled and name in producers and producers[name].op_type in _SHAPED:
            name = producers[name].input[0]
        return name

    biases: list[str] = []
    name = through_shapes(logits)
    while name in producers and producers[name].op_type == "Add":
        ends = list(producers[name].input)
        added = [one for one in ends if constants.get(one) == 1]
        if len(added) != 1:
            return None
        biases += added
        name = through_shapes(next(one for one in ends if one not in added))
    node = producers.get(name)
    if node is None or node.op_type not in ("Gemm", "MatMul") or constants.get(node.input[1]) != 2:
        return None
    given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    if through_shapes(node.input[0]) != pooled or given.get("transA") or given.get("beta", 1) != 1:
        return None
    if any(constants.get(one) != 1 for one in node.input[2:]):
        return None
    biases += node.input[2:]
    return LinearHead(node.input[1], tuple(biases), bool(given.get("transB")), float(given.get("alpha", 1)))


def write_ablated_logits(head: LinearHead, channels: int, layout: Layout) -> list[onnx.NodeProto]:
    """Return the nodes that write the targets' logits without the channel of each row: [B,T].

    Args:
        head: the head.
        channels: the number of channels of the layer.
        layout: the order of its dimensions.
    """
    nodes: list[onnx.NodeProto] = []

    def node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(make_node(op_type, inputs, output, **attributes))
        return f"ortcam.{output}"

    def numbers(output: str, values: Iterable[int] | int) -> str:
        return node("Constant", [], output, value=numpy_helper.from_array(np.asarray(values, np.int64), output))

    def element(matrix: str, row: str, row_length: str, column: str, output: str) -> str:
        """Gather from a flat matrix, because GatherND does not work in a CUDA graph."""
        begin = node("Mul", [row, row_length], f"{output}_row")
        flat = node("Reshape", [matrix, numbers(f"{output}_flat_shape", [-1])], f"{output}_flat")
        return node("Gather", [flat, node("Add", [begin, column], f"{output}_at")], output)

    last = numbers("last_axis", [1])
    axes = numbers("place_axes", [2, 3] if layout == "NCHW" else [1, 2])
    pooled = node("ReduceMean", [PHOTOS, axes], "pooled_photos", keepdims=0)  # [P,K]
    logits = node("Gemm", [pooled, head.weights], "clean_product", transB=int(head.transposed), alpha=head.factor)
    for place, bias in enumerate(head.biases):
        logits = node("Add", [logits, bias], f"clean_logits_{place}")
    axis = int(not head.transposed)
    classes = node("Shape", [head.weights], "class_count", start=axis, end=axis + 1)
    width = numbers("channel_count", [channels])
    photo = node("Unsqueeze", [PHOTO_INDEX, last], "photo_of_row")  # [R,1]
    channel = node("Unsqueeze", [NUMBERS, last], "channel_of_row")  # [B,1]
    clean = element(logits, photo, classes, TARGETS, "clean")  # [B,T]
    average = element(pooled, photo, width, channel, "average")  # [B,1]
    if head.transposed:
        weight = element(head.weights, TARGETS, width, channel, "weight")
    else:
        weight = element(head.weights, channel, classes, TARGETS, "weight")
    factor = node("Constant", [], "head_factor", value_float=head.factor)
    lost = node("Mul", [node("Mul", [weight, average], "plain_loss"), factor], "loss")
    node("Sub", [clean, lost], "target_logits")
    return nodes
