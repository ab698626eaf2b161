"""Operators and graphs that ONNX Runtime runs as they are, in the body of the loop that a packed file has."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from strangers.onnx_models import BODY, save, write_models

import ortcam
from ortcam.exporters import export
from ortcam.graph.builder import Builder
from ortcam.graph.standard import in_order, standardize
from ortcam.runtime.session import RUNTIME_ERRORS

SCORES = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4])]
CONTRIB = (("com.microsoft", 1),)
HALVES = {"groups": np.array([1, 2], np.float32), "shift": np.array([0, 0.5], np.float32)}
# What stands between the convolution `c` [n,8,16,16] of a small network and the rest, which reads `m`.
GROUPS = [helper.make_node("GroupNormalization", ["c", "groups", "shift"], ["m"], num_groups=2, epsilon=1e-3)]
ROOT_MEAN_SQUARE = helper.make_node("SimplifiedLayerNormalization", ["c", "line"], ["m"], axis=-1, epsilon=0.01)
LINE = {"line": np.linspace(0.5, 1.5, 16).astype(np.float32)}


def write(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Any], opset: int, domains: tuple = ()) -> Path:
    save(
        path,
        [BODY[0], *nodes, helper.make_node("Relu", ["m"], ["r"]), *BODY[2:]],
        SCORES,
        opset,
        {name: np.asarray(value) for name, value in weights.items()},
        domains,
    )
    return path


def assert_packs(source: Path, folder: Path, budget: int | None = None) -> ortcam.PackReport:
    """Export and pack a model: the map is the engine's, and ONNX's checker takes the file."""
    model = export(source, folder / "model.onnx", preprocess="imagenet", output_kind="logits").path
    report = ortcam.pack(model, folder / "packed.onnx", budget=budget)
    assert report.r is not None
    assert report.r >= 0.9999
    assert report.largest_difference is not None
    assert report.largest_difference <= 1e-4
    onnx.checker.check_model(onnx.load(report.path), full_check=True)
    return report


@pytest.mark.parametrize("budget", [None, 4])
def test_a_group_normalization_of_opset_18(tmp_path: Path, budget: int | None) -> None:
    write_models(tmp_path)
    report = assert_packs(tmp_path / "group-normalization-18.onnx", tmp_path, budget)
    assert onnx.load(report.path).opset_import[0].version == 18


def branches(name: str, then: list[onnx.NodeProto], otherwise: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """An If whose branches make `name`; the first one is taken."""
    graphs = [
        helper.make_graph(
            nodes, "branch", [], [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
        )
        for nodes in (then, otherwise)
    ]
    return [
        helper.make_node("ReduceMax", ["c"], ["highest"], keepdims=0),
        helper.make_node("Less", ["highest", "limit"], ["low"]),
        helper.make_node("If", ["low"], [name], then_branch=graphs[0], else_branch=graphs[1]),
    ]


NEGATIVE = [helper.make_node("Neg", ["c"], ["other"])]
LIMIT = {"limit": np.array(1e6, np.float32)}
GRAPHS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], int, tuple]] = {
    "groups of opset 20": (GROUPS, HALVES, 20, ()),
    "mean and variance over the axes that are taken by default": (
        [helper.make_node("MeanVarianceNormalization", ["c"], ["m"])], {}, 18, (),
    ),
    "ONNX Runtime's own operator": ([ROOT_MEAN_SQUARE], LINE, 18, ()),
    "the same over several axes": (
        [helper.make_node("SimplifiedLayerNormalization", ["c", "line"], ["m"], axis=2)],
        {"line": np.linspace(0.5, 1.5, 256).reshape(16, 16).astype(np.float32)}, 18, (),
    ),
    "inside a branch": (
        branches(
            "m", [helper.make_node("GroupNormalization", ["c", "groups", "shift"], ["g"], num_groups=2)], NEGATIVE
        ),
        {**HALVES, **LIMIT}, 18, (),
    ),
    "a name inside a branch that stands for another value behind it": (
        [
            *branches(
                "i", [helper.make_node("Abs", ["c"], ["late"]), helper.make_node("Exp", ["late"], ["x"])], NEGATIVE
            ),
            helper.make_node("Abs", ["i"], ["late"]),
            helper.make_node("Sqrt", ["late"], ["m"]),
        ],
        LIMIT, 18, (),
    ),
    "fused by an optimizer": (
        [helper.make_node("QuickGelu", ["c"], ["m"], domain="com.microsoft", alpha=1.702)], {}, 18, CONTRIB,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_of_strangers(name: str, tmp_path: Path) -> None:
    assert_packs(write(tmp_path / "source.onnx", *GRAPHS[name]), tmp_path)


@pytest.mark.parametrize(
    ("node", "weights", "largest"),
    [
        (GROUPS[0], HALVES, 2e-6),
        (ROOT_MEAN_SQUARE, LINE, 2e-6),
        (ROOT_MEAN_SQUARE, {"line": LINE["line"].astype(np.float16)}, 2e-3),
        (helper.make_node("SimplifiedLayerNormalization", ["c", "line"], ["m"], axis=-2),
         {"line": np.linspace(0.5, 1.5, 64).reshape(4, 16).astype(np.float32)}, 2e-6),
    ],
    ids=["groups", "root mean square", "of float16", "over two axes from behind"],
)  # fmt: skip
def test_what_is_written_another_way_is_the_same(
    node: onnx.NodeProto, weights: dict[str, np.ndarray], largest: float
) -> None:
    """Within rounding, which is 2^-24 of values up to 4 (float16: 2^-11)."""
    dtype = next(iter(weights.values())).dtype
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("c", kind, [2, 8, 4, 16])],
        [helper.make_tensor_value_info("m", kind, [2, 8, 4, 16])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    values = (np.random.default_rng(0).standard_normal((2, 8, 4, 16)) + 0.5).astype(dtype)
    expected = ort.InferenceSession(proto.SerializeToString()).run(None, {"c": values})[0]
    ours = standardize(proto)
    assert node.op_type not in {one.op_type for one in ours.graph.node}
    onnx.checker.check_model(ours, full_check=True)
    made = ort.InferenceSession(ours.SerializeToString()).run(None, {"c": values})[0]
    assert made.dtype == dtype
    np.testing.assert_allclose(made.astype(np.float64), expected.astype(np.float64), atol=largest)


def test_functions_are_inlined(tmp_path: Path) -> None:
    """A model file in which a node is a function that calls another."""
    source = write(tmp_path / "source.onnx", [helper.make_node("Abs", ["c"], ["m"])], {}, 18)
    proto = onnx.load(export(source, tmp_path / "a.onnx", preprocess="imagenet", output_kind="logits").path)
    own, standard = helper.make_opsetid("own", 1), proto.opset_import[0]
    relu = next(node for node in proto.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "Outer", "own"
    inner = helper.make_node("Inner", ["x"], ["y"], domain="own")
    proto.opset_import.append(own)
    proto.functions.extend(
        [
            helper.make_function("own", "Outer", ["x"], ["y"], [inner], [standard, own]),
            helper.make_function("own", "Inner", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [standard]),
        ]
    )
    onnx.save(proto, tmp_path / "b.onnx")
    report = ortcam.pack(tmp_path / "b.onnx", tmp_path / "c.onnx", budget=6)
    assert not onnx.load(report.path).functions
    assert report.r is not None
    assert report.r >= 0.9999


def test_weights_that_are_sparse_or_given_twice(tmp_path: Path) -> None:
    """Of two weights with one name ONNX Runtime takes the last one in a main graph, and neither in a loop."""
    bias = {"line": np.zeros((1, 8, 1, 1), np.float32), "grid": np.zeros((8, 1, 1), np.float32)}
    nodes = [helper.make_node("Add", ["c", "line"], ["d"]), helper.make_node("Add", ["d", "grid"], ["m"])]
    source = write(tmp_path / "source.onnx", nodes, bias, 18)
    proto = onnx.load(export(source, tmp_path / "a.onnx", preprocess="imagenet", output_kind="logits").path)
    graph, values = proto.graph, np.array([0.5, -0.5, 1], np.float32)
    weight = next(tensor for tensor in graph.initializer if tensor.name == "b")
    other = numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.3), "b")
    kept = [tensor for tensor in graph.initializer if tensor.name not in bias]
    del graph.initializer[:]
    graph.initializer.extend([*kept, other])
    for name, shape, indices in [
        ("line", [1, 8, 1, 1], [0, 3, 5]),
        ("grid", [8, 1, 1], [[1, 0, 0], [2, 0, 0], [7, 0, 0]]),
    ]:
        places = numpy_helper.from_array(np.array(indices, np.int64))
        graph.sparse_initializer.append(helper.make_sparse_tensor(numpy_helper.from_array(values, name), places, shape))
    onnx.save(proto, tmp_path / "b.onnx")
    report = ortcam.pack(tmp_path / "b.onnx", tmp_path / "c.onnx")
    onnx.checker.check_model(onnx.load(report.path), full_check=True)
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    packed, expected = (cam.explain(photo, targets="all") for cam in (
        ortcam.PackedExplainer(report.path), ortcam.ScoreCAM(tmp_path / "b.onnx")))  # fmt: skip
    logits = [[target.logit for target in one.targets] for one in (packed, expected)]
    np.testing.assert_allclose(*logits, atol=1e-5)
    assert np.abs(packed.maps - expected.maps).max() <= 1e-4


def test_what_the_checker_refuses_and_cannot_be_written_another_way(tmp_path: Path) -> None:
    """ONNX Runtime decides, and a warning tells of other runtimes."""
    node = helper.make_node("SimplifiedLayerNormalization", ["c", "line"], ["n", "inverse"], axis=-1)
    add = helper.make_node("Add", ["n", "inverse"], ["m"])
    model = export(
        write(tmp_path / "a.onnx", [node, add], LINE, 18),
        tmp_path / "b.onnx",
        preprocess="imagenet",
        output_kind="logits",
    ).path
    for verify in (True, False):
        with pytest.warns(ortcam.OrtcamWarning, match="refuses the file, so .* No Op registered for SimplifiedLayer"):
            ortcam.pack(model, tmp_path / "c.onnx", verify=verify)
    assert ortcam.PackedExplainer(tmp_path / "c.onnx").explain(np.zeros((9, 9, 3), np.uint8)).scored > 0


class Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = iter(np.random.default_rng(0).standard_normal((4, 1, 3, 32, 32)).astype(np.float32))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._left, None)
        return None if image is None else {"image in": image}


def test_quantized_scores(tmp_path: Path) -> None:
    """ONNX Runtime crashes where an If captures what a DequantizeLinear makes, as the file's loop would have it."""
    source = write(tmp_path / "source.onnx", [helper.make_node("Abs", ["c"], ["m"])], {}, 18)
    for kind in (QuantFormat.QOperator, QuantFormat.QDQ):
        quantize_static(source, tmp_path / "quantized.onnx", Calibration(), quant_format=kind)
        report = assert_packs(tmp_path / "quantized.onnx", tmp_path)
        loops = [node.attribute[0].g for node in onnx.load(report.path).graph.node if node.op_type == "Loop"]
        (body,) = [graph for graph in loops if any(node.op_type == "DequantizeLinear" for node in graph.node)]
        made = {name for node in body.node if node.op_type == "DequantizeLinear" for name in node.output}
        assert made, "no dequantized value proves nothing"
        captured = {
            name
            for node in body.node
            for attribute in node.attribute
            for inner in attribute.g.node
            for name in inner.input
        }
        assert not made & captured


