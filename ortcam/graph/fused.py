"""Convolutions that add a shortcut and rectify in the same kernel, for CUDA.

    relu(conv(x))          ->  FusedConv(x)
    relu(conv(x) + short)  ->  FusedConv(x, short)

ONNX Runtime's CUDA provider has the operator (cuDNN's cudnnConvolutionBiasActivationForward), and none of its own
optimizers writes it. A GPU multiplies so fast that adding and rectifying whole layers, read from memory and written
back, took a fifth of ResNet-50's time on an H100.
"""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import TensorProto, helper

OPERATOR, _DOMAIN = "FusedConv", "com.microsoft"
FUSED_CONVOLUTION = f"{_DOMAIN}.{OPERATOR}"


def fuse_convolutions(proto: onnx.ModelProto) -> int:
    """Write fused convolutions into a graph, in place, and return how many.

    Those are taken whose result nobody else reads, of float32 and with the same padding on both sides, which is what
    the operator is for; a shortcut must be known to have the shape of what it is added to.
    """
    graph = proto.graph
    if any(
        attribute.type in (attribute.GRAPH, attribute.GRAPHS) for node in graph.node for attribute in node.attribute
    ):
        return 0  # names may be read in there
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    producers = {name: node for node in graph.node for name in node.output}
    places = {node.output[0]: place for place, node in enumerate(graph.node)}
    float_kernels = {one.name for one in graph.initializer if one.data_type == TensorProto.FLOAT and len(one.dims) == 4}
    shapes = {value.name: value.type.tensor_type.shape for value in graph.value_info}
    fused: dict[str, onnx.NodeProto] = {}  # by the name that it makes
    replaced: set[str] = set()

    def convolution(name: str) -> onnx.NodeProto | None:
        """Return what makes the tensor, if that is a convolution which can be fused."""
        node = producers.get(name)
        if node is None or node.op_type != "Conv" or node.domain or readers[name] > 1 or name in replaced:
            return None
        return node if node.input[1] in float_kernels and _pads_alike(node) else None

    def shortcut(added: onnx.NodeProto) -> tuple[onnx.NodeProto, str] | None:
        """Return the last convolution that is added to something, and what that is."""
        for name, other in sorted(
            zip(added.input, reversed(added.input), strict=True), key=lambda pair: -places.get(pair[0], -1)
        ):
            node = convolution(name)
            if node is not None and name in shapes and shapes.get(other) == shapes[name]:
                return node, other
        return None

    for node in graph.node:
        before = producers.get(node.input[0]) if node.op_type == "Relu" and not node.domain else None
        if before is None or readers[node.input[0]] > 1:
            continue
        found, short = convolution(node.input[0]), ""
        if found is None and before.op_type == "Add" and not before.domain:
            found, short = shortcut(before) or (None, "")
        if found is None:
            continue
        inputs = [*found.input, *[""] * (3 - len(found.input)), *([short] if short else [])]
        while not inputs[-1]:
            inputs.pop()
        made = helper.make_node(OPERATOR, inputs, node.output, found.name, domain=_DOMAIN, activation="Relu")
        made.attribute.extend(found.attribute)
        fused[node.output[0]] = made
        replaced |= {found.output[0], before.output[0]}

    nodes = [fused.get(node.output[0], node) for node in graph.node if node.output[0] not in replaced]
    kept = onnx.GraphProto(node=nodes)  # a copy, before the list that they are in is emptied
    del graph.node[:]
    graph.node.extend(kept.node)
    if fused and all(opset.domain != _DOMAIN for opset in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return len(fused)


def _pads_alike(node: onnx.NodeProto) -> bool:
    """Return whether a convolution pads both ends of an axis alike."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if "auto_pad" in attributes and attributes["auto_pad"].s not in (b"NOTSET", b"VALID"):
        return False
    pads = list(attributes["pads"].ints) if "pads" in attributes else []
    return pads[: len(pads) // 2] == pads[len(pads) // 2 :]
