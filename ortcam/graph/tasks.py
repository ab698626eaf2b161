"""Write the scores of models of other tasks: outputs and references -> LOGITS [B,T].

`ortcam.core.references` defines them.

The references of a photo take the place of a classifier's classes, so everything behind these nodes is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ortcam.core.convention import TINY
from ortcam.graph.names import LOGITS, PHOTO_INDEX, REFERENCE_CLASSES, REFERENCES, TARGET_LOGITS, TARGETS
from ortcam.graph.scores import make_node
from ortcam.model.contract import Contract


def reference_inputs(contract: Contract) -> list[onnx.ValueInfoProto]:
    """Return the inputs that hold the references of the photos."""
    inputs = [helper.make_tensor_value_info(REFERENCES, TensorProto.FLOAT, ["ortcam.P", None, "ortcam.N"])]
    if contract.task in ("detect", "segment"):
        inputs.append(
            helper.make_tensor_value_info(REFERENCE_CLASSES, TensorProto.FLOAT, ["ortcam.P", None, "ortcam.N"])
        )
    return inputs


def write_task_scores(contract: Contract) -> list[onnx.NodeProto]:
    """Return the nodes from the outputs of a task to the scores of the targets, and their logs, [B,T] each.

    The log of a similarity c is that of (1 + c) / 2, so that it exists. Values have none: they stand there themselves.
    """
    writer = _Writer(contract)
    writer.node("Gather", [REFERENCES, PHOTO_INDEX], "references_of_rows", axis=0)
    {"detect": writer.detect, "segment": writer.segment, "embed": writer.embed, "value": writer.value}[contract.task]()
    writer.node("GatherElements", [LOGITS, TARGETS], "target_logits", axis=1)
    positive = TARGET_LOGITS
    if contract.task == "value":
        return [*writer.nodes, make_node("Identity", [TARGET_LOGITS], "target_log_probabilities")]
    if contract.task == "embed":
        above = writer.node("Add", [TARGET_LOGITS, writer.number("similarity_one", 1)], "similarity_above")
        positive = writer.node("Mul", [above, writer.number("similarity_half", 0.5)], "similarity_share")
    least = writer.node("Max", [positive, writer.number("least_score", float(TINY))], "positive_scores")
    writer.node("Log", [least], "target_log_probabilities")
    return writer.nodes


class _Writer:
    def __init__(self, contract: Contract) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._contract = contract

    def node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(make_node(op_type, inputs, output, **attributes))
        return f"ortcam.{output}"

    def number(self, output: str, value: float) -> str:
        return self.node("Constant", [], output, value_float=float(value))

    def integers(self, output: str, values: list[int]) -> str:
        tensor = numpy_helper.from_array(np.array(values, np.int64), output)
        return self.node("Constant", [], output, value=tensor)

    def detect(self) -> None:
        """boxes [B,N,4], scores [B,N,C], references [R,4,T] and their classes [R,C,T] -> LOGITS [B,T]."""
        names = self._contract.outputs
        sides = ("left", "top", "right", "bottom")
        split = helper.make_node("Split", [names["boxes"]], [f"ortcam.{side}" for side in sides], axis=2, num_outputs=4)
        wanted = ["ortcam.references_of_rows"], [f"ortcam.wanted_{side}" for side in sides]
        self.nodes += [split, helper.make_node("Split", *wanted, axis=1, num_outputs=4)]  # [B,N,1], [R,1,T]
        shared, own, others = [], [], []
        for begin, end, length in (("left", "right", "width"), ("top", "bottom", "height")):
            first = self.node("Max", [f"ortcam.{begin}", f"ortcam.wanted_{begin}"], f"shared_{begin}")
            last = self.node("Min", [f"ortcam.{end}", f"ortcam.wanted_{end}"], f"shared_{end}")
            shared.append(self._positive_difference(last, first, f"shared_{length}"))  # [B,N,T]
            own.append(self._positive_difference(f"ortcam.{end}", f"ortcam.{begin}", length))
            others.append(
                self._positive_difference(f"ortcam.wanted_{end}", f"ortcam.wanted_{begin}", f"wanted_{length}")
            )
        area = self.node("Mul", shared, "shared_area")
        both = self.node("Add", [self.node("Mul", own, "area"), self.node("Mul", others, "wanted_area")], "both_areas")
        union = self.node("Sub", [both, area], "union")
        union = self.node("Max", [union, self.number("least_area", float(TINY))], "positive_union")
        overlap = self.node("Div", [area, union], "overlap")
        classes = self.node("Gather", [REFERENCE_CLASSES, PHOTO_INDEX], "classes_of_rows", axis=0)  # [R,C,T]
        sure = self.node("MatMul", [names["scores"], classes], "scores_of_class")  # [B,N,T]
        found = self.node("Mul", [overlap, sure], "scores_of_boxes")
        self.node("ReduceMax", [found, self.integers("box_axis", [1])], "logits", keepdims=0)

    def _positive_difference(self, end: str, begin: str, output: str) -> str:
        return self.node("Relu", [self.node("Sub", [end, begin], f"signed_{output}")], output)

    def segment(self) -> None:
        """mask [B,C,H,W], references [R,H*W,T] and their classes [R,C,T] -> LOGITS [B,T]."""
        shape = self.integers("mask_shape", [0, 0, -1])
        flat = self.node("Reshape", [self._contract.outputs["mask"], shape], "flat_mask_of_classes")
        means = self.node("MatMul", [flat, "ortcam.references_of_rows"], "means_of_classes")  # [B,C,T]
        classes = self.node("Gather", [REFERENCE_CLASSES, PHOTO_INDEX], "classes_of_rows", axis=0)
        chosen = self.node("Mul", [means, classes], "means_of_class")
        self.node("ReduceSum", [chosen, self.integers("class_axis_of_mask", [1])], "logits", keepdims=0)

    def embed(self) -> None:
        """embedding [B,D], references [R,D,T] of length 1 -> LOGITS [B,T]."""
        embedding = self._contract.outputs["embedding"]
        axis = self.integers("embedding_axis", [1])
        length = self.node("ReduceL2", [embedding, axis], "embedding_length", keepdims=1)
        length = self.node("Max", [length, self.number("least_length", float(TINY))], "positive_length")
        self._product(self.node("Div", [embedding, length], "direction"))

    def value(self) -> None:
        """values [B,N], references [R,N,T] -> LOGITS [B,T]."""
        self._product(self._contract.outputs["values"])

    def _product(self, vectors: str) -> None:
        axis = self.integers("row_axis", [1])
        rows = self.node("Unsqueeze", [vectors, axis], "vectors_in_rows")  # [B,1,D]
        scores = self.node("MatMul", [rows, "ortcam.references_of_rows"], "scores_in_rows")  # [B,1,T]
        self.node("Squeeze", [scores, axis], "logits")
