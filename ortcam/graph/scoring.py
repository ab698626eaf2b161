"""The scoring graph: photos and some channels of their target layers in, the scores of the masked images out.

    mask_b = rows @ ((activations[channel_b] - shift_b) * scale_b + offset_b) @ columns
    target_logits, target_log_probabilities = model(photos[photo_b] * mask_b)

The model's own nodes stay as they are: the masked image takes the name `image` that they read. A row with
scale 0 and offset 1 is the plain forward pass, so one session with one copy of the weights does everything.
Every row names its photo, so one batch serves several; where all rows have the same one, its index is given once
and the photo is broadcast, not copied.
`rows` [H,h] and `columns` [w,W] hold the weights of the bilinear upsampling, which lets one graph serve every
convention, and needs of a provider nothing but MatMul.
All of this is captured as a CUDA graph, so nothing here copies from the host while it runs. On CUDA, GatherND does
(ONNX Runtime pull request 32120), and so does a MatMul of one left matrix with many: there `rows` is [B,1,H,h].

The onnx package edits the file here, not onnx-ir as elsewhere in this folder: this runs at every start, and
onnx-ir takes half a second to import.
"""

from __future__ import annotations

from typing import Any, Literal

import onnx
from onnx import TensorProto, helper

from ortcam.core.convention import TINY
from ortcam.graph.fused import FUSED_CONVOLUTION
from ortcam.model.cam_model import CamModel
from ortcam.model.contract import Contract, count_scores

PHOTOS = "ortcam.photos"  # [P,C,H,W] or [P,H,W,C]
PHOTO_INDEX = "ortcam.photo_index"  # int64 [B], or [1] for all rows
ACTIVATIONS = "ortcam.activations"  # [P*K,h,w]: the channels of all photos
CHANNELS = "ortcam.channels"  # int64 [B]: photo * K + channel
AFFINE = "ortcam.affine"  # [B,3,1,1]: shift, scale, offset
ROWS = "ortcam.rows"  # [1,1,H,h], or [B,1,H,h] with the same matrix for every row
COLUMNS = "ortcam.columns"  # [w,W]
TARGETS = "ortcam.targets"  # int64 [B,T]
LOGITS = "ortcam.logits"  # [B,N]: what the scores are taken from; [B,2] of a single score, its negation first
TARGET_LOGITS = "ortcam.target_logits"  # [B,T]
TARGET_LOG_PROBABILITIES = "ortcam.target_log_probabilities"  # [B,T]

VERSION = 6  # of the graph built here, and of what is measured with it: what is kept of an older one is not used

# Operators that may stand between the softmax or sigmoid of a classifier and its output.
AFTER_SCORES = frozenset(
    {"Identity", "Reshape", "Flatten", "Squeeze", "Cast", "QuantizeLinear", "DequantizeLinear", "Transpose"}
)

# What scored alike as a CUDA graph on an H100 (benchmarks/gpu.sh); the last line was not measured, and is launched as
# AveragePool, Reshape and Relu are, or is part of a Conv by then: BatchNormalization. Of other operators, some copy
# from the host while they run, and a replay reads there what is no longer theirs: Concat, Resize, ScatterElements.
CAPTURED = frozenset(
    {
        "Add", "AveragePool", "Cast", "Clip", "Constant", "Conv", "Flatten", "Gather", "GatherElements", "Gemm",
        "MatMul", "MaxPool", "Mul", "ReduceLogSumExp", "ReduceMean", "Relu", "Reshape", "Softmax", "Split", "Sub",
        "Transpose", "Unsqueeze",
        FUSED_CONVOLUTION,
        "BatchNormalization", "GlobalAveragePool", "Identity", "Sigmoid", "Softplus", "Squeeze",
    }
)  # fmt: skip


