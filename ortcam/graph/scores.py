"""Write the scores of a scoring graph: from the model's outputs to the logits and log-probabilities of the targets.

Targets are classes. The nodes of other targets, such as an object's box or a region, belong here too: they read the
model's outputs and TARGETS, and write TARGET_LOGITS and TARGET_LOG_PROBABILITIES, [B,T] each.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper

from ortcam.core.convention import TINY
from ortcam.graph.names import LOGITS, TARGET_LOGITS, TARGETS
from ortcam.model.contract import Contract

# Operators that may stand between the softmax or sigmoid of a classifier and its output.
AFTER_SCORES = frozenset(
    {"Identity", "Reshape", "Flatten", "Squeeze", "Cast", "QuantizeLinear", "DequantizeLinear", "Transpose"}
)


def write_class_scores(
    contract: Contract, graph: onnx.GraphProto, single: bool, takes_output: bool
) -> list[onnx.NodeProto]:
    """scores [B,N] -> the logits of the targets, and the logs of the targets' probabilities, both [B,T].

    Args:
        contract: the contract of the model file.
        graph: the graph of the model.
        single: the model has a single score, of a sigmoid, and so two classes.
        takes_output: the scores are taken from the output instead of the logits.
    """
    result = graph.output[0].name
    stated = takes_output or (contract.output == "logits" and contract.logits is None)
    logits = result if stated else _find_logits(graph, result, contract)
    scale = contract.logits_scale if logits is not None and logits == contract.logits else None
    made = "scores" if single else "logits"
    # A convolutional head has [B,N,1,1] before its softmax.
    nodes = [make_node("Flatten", [logits or result], "flat_logits", axis=1)]
    if logits is None:
        nodes.append(make_node("Cast", ["ortcam.flat_logits"], "output", to=TensorProto.FLOAT))
        nodes.extend(_inverting_nodes(contract, made))
    else:
        nodes.append(
            make_node("Cast", ["ortcam.flat_logits"], made if scale is None else "integers", to=TensorProto.FLOAT)
        )
        nodes.extend([] if scale is None else _dequantizing_nodes(*scale, made))
    if single:  # a product, because Concat is not known to work in a CUDA graph
        sides = helper.make_tensor("sides", TensorProto.FLOAT, [1, 2], [-1, 1])
        nodes.append(make_node("Constant", [], "sides", value=sides))
        nodes.append(make_node("Mul", ["ortcam.scores", "ortcam.sides"], "logits"))
    nodes.append(make_node("GatherElements", [LOGITS, TARGETS], "target_logits", axis=1))
    activation = "softmax" if takes_output else "sigmoid" if single else contract.makes_probabilities
    if activation == "softmax" and logits is None:  # the logits are log-probabilities already
        return [*nodes, make_node("Identity", [TARGET_LOGITS], "target_log_probabilities")]
    if activation == "sigmoid":  # log sigmoid(f) = f - log(1 + exp(f)); ONNX Runtime's Softplus never overflows
        nodes.append(make_node("Softplus", [TARGET_LOGITS], "normalizer"))
    else:
        axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
        nodes.append(make_node("Constant", [], "class_axis", value=axis))
        nodes.append(make_node("ReduceLogSumExp", [LOGITS, "ortcam.class_axis"], "normalizer", keepdims=1))
    return [*nodes, make_node("Sub", [TARGET_LOGITS, "ortcam.normalizer"], "target_log_probabilities")]


def _inverting_nodes(contract: Contract, made: str) -> list[onnx.NodeProto]:
    """output [B,N] -> logits, if no tensor of the graph holds them: `ortcam.core.scores.read_output`."""
    nodes, name = [], "ortcam.output"

    def append(op_type: str, inputs: list[str], output: str) -> str:
        nodes.append(make_node(op_type, inputs, output))
        return f"ortcam.{output}"

    def constant(output: str, number: float) -> str:
        nodes.append(make_node("Constant", [], output, value_float=number))
        return f"ortcam.{output}"

    if contract.output_scale is not None:
        factor, offset = contract.output_scale
        name = append("Sub", [name, constant("output_offset", offset)], "output_shifted")
        name = append("Div", [name, constant("output_factor", factor)], "output_unscaled")
    tiny, one = constant("tiny", float(TINY)), constant("one", 1.0)
    if contract.output == "log_probabilities":
        name = append("Exp", [name], "output_exp")
    likely = append("Clip", [name, tiny, one], "probabilities")
    if contract.makes_probabilities == "softmax":
        append("Log", [likely], made)
        return nodes
    unlikely = append("Max", [append("Sub", [one, likely], "one_less"), tiny], "complements")
    append("Sub", [append("Log", [likely], "log_likely"), append("Log", [unlikely], "log_unlikely")], made)
    return nodes


def _dequantizing_nodes(scale: float, zero_point: int, made: str) -> list[onnx.NodeProto]:
    return [
        make_node("Constant", [], "logits_zero", value_float=float(zero_point)),
        make_node("Constant", [], "logits_scale", value_float=scale),
        make_node("Sub", ["ortcam.integers", "ortcam.logits_zero"], "levels"),
        make_node("Mul", ["ortcam.levels", "ortcam.logits_scale"], made),
    ]


def make_node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """Return a node with the name and the output `ortcam.{output}`."""
    return helper.make_node(op_type, inputs, [f"ortcam.{output}"], name=f"ortcam.{output}", **attributes)


def _find_logits(graph: onnx.GraphProto, result: str, contract: Contract) -> str | None:
    """Return the name of the logits: the tensor in the contract, else the input of the final softmax or sigmoid.

    None if there is no such tensor; the logits are then computed from the output.
    """
    if contract.logits is not None and any(contract.logits in node.output for node in graph.node):
        return contract.logits
    wanted = {"probabilities": "Softmax", "sigmoid": "Sigmoid"}.get(contract.output)
    producers = {name: node for node in graph.node for name in node.output}
    name = result
    while name in producers:
        node = producers[name]
        if node.op_type == wanted:
            return str(node.input[0])
        if node.op_type not in AFTER_SCORES:
            break
        name = node.input[0]
    return result if contract.output == "logits" else None
