"""Build the scoring graph: its inputs are photos and masks, its outputs the scores of the masked images.

    target_logits, target_log_probabilities = model(photos[photo_b] * mask_b)

The model's own nodes stay as they are: the masked image takes the name `image` that they read (`ortcam.graph.masks`).
A row with scale 0 and offset 1 is the plain forward pass, so one session with one copy of the weights does everything.
Every row names its photo, so one batch serves several photos. If masks are spliced in at the target layer, masked
features take the name of the layer, and only the model's tail is kept (`ortcam.graph.tail`).

The graph may be captured as a CUDA graph, so no node may copy from the host during a run. On CUDA, GatherND copies
(ONNX Runtime pull request 32120), and so does a MatMul of one left matrix with many. Therefore `rows` is [B,1,H,h]
there.

The onnx package edits the file here, not onnx-ir as elsewhere in this folder: this module runs at every start, and
importing onnx-ir takes half a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import onnx
from onnx import TensorProto, helper

from ortcam.graph.features import take_pooling, write_features, write_sequence
from ortcam.graph.fused import FUSED_CONVOLUTION
from ortcam.graph.linear_head import find_linear_head, write_ablated_logits
from ortcam.graph.masks import mask_inputs, write_masks
from ortcam.graph.names import (
    AFFINE,
    BANK,
    COLUMNS,
    LIGHT_ROWS,
    LOGITS,
    NUMBERS,
    OTHER_TOKENS,
    PHOTO_INDEX,
    PHOTOS,
    ROWS,
    TARGET_LOG_PROBABILITIES,
    TARGET_LOGITS,
    TARGETS,
)
from ortcam.graph.scores import write_class_scores
from ortcam.graph.tail import cut_tail
from ortcam.graph.tasks import reference_inputs, write_task_scores
from ortcam.graph.wiring import MASKED_IMAGE, Wiring
from ortcam.model.cam_model import CamModel
from ortcam.model.contract import ROLES, SEQUENCE, Contract, Sequenced, Stage, count_scores, output_name

# Operators whose scores were the same as a CUDA graph on an H100 (benchmarks/gpu.sh). The last line was not measured:
# these operators are launched like AveragePool, Reshape and Relu, or are part of a Conv by then (BatchNormalization).
# Some other operators copy from the host during a run, and a replay would read stale memory: Concat, Resize,
# ScatterElements.
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
    proto: onnx.ModelProto,
    contract: Contract,
    scored: Literal["logits", "output"],
    wiring: Wiring = MASKED_IMAGE,
    stages: Sequence[Stage] = (),
    sequence: Sequenced | None = None,
) -> onnx.ModelProto:
    """Turn a model file's graph, in place, into its scoring graph.

    Args:
        proto: the parsed file.
        contract: its contract.
        scored: take the scores from the ``logits`` (before a final softmax or sigmoid), or from the ``output``.
        wiring: the nodes that change inputs. At a layer, only the model's tail is kept.
        stages: the earlier stages that are outputs.
        sequence: the tokens that the target layer is taken from, if they are an output.

    A single score is of a sigmoid and has two classes, whatever `scored` is: a softmax over itself would be 1.

    Raises:
        LayerError: the model has no tail behind its layer.
    """
    graph = proto.graph
    classifies = contract.classifies
    single = classifies and count_scores(proto) == 1
    image = next(value for value in graph.input if value.name == "image")
    spliced, layout, made = image, contract.image_layout, "image"
    if wiring.at == "layer":
        made = output_name(wiring.layer)
        spliced = next(value for value in graph.output if value.name == made)
        layout = contract.layouts(stages)[wiring.layer]
    dims = [dim.dim_value or dim.dim_param or None for dim in spliced.type.tensor_type.shape.dim]
    pooling, of_tokens = None, False
    if wiring.at == "layer":
        of_tokens = sequence is not None and wiring.layer == 0
        named = stages[wiring.layer - 1].value if wiring.layer else contract.layer
        cut_tail(proto, SEQUENCE if of_tokens else made, named, len(ROLES[contract.task]))
        pooling = None if wiring.replaces or of_tokens else take_pooling(graph, made, dims[1:], layout)
    if classifies:
        scores = write_class_scores(contract, graph, single, scored == "output" and not single)
    else:
        scores = write_task_scores(contract)
        graph.input.extend(reference_inputs(contract))
    results = [TARGET_LOGITS, TARGET_LOG_PROBABILITIES]
    head, channels = None, dims[1 if layout == "NCHW" else 3]
    if wiring.bank == "ablations":
        results.pop()
        (last,) = (place for place, node in enumerate(scores) if TARGET_LOGITS in node.output)
        scores = scores[: last + 1]
        plain = classifies and not single and contract.logits_scale is None
        head = find_linear_head(graph, pooling.made, scores[0].input[0]) if pooling is not None and plain else None
    graph.input.remove(image)
    graph.input.extend(mask_inputs(wiring, dims[1:]))
    graph.input.append(helper.make_tensor_value_info(TARGETS, TensorProto.INT64, ["ortcam.B", "ortcam.T"]))
    # Shapes that depend on the masks are unknown. If the graph states one batch size throughout, ONNX Runtime adds the
    # shortcuts of residual blocks in place; otherwise it copies each shortcut first.
    if pooling is None:
        graph.value_info.append(
            helper.make_tensor_value_info(made, TensorProto.FLOAT, [dims[0] or "ortcam.B", *dims[1:]])
        )
    if wiring.at == "image":
        changed = write_masks(wiring, layout, made)
        results.append(LOGITS)
    else:
        changed = write_features(wiring, layout, dims[1:], made, pooling)
        del graph.output[:]
    if of_tokens and sequence is not None:
        graph.input.append(
            helper.make_tensor_value_info(OTHER_TOKENS, TensorProto.FLOAT, ["ortcam.P", "ortcam.O", dims[3]])
        )
        changed += write_sequence(sequence, made, SEQUENCE)
    nodes = [*changed, *graph.node, *scores]
    if head is not None and isinstance(channels, int):
        nodes = write_ablated_logits(head, channels, layout)
        helper.set_model_props(proto, {LIGHT_ROWS: "yes"})
    del graph.node[:]
    graph.node.extend(nodes)
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in results)
    return proto


def not_captured(proto: onnx.ModelProto) -> set[str]:
    """Return the operators of a scoring graph that are not known to work in a CUDA graph."""
    names = {f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in proto.graph.node}
    return names - CAPTURED | {function.name for function in proto.functions}


def tensorrt_profile(model: CamModel, batch_size: int, largest: int) -> dict[str, str]:
    """Return TensorRT's shape profiles for the scoring graph: the smallest, the usual and the largest shapes.

    The smallest shapes are those of the plain pass, which has no masks. The result is empty if the file leaves sizes of
    its image or its layer free; TensorRT then takes the shapes of the first runs.

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
            BANK: (photos * layer[0], *layer[1:]),
            NUMBERS: (batch,),
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