def build_scoring_graph(
    proto: onnx.ModelProto, contract: Contract, scored: Literal["logits", "output"]
) -> onnx.ModelProto:
    """Turn a model file's graph, in place, into its scoring graph.

    Args:
        proto: the parsed file.
        contract: its contract.
        scored: take the scores from the ``logits`` (before a final softmax or sigmoid), or from the ``output``.

    A single score is a sigmoid's and has two classes, whatever `scored` is: a softmax over itself would be 1.
    """
    graph = proto.graph
    single = count_scores(proto) == 1
    image = next(value for value in graph.input if value.name == "image")
    photo_type = image.type.tensor_type
    image_dims = [dim.dim_value or dim.dim_param or None for dim in photo_type.shape.dim]
    scores = _score_nodes(contract, graph, single, scored == "output" and not single)

    graph.input.remove(image)
    graph.input.extend(
        [
            helper.make_tensor_value_info(PHOTOS, TensorProto.FLOAT, ["ortcam.P", *image_dims[1:]]),
            helper.make_tensor_value_info(PHOTO_INDEX, TensorProto.INT64, ["ortcam.R"]),
            helper.make_tensor_value_info(ACTIVATIONS, TensorProto.FLOAT, ["ortcam.A", None, None]),
            helper.make_tensor_value_info(CHANNELS, TensorProto.INT64, ["ortcam.B"]),
            helper.make_tensor_value_info(AFFINE, TensorProto.FLOAT, ["ortcam.B", 3, 1, 1]),
            helper.make_tensor_value_info(ROWS, TensorProto.FLOAT, [None, 1, None, None]),
            helper.make_tensor_value_info(COLUMNS, TensorProto.FLOAT, [None, None]),
            helper.make_tensor_value_info(TARGETS, TensorProto.INT64, ["ortcam.B", "ortcam.T"]),
        ]
    )
    # The shapes that follow from the masks are unknown. Told that the model has one batch size throughout, ONNX Runtime
    # adds the shortcuts of residual blocks in place; untold, it copies each of them first.
    masked_dims = [image_dims[0] or "ortcam.B", *image_dims[1:]]
    graph.value_info.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, masked_dims))
    model_nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(_masking_nodes(contract))
    graph.node.extend(model_nodes)
    graph.node.extend(scores)
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None])
        for name in (LOGITS, TARGET_LOGITS, TARGET_LOG_PROBABILITIES)
    )
    return proto


def not_captured(proto: onnx.ModelProto) -> set[str]:
    """Return the operators of a scoring graph that are not known to do the same as a CUDA graph."""
    names = {f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in proto.graph.node}
    return names - CAPTURED | {function.name for function in proto.functions}


def tensorrt_profile(model: CamModel, batch_size: int, largest: int) -> dict[str, str]:
    """Return TensorRT's shape profiles for the scoring graph: the smallest, the usual and the largest shapes.

    The smallest are those of the plain pass, which has no masks yet. Empty where the file leaves the sizes of its image
    or its layer free; TensorRT then takes those of the first runs.

    Source: ONNX Runtime's documentation of the TensorRT provider, "Explicit shape range".
    """
    shape = model.activations_shape
    if len(shape) != 3 or None in (*model.input_shape, *shape):
        return {}
    channels, height, width = shape if model.contract.activations_layout == "NCHW" else (shape[2], *shape[:2])
    size = model.input_shape[1:] if model.contract.image_layout == "NCHW" else model.input_shape[:2]

    def shapes(batch: int, photos: int, targets: int, layer: tuple[Any, ...] = (channels, height, width)) -> str:
        dims = {
            PHOTOS: (photos, *model.input_shape),
            PHOTO_INDEX: (batch if photos > 1 else 1,),
            ACTIVATIONS: (photos * layer[0], *layer[1:]),
            CHANNELS: (batch,),
            AFFINE: (batch, 3, 1, 1),
            ROWS: (batch, 1, size[0], layer[1]),
            COLUMNS: (layer[2], size[1]),
            TARGETS: (batch, targets),
        }
        return ",".join(f"{name}:{'x'.join(map(str, dim))}" for name, dim in dims.items())

    return {
        "trt_profile_min_shapes": shapes(1, 1, 1, (1, 1, 1)),
        "trt_profile_opt_shapes": shapes(batch_size, 1, 1),
        "trt_profile_max_shapes": shapes(largest, min(largest, 16), model.classes or 1000),
    }