# --- Every operator ---

REFUSALS = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
PLAIN = {np.dtype(kind) for kind in "?bBhHiIlLefd"}


def in_a_loop(proto: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Write a model as `ortcam pack` does: its nodes and weights in the body of a Loop, in one turn of it."""
    proto = standardize(proto)
    graph = Builder()
    for name, array in arrays.items():
        graph.input(name, array.dtype, list(array.shape))
    names = [value.name for value in proto.graph.output]

    def turn(_: Any) -> list[Any]:
        graph.embed(in_order(proto.graph.node), proto.graph.initializer, ())
        types = [value.type.tensor_type.elem_type for value in proto.graph.output]
        return [graph.refer(*pair) for pair in zip(names, map(helper.tensor_dtype_to_np_dtype, types), strict=True)]

    for name, value in zip(names, graph.loop(graph.constant(1, np.int64), [], turn), strict=True):
        rank = next(len(one.type.tensor_type.shape.dim) for one in proto.graph.output if one.name == name)
        graph.output(value, f"{name}/stacked", [None] * (rank + 1))
    made = helper.make_model(graph.to_proto("test"), opset_imports=proto.opset_import, ir_version=proto.ir_version)
    made.functions.extend(proto.functions)
    return made


def run(proto: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    made: list[np.ndarray] = session.run(None, arrays)
    return made


def tensors_of(values: Any) -> bool:
    return all(
        value.type.HasField("tensor_type")
        and helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) in PLAIN
        for value in values
    )


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 20])
def test_every_operator(opset: int) -> None:
    """ONNX's own test of every operator: what ONNX Runtime runs in this opset it runs in the loop, to the same values.

    Random operators are left out. GroupNormalization of opset 18 is no longer among ONNX's tests.
    """
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, where a test case divides by 0
        cases = collect_testcases(None)
    seen: dict[str, int] = {}
    refused: dict[str, str] = {}
    for case in cases:
        proto = onnx.ModelProto()
        proto.CopyFrom(case.model)
        operators = {node.op_type for node in proto.graph.node}
        main = [entry for entry in proto.opset_import if entry.domain == ""]
        fits = tensors_of((*proto.graph.input, *proto.graph.output)) and proto.graph.output
        name = " ".join(sorted(operators))
        if not fits or not main or operators & {"Bernoulli", "RandomUniformLike"} or seen.get(name, 0) >= 3:
            continue
        main[0].version, proto.ir_version = opset, 8 if opset < 20 else 9
        given = [np.asarray(array) for array in case.data_sets[0][0]]
        arrays = dict(zip([value.name for value in proto.graph.input], given, strict=True))
        try:
            expected = run(proto, arrays)
        except RUNTIME_ERRORS:  # not in this opset, or not in ONNX Runtime
            continue
        seen[name] = seen.get(name, 0) + 1
        try:
            looped = in_a_loop(proto, arrays)
            onnx.checker.check_model(looped, full_check=True)
            made = run(looped, arrays)
            for one, other in zip(made, expected, strict=True):
                np.testing.assert_allclose(one[0], other, rtol=1e-4, atol=1e-5)
        except (*RUNTIME_ERRORS, *REFUSALS, AssertionError) as error:  # of all operators at once
            refused[case.name] = f"{operators}: {str(error)[:200]}"
    assert refused == {}
    assert len({operator for operators in seen for operator in operators.split()}) >= 160
