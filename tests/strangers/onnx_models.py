"""Small ONNX files whose like is found in public reports; untrained, seeded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 1)).astype(np.float32)


BODY = [
    helper.make_node("Conv", ["image in", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
    helper.make_node("Relu", ["c"], ["r"]),
    helper.make_node("GlobalAveragePool", ["r"], ["p"]),
    helper.make_node("Flatten", ["p"], ["embedding"]),
    helper.make_node("Gemm", ["embedding", "w2", "b2"], ["scores"]),
]
WEIGHTS = {"w": weights(8, 3, 3, 3), "b": weights(8), "w2": weights(8, 4), "b2": weights(4)}
IMAGE = helper.make_tensor_value_info("image in", TensorProto.FLOAT, ["n", 3, 32, 32])


def save(path: Path, nodes: list, outputs: list, opset: int, more: dict | None = None, domains: tuple = ()) -> None:
    tensors = [numpy_helper.from_array(value, name) for name, value in {**WEIGHTS, **(more or {})}.items()]
    graph = helper.make_graph(nodes, "graph", [IMAGE], outputs, tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*domain) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8 if opset < 20 else 9), path)


def write_models(folder: Path) -> None:
    """Write zipmap.onnx, embedding-first.onnx and group-normalization-18.onnx."""
    folder.mkdir(parents=True, exist_ok=True)
    # A sequence of maps from label to probability, as converters of classical models and some services write.
    zipmap = [
        *BODY,
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node(
            "ZipMap", ["probabilities"], ["loss"], domain="ai.onnx.ml", classlabels_strings=["ant", "bee", "cat", "dog"]
        ),
    ]
    maps = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    loss = helper.make_value_info("loss", helper.make_sequence_type_proto(maps))
    save(folder / "zipmap.onnx", zipmap, [loss], 11, domains=(("ai.onnx.ml", 2),))
    # An embedding before the scores: the first output is not what the classes are.
    outputs = [
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 8]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4]),
    ]
    save(folder / "embedding-first.onnx", BODY, outputs, 13)
    # GroupNormalization of opset 18 runs in a main graph, and is refused in the body of a Loop.
    grouped = [
        BODY[0],
        helper.make_node("GroupNormalization", ["c", "gs", "gb"], ["g"], num_groups=2),
        helper.make_node("Relu", ["g"], ["r"]),
        *BODY[2:],
    ]
    more = {"gs": np.array([1, 2], np.float32), "gb": np.array([0, 0.5], np.float32)}
    save(folder / "group-normalization-18.onnx", grouped, [outputs[1]], 18, more)