def _masking_nodes(contract: Contract) -> list[onnx.NodeProto]:
    """photos, activations, channels -> image: the masked batch [B,C,H,W] or [B,H,W,C]."""
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    nodes = [
        _node("Gather", [ACTIVATIONS, CHANNELS], "gathered", axis=0),  # [B,h,w]
        _node("Constant", [], "mask_axis", value=axis),
        _node("Unsqueeze", ["ortcam.gathered", "ortcam.mask_axis"], "channel"),  # [B,1,h,w]
        helper.make_node("Split", [AFFINE], ["ortcam.shift", "ortcam.scale", "ortcam.offset"], axis=1, num_outputs=3),
        _node("Sub", ["ortcam.channel", "ortcam.shift"], "shifted"),
        _node("Mul", ["ortcam.shifted", "ortcam.scale"], "scaled"),
        _node("Add", ["ortcam.scaled", "ortcam.offset"], "normalized"),
        _node("MatMul", [ROWS, "ortcam.normalized"], "taller"),
        _node("MatMul", ["ortcam.taller", COLUMNS], "mask"),  # [B,1,H,W]
    ]
    mask = "ortcam.mask"
    if contract.image_layout == "NHWC":
        nodes.append(_node("Transpose", [mask], "mask_last", perm=[0, 2, 3, 1]))
        mask = "ortcam.mask_last"
    nodes.append(_node("Gather", [PHOTOS, PHOTO_INDEX], "photo", axis=0))
    nodes.append(helper.make_node("Mul", ["ortcam.photo", mask], ["image"], name="ortcam.masked_image"))
    return nodes


def _score_nodes(contract: Contract, graph: onnx.GraphProto, single: bool, takes_output: bool) -> list[onnx.NodeProto]:
    """scores [B,N] -> the logits of the targets, and the logs of the targets' probabilities, both [B,T]."""
    result = graph.output[0].name
    stated = takes_output or (contract.output == "logits" and contract.logits is None)
    logits = result if stated else _find_logits(graph, result, contract)
    scale = contract.logits_scale if logits is not None and logits == contract.logits else None
    made = "scores" if single else "logits"
    # A convolutional head has [B,N,1,1] before its softmax.
    nodes = [_node("Flatten", [logits or result], "flat_logits", axis=1)]
    if logits is None:
        nodes.append(_node("Cast", ["ortcam.flat_logits"], "output", to=TensorProto.FLOAT))
        nodes.extend(_inverting_nodes(contract, made))
    else:
        nodes.append(_node("Cast", ["ortcam.flat_logits"], made if scale is None else "integers", to=TensorProto.FLOAT))
        nodes.extend([] if scale is None else _dequantizing_nodes(*scale, made))
    if single:  # a product, since a Concat is not known to do as a CUDA graph
        sides = helper.make_tensor("sides", TensorProto.FLOAT, [1, 2], [-1, 1])
        nodes.append(_node("Constant", [], "sides", value=sides))
        nodes.append(_node("Mul", ["ortcam.scores", "ortcam.sides"], "logits"))
    nodes.append(_node("GatherElements", [LOGITS, TARGETS], "target_logits", axis=1))
    activation = "softmax" if takes_output else "sigmoid" if single else contract.makes_probabilities
    if activation == "softmax" and logits is None:  # they are the logs of the probabilities already
        return [*nodes, _node("Identity", [TARGET_LOGITS], "target_log_probabilities")]
    if activation == "sigmoid":  # log sigmoid(f) = f - log(1 + exp(f)), and ONNX Runtime's Softplus never overflows
        nodes.append(_node("Softplus", [TARGET_LOGITS], "normalizer"))
    else:
        axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
        nodes.append(_node("Constant", [], "class_axis", value=axis))
        nodes.append(_node("ReduceLogSumExp", [LOGITS, "ortcam.class_axis"], "normalizer", keepdims=1))
    return [*nodes, _node("Sub", [TARGET_LOGITS, "ortcam.normalizer"], "target_log_probabilities")]


def _inverting_nodes(contract: Contract, made: str) -> list[onnx.NodeProto]:
    """output [B,N] -> logits, where no tensor of the graph holds them: ortcam.core.scores.read_output."""
    nodes, name = [], "ortcam.output"

    def append(op_type: str, inputs: list[str], output: str) -> str:
        nodes.append(_node(op_type, inputs, output))
        return f"ortcam.{output}"

    def constant(output: str, number: float) -> str:
        nodes.append(_node("Constant", [], output, value_float=number))
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
        _node("Constant", [], "logits_zero", value_float=float(zero_point)),
        _node("Constant", [], "logits_scale", value_float=scale),
        _node("Sub", ["ortcam.integers", "ortcam.logits_zero"], "levels"),
        _node("Mul", ["ortcam.levels", "ortcam.logits_scale"], made),
    ]


def _node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [f"ortcam.{output}"], name=f"ortcam.{output}", **attributes)


def _find_logits(graph: onnx.GraphProto, result: str, contract: Contract) -> str | None:
    """Return the tensor that the final softmax or sigmoid reads: the one that the contract names, else its input.

    None where there is none, and the logits are to be made of the output.
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
