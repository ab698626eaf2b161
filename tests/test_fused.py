"""Fused convolutions: ONNX Runtime's CPU runs the same operator, so what they compute is seen without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import ortcam
from ortcam.graph import scoring
from ortcam.graph.fused import fuse_convolutions
from ortcam.runtime.engine import Engine
from ortcam.runtime.providers import Provider


def test_a_residual_network_scores_the_same(resnet18_file: Path) -> None:
    """ResNet-18: 17 of its 20 convolutions rectify, 8 of them after the shortcut; 3 make shortcuts."""
    model = ortcam.CamModel(resnet18_file)
    engine = Engine(model, "logits", ortcam.Provider("cpu"), 4, 2)
    photos = np.random.default_rng(0).standard_normal((2, 3, 96, 96), np.float32)
    group = engine.scorer.forward(photos)
    graph = scoring.build_scoring_graph(ortcam.CamModel(resnet18_file).take_proto(), model.contract, "logits")
    assert fuse_convolutions(graph) == 17
    fused = [node for node in graph.graph.node if node.op_type == "FusedConv"]
    assert sum(len(node.input) == 4 for node in fused) == 8
    assert {node.op_type for node in graph.graph.node} & {"Relu", "Conv"} == {"Conv"}
    assert scoring.not_captured(graph) == set()
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    engine.scorer._session = session  # the same runs through the other graph
    same = engine.scorer.forward(photos)
    for ours, reference in zip(same.passes, group.passes, strict=True):
        assert np.allclose(ours.logits, reference.logits, rtol=1e-4, atol=1e-4)
        assert np.allclose(ours.activations, reference.activations, rtol=1e-4, atol=1e-4)


def network(
    nodes: list[onnx.NodeProto], outputs: list[str], shape_of_short: list[Any] | None = None
) -> onnx.ModelProto:
    """Return x [N,4,6,6] -> `nodes`; kernels `w` [4,4,3,3] and `grouped` [4,1,3,3], and `short` of x's shape."""
    random = np.random.default_rng(1)
    weights = {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3), "grouped": (4, 1, 3, 3), "b": (4,), "one": (1, 4, 1, 1)}
    initializers = [
        numpy_helper.from_array(random.standard_normal(dims, np.float32), name) for name, dims in weights.items()
    ]
    known = {"conv": ["N", 4, 6, 6], "other": ["N", 4, 6, 6], "short": shape_of_short or ["N", 4, 6, 6]}
    graph = helper.make_graph(
        [helper.make_node("Sigmoid", ["x"], ["short"]), *nodes],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 6, 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        initializers,
        value_info=[helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in known.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def conv(*inputs: str, output: str = "conv", pads: tuple[int, ...] = (1, 1, 1, 1), **more: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [*inputs], [output], pads=pads, **more)


def relu(name: str, output: str = "y") -> onnx.NodeProto:
    return helper.make_node("Relu", [name], [output])


def add(*names: str) -> onnx.NodeProto:
    return helper.make_node("Add", [*names], ["sum"])


FUSED = {
    "rectified": [conv("x", "w"), relu("conv")],
    "with a bias": [conv("x", "w", "b"), relu("conv")],
    "and a shortcut": [conv("x", "w", "b"), add("conv", "short"), relu("sum")],
    "no bias, the shortcut first": [conv("x", "w"), add("short", "conv"), relu("sum")],
    "two convolutions": [conv("x", "w"), conv("short", "v", output="other"), add("conv", "other"), relu("sum")],
}
LEFT = {
    "groups": [conv("x", "grouped", group=4), relu("conv")],
    "pads that differ": [conv("x", "w", pads=(0, 0, 1, 1)), relu("conv")],
    "pads of TensorFlow": [helper.make_node("Conv", ["x", "w"], ["conv"], auto_pad="SAME_UPPER"), relu("conv")],
    "read twice": [conv("x", "w"), relu("conv", "z"), helper.make_node("Mul", ["conv", "z"], ["y"])],
    "a sum read twice": [
        conv("x", "w"), add("conv", "short"), relu("sum", "z"), helper.make_node("Mul", ["sum", "z"], ["y"])
    ],
    "added to itself": [conv("x", "w"), add("conv", "conv"), relu("sum")],
    "added to one number a channel": [conv("x", "w"), add("conv", "one"), relu("sum")],
    "no convolution": [add("x", "short"), relu("sum")],
}  # fmt: skip


@pytest.mark.parametrize("nodes", FUSED.values(), ids=FUSED)
def test_what_is_fused_gives_the_same(nodes: list[onnx.NodeProto]) -> None:
    x = np.random.default_rng(2).standard_normal((3, 4, 6, 6), np.float32)
    plain, fused = (network(nodes, ["y"]) for _ in range(2))
    assert fuse_convolutions(fused) == 1
    assert "Relu" not in {node.op_type for node in fused.graph.node}
    assert "Add" not in {node.op_type for node in fused.graph.node}
    ours, reference = (
        ort.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]
        for one in (fused, plain)
    )
    assert np.allclose(ours, reference, rtol=1e-5, atol=1e-5)
    assert reference.min() == 0 < reference.max()


@pytest.mark.parametrize("nodes", LEFT.values(), ids=LEFT)
def test_what_is_left_as_it_is(nodes: list[onnx.NodeProto]) -> None:
    model = network(nodes, ["y"])
    before = model.SerializeToString()
    assert fuse_convolutions(model) == 0
    assert model.SerializeToString() == before


def test_a_target_layer_stays_a_tensor() -> None:
    """The result of a convolution, or of a sum, that the file gives out."""
    assert fuse_convolutions(network([conv("x", "w"), relu("conv")], ["y", "conv"])) == 0
    assert fuse_convolutions(network([conv("x", "w"), add("conv", "short"), relu("sum")], ["y", "sum"])) == 0


def test_a_shortcut_of_another_or_no_known_shape_is_added_outside() -> None:
    nodes = [conv("x", "w"), add("conv", "short"), relu("sum")]
    assert fuse_convolutions(network(nodes, ["y"], ["N", 4, 1, 1])) == 0
    unknown = network(nodes, ["y"])
    del unknown.graph.value_info[:]
    assert fuse_convolutions(unknown) == 0
    any_batch = network(nodes, ["y"])
    for value in any_batch.graph.value_info:
        value.type.tensor_type.shape.dim[0].Clear()  # one may be broadcast
    assert fuse_convolutions(any_batch) == 0


def test_half_precision_has_no_fused_convolutions() -> None:
    """CUDA's operator takes float32 only."""
    model = network([conv("x", "w"), relu("conv")], ["y"])
    for one in model.graph.initializer:
        one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one).astype(np.float16), one.name))
    assert fuse_convolutions(model) == 0


def test_which_providers_fuse() -> None:
    assert Provider("cuda").fuses
    assert not Provider("cuda", {"prefer_nhwc": "1"}).fuses
    assert not any(Provider(name).fuses for name in ("cpu", "tensorrt", "directml"))
