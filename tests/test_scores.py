"""What scores are: single scores, independent ones, logarithms, probabilities that are scaled or shifted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import assert_same_map
from onnx import TensorProto, helper, numpy_helper
from strangers import torch_models
from torch.nn.functional import interpolate

import ortcam
from ortcam.core.scores import read_output, speaks_against_softmax
from ortcam.deploy.pack import pack
from ortcam.errors import ExportError, OptionError, OrtcamWarning
from ortcam.exporters import export

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(5)
KERNEL = RNG.standard_normal((6, 3, 2, 2)).astype(np.float32)
HEAD, BIAS = RNG.standard_normal((6, 5)).astype(np.float32), np.array([0.5, 0, -0.5, 1, -1], np.float32)
INPUT = RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)
BODY = [
    helper.make_node("Conv", ["x", "kernel"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
    helper.make_node("Relu", ["c"], ["layer"]),
    helper.make_node("GlobalAveragePool", ["layer"], ["p"]),
    helper.make_node("Flatten", ["p"], ["embedding"]),
    helper.make_node("Gemm", ["embedding", "head", "bias"], ["z"]),
]


def node(kind: str, *inputs: str, to: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [to], **attributes)


def write(path: Path, count: int, tail: list[onnx.NodeProto], dims: list[int] | None = None, gain: float = 1) -> Path:
    """Write a network of `count` logits z whose output y the tail makes; z itself without one."""
    numbers: dict[str, Any] = {"half": 0.5, "one": 1, "minus": -1, "hundred": 100, "tiny": 1e-7, "most": 0.999}
    weights = {"kernel": KERNEL, "head": HEAD[:, :count] * gain, "bias": BIAS[:count] * gain}
    weights |= {name: np.array(number, np.float32) for name, number in numbers.items()}
    weights |= {"axes": np.array([1]), "begin": np.array([1]), "end": np.array([2]), "zero": np.array(128, np.uint8)}
    weights |= {"step": np.array(1 / 255, np.float32), "zeroth": np.array(0, np.uint8)}
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    output = helper.make_tensor_value_info("y" if tail else "z", TensorProto.FLOAT, ["n", *(dims or [count])])
    graph = helper.make_graph([*BODY, *tail], "graph", [image], [output], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def made(tmp_path: Path, count: int, tail: list[onnx.NodeProto] = [], **options: Any) -> Any:  # noqa: B006
    source = write(tmp_path / "source.onnx", count, tail, options.pop("dims", None), options.pop("gain", 1))
    return export(source, tmp_path / "cam.onnx", **options)


def layer_of(tensor: Array) -> Array:
    """image [3,8,8] -> layer [6,4,4], in NumPy."""
    blocks = tensor.reshape(3, 4, 2, 4, 2)
    layer: Array = np.maximum(np.einsum("kcij,chiwj->khw", KERNEL, blocks), 0)
    return layer


def logits_of(tensor: Array, count: int, gain: float = 1) -> Array:
    """image [3,8,8] -> logits [count], in NumPy."""
    z: Array = (layer_of(tensor).mean((1, 2)) @ HEAD[:, :count] + BIAS[:count]).astype(np.float64) * gain
    return z


def sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-values))


def softmax(values: Array) -> Array:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def masked_logits(count: int, align_corners: bool = False) -> Array:
    """Return the logits [K,count] of the image under the mask of every channel, in NumPy and torch's interpolation."""
    rows = []
    for channel in layer_of(INPUT[0]):
        up = interpolate(torch.from_numpy(channel)[None, None], (8, 8), mode="bilinear", align_corners=align_corners)
        mask = ((up - up.min()) / (up.max() - up.min()))[0].numpy()
        rows.append(logits_of(INPUT[0] * mask, count))
    return np.array(rows)


def official_map(weights: Array) -> Array:
    """weights [K] -> the map [8,8] of the preset `official`."""
    total = torch.from_numpy(np.einsum("k,khw->hw", weights, layer_of(INPUT[0])).astype(np.float32))
    up = interpolate(total[None, None], (8, 8), mode="bilinear", align_corners=False)[0, 0].relu().numpy()
    saliency: Array = (up - up.min()) / (up.max() - up.min())
    return saliency


@pytest.mark.parametrize("tail", [[], [node("Sigmoid", "z", to="y")]], ids=["logit", "sigmoid"])
def test_both_sides_of_a_single_score(tail: list[onnx.NodeProto], tmp_path: Path) -> None:
    """Class 1 is the positive one, class 0 its negation, with their own probabilities, weights and maps."""
    report = made(tmp_path, 1, tail)
    assert not report.notices[1:], "only that no preprocessing is known"
    cam = ortcam.ScoreCAM(report.path)
    assert cam.model.classes == 2
    explanation = cam.explain(INPUT, targets="all")
    f, masked = logits_of(INPUT[0], 1)[0], masked_logits(1)[:, 0]
    assert [target.index for target in explanation.targets] == [0, 1]
    np.testing.assert_allclose([target.probability for target in explanation.targets], [sigmoid(-f), sigmoid(f)], 1e-5)
    np.testing.assert_allclose([target.logit for target in explanation.targets], [-f, f], 1e-5)
    # Float32 on one side, float64 on the other.
    np.testing.assert_allclose(explanation.weights, [sigmoid(-masked), sigmoid(masked)], rtol=1e-4, atol=1e-6)
    for ours, weights in zip(explanation.input_maps, (sigmoid(-masked), sigmoid(masked)), strict=True):
        assert_same_map(ours, official_map(weights))
    top = cam.explain(INPUT).targets[0]
    assert (top.index, top.probability > 0.5) == (int(f > 0), True)
    both = cam.explain(INPUT, top_k=2).targets
    assert [target.index for target in both] == ([1, 0] if f > 0 else [0, 1])


@pytest.mark.parametrize("preset", ["paper", "torchcam", "pytorch-grad-cam", "tf-keras-vis"])
def test_a_single_score_in_every_preset(preset: str, tmp_path: Path) -> None:
    """The negation's score is -f, as in pytorch-grad-cam's BinaryClassifierOutputTarget; tf-keras-vis weighs by p."""
    report = made(tmp_path, 1)
    cam = ortcam.ScoreCAM(report.path, preset=preset)
    weights = cam.explain(INPUT, targets=[0, 1]).weights
    if preset == "torchcam":  # normalises its masks before it resizes them: the two sides alone are held here
        logs = np.log(weights.astype(np.float64))
        np.testing.assert_allclose(logs[0] - logs[0].mean(), -(logs[1] - logs[1].mean()), atol=1e-4)
        return
    masked = masked_logits(1, cam.convention.mask_align_corners)[:, 0]
    sides = np.array([-masked, masked])
    expected = sigmoid(sides) if preset == "tf-keras-vis" else np.array([softmax(side) for side in sides])
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "tail",
    [
        [],
        [node("Sigmoid", "z", to="s"), node("Mul", "s", "hundred", to="y")],
        [node("Sigmoid", "z", to="s"), node("Log", "s", to="y")],
        [node("HardSigmoid", "z", to="y")],
    ],
    ids=["logit", "percent", "logarithm", "hard"],
)
def test_a_packed_single_score(tail: list[onnx.NodeProto], tmp_path: Path) -> None:
    """The packed file has two classes as well: its scores are what the model would return for either side."""
    report = made(tmp_path, 1, tail, labels=["cat"])
    assert report.contract.labels == ("not cat", "cat")
    packed = ortcam.PackedExplainer(pack(report.path, tmp_path / "packed.onnx", raw=False).path)
    assert packed.facts["classes"] == 2
    ours = packed.explain(INPUT, targets="all")
    expected = ortcam.ScoreCAM(report.path).explain(INPUT, targets="all")
    np.testing.assert_allclose(ours.maps, expected.maps, atol=1e-5)
    for one, other in zip(ours.targets, expected.targets, strict=True):
        assert (one.index, one.label) == (other.index, other.label)
        assert one.probability == pytest.approx(other.probability, abs=1e-6)
    top = packed.explain(INPUT).targets[0]
    assert top.index == ortcam.ScoreCAM(report.path).explain(INPUT).targets[0].index
    assert top.probability == pytest.approx(max(target.probability for target in expected.targets), abs=1e-6)
    assert packed.explain(INPUT, top_k=2).targets[0].index == top.index
    assert packed.explain(INPUT, targets="cat").targets[0].index == 1


def test_a_single_score_with_budgets_and_batches(tmp_path: Path) -> None:
    report = made(tmp_path, 1)
    cam = ortcam.ScoreCAM(report.path)
    exact = cam.explain(INPUT, targets=[0, 1])
    for limits in ({"budget": 5}, {"tolerance": 0.01}, {"budget": 5, "selection": "top-std"}):
        near = cam.explain(INPUT, targets=[0, 1], **limits)
        assert np.corrcoef(near.input_maps.ravel(), exact.input_maps.ravel())[0, 1] > 0.95
    for one in cam.explain_batch([INPUT, INPUT], targets=[0, 1]):
        np.testing.assert_allclose(one.weights, exact.weights, atol=1e-6)


def test_labels_of_a_single_score(tmp_path: Path) -> None:
    report = made(tmp_path, 1, labels=["dog", "cat"])
    assert report.contract.labels == ("dog", "cat")
    assert ortcam.ScoreCAM(report.path).explain(INPUT, targets="dog").targets[0].index == 0
    with pytest.raises(ExportError, match="one score; give one label, or two"):
        made(tmp_path, 1, labels=["a", "b", "c"])


def test_independent_logits_that_are_stated(tmp_path: Path) -> None:
    """Every class has the sigmoid of its own logit; the same file as if it ended in a Sigmoid."""
    report = made(tmp_path, 5, output_kind="sigmoid")
    assert (report.contract.output, report.contract.activation) == ("logits", "sigmoid")
    assert len(report.notices) == 1, "only that no preprocessing is known"
    cam = ortcam.ScoreCAM(report.path)
    explanation = cam.explain(INPUT, targets="all")
    expected = sigmoid(logits_of(INPUT[0], 5))
    np.testing.assert_allclose([target.probability for target in explanation.targets], expected, rtol=1e-5)
    np.testing.assert_allclose(explanation.weights, sigmoid(masked_logits(5)).T, rtol=1e-4, atol=1e-6)
    packed = ortcam.PackedExplainer(pack(report.path, tmp_path / "packed.onnx", raw=False).path).explain(INPUT, "all")
    np.testing.assert_allclose([target.probability for target in packed.targets], expected, rtol=1e-5)
    np.testing.assert_allclose(packed.maps, explanation.maps, atol=1e-5)
    for record in (explanation.to_dict(), packed.to_dict()):
        assert (record["model"]["output"], record["model"]["activation"]) == ("logits", "sigmoid")
    # tf-keras-vis takes a softmax of whatever the model returns; the probabilities shown are the model's all the same.
    theirs = ortcam.ScoreCAM(report.path, preset="tf-keras-vis").explain(INPUT, targets="all")
    np.testing.assert_allclose([target.probability for target in theirs.targets], expected, rtol=1e-5)
    rows = [softmax(row) for row in masked_logits(5, align_corners=True)]
    np.testing.assert_allclose(theirs.weights, np.array(rows).T, rtol=1e-4, atol=1e-6)


SOFTMAX, SIGMOID = node("Softmax", "z", to="s", axis=1), node("Sigmoid", "z", to="s")
Of = Callable[[Array], Array]
ENDS: dict[str, tuple[list[onnx.NodeProto], str, str, Of, bool]] = {
    # operators, kind, activation, the probabilities from the logits, whether the logits are in the graph
    "LogSoftmax": ([node("LogSoftmax", "z", to="y", axis=1)], "log_probabilities", "softmax", softmax, True),
    "log of Softmax": ([SOFTMAX, node("Log", "s", to="y")], "log_probabilities", "softmax", softmax, True),
    "log of Softmax + tiny": (
        [SOFTMAX, node("Add", "s", "tiny", to="a"), node("Log", "a", to="y")],
        "log_probabilities", "softmax", softmax, True,
    ),
    "x - LogSumExp": (
        [node("ReduceLogSumExp", "z", "axes", to="l", keepdims=1), node("Sub", "z", "l", to="y")],
        "log_probabilities", "softmax", softmax, True,
    ),
    "x - max - log(sum(exp))": (
        [
            node("ReduceMax", "z", "axes", to="m", keepdims=1), node("Sub", "z", "m", to="d"), node("Exp", "d", to="e"),
            node("ReduceSum", "e", "axes", to="t", keepdims=1), node("Log", "t", to="l"), node("Sub", "d", "l", to="y"),
        ],
        "log_probabilities", "softmax", softmax, True,
    ),
    "log of Sigmoid": ([SIGMOID, node("Log", "s", to="y")], "log_probabilities", "sigmoid", sigmoid, True),
    "-Softplus(-x)": (
        [node("Neg", "z", to="n"), node("Softplus", "n", to="s"), node("Neg", "s", to="y")],
        "log_probabilities", "sigmoid", sigmoid, True,
    ),
    "exp of LogSoftmax": (
        [node("LogSoftmax", "z", to="s", axis=1), node("Exp", "s", to="y")], "probabilities", "softmax", softmax, True,
    ),
    "percent": ([SOFTMAX, node("Mul", "s", "hundred", to="y")], "probabilities", "softmax", softmax, True),
    "divided": ([SOFTMAX, node("Div", "s", "half", to="y")], "probabilities", "softmax", softmax, True),
    "from -1 to 1": (
        [SOFTMAX, node("Div", "s", "half", to="a"), node("Sub", "a", "one", to="y")],
        "probabilities", "softmax", softmax, True,
    ),
    "shifted": ([SIGMOID, node("Add", "one", "s", to="y")], "sigmoid", "sigmoid", sigmoid, True),
    "clipped": ([SOFTMAX, node("Clip", "s", "tiny", "most", to="y")], "probabilities", "softmax", softmax, True),
    "temperature": (
        [node("Mul", "z", "half", to="t"), node("Softmax", "t", to="y", axis=1)],
        "probabilities", "softmax", lambda z: softmax(z / 2), False,
    ),
    "half precision": (
        [],  # written in the test: `to` is Cast's own attribute
        "probabilities", "softmax", softmax, True,
    ),
    "1 - Sigmoid": (
        [SIGMOID, node("Sub", "one", "s", to="y")], "sigmoid", "sigmoid", lambda z: sigmoid(-z), False,
    ),
    "1 / (1 + exp(-x))": (
        [node("Neg", "z", to="n"), node("Exp", "n", to="e"), node("Add", "e", "one", to="a"),
         node("Div", "one", "a", to="y")],
        "sigmoid", "sigmoid", sigmoid, True,
    ),
    "half a Tanh": (
        [node("Mul", "z", "half", to="h"), node("Tanh", "h", to="t"), node("Mul", "t", "half", to="u"),
         node("Add", "u", "half", to="y")],
        "sigmoid", "sigmoid", sigmoid, False,
    ),
    "HardSigmoid": (
        [node("HardSigmoid", "z", to="y")], "sigmoid", "sigmoid", lambda z: np.clip(0.2 * z + 0.5, 0, 1), False,
    ),
    "8 bits": (
        [SIGMOID, node("QuantizeLinear", "s", "step", "zeroth", to="q"),
         node("DequantizeLinear", "q", "step", "zeroth", to="y")],
        "sigmoid", "sigmoid", sigmoid, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_ends_of_a_graph(name: str, tmp_path: Path) -> None:
    """Whatever stands behind a softmax or sigmoid: the probabilities are the true ones, and so are the weights."""
    tail, kind, activation, probabilities, has_logits = ENDS[name]
    if name == "half precision":
        tail = [
            helper.make_node("Cast", ["z"], ["h"], to=TensorProto.FLOAT16),
            helper.make_node("Softmax", ["h"], ["s"], axis=1),
            helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
        ]
    coarse = {"half precision": 2e-3, "8 bits": 1 / 255, "clipped": 1e-3}.get(name, 1e-5)  # what such numbers resolve
    report = made(tmp_path, 5, tail)
    assert (report.contract.output, report.contract.activation) == (kind, activation)
    assert len(report.notices) == 1, "only that no preprocessing is known"
    explanation = ortcam.ScoreCAM(report.path).explain(INPUT, targets="all")
    z = logits_of(INPUT[0], 5)
    shown = [target.probability for target in explanation.targets]
    np.testing.assert_allclose(shown, probabilities(z), rtol=1e-4, atol=coarse)
    if has_logits:
        np.testing.assert_allclose([target.logit for target in explanation.targets], z, atol=max(coarse, 1e-4))
    expected = np.array([probabilities(row) for row in masked_logits(5)]).T
    np.testing.assert_allclose(explanation.weights, expected, rtol=1e-3, atol=coarse)


def test_one_class_of_a_softmax(tmp_path: Path) -> None:
    """softmax(z)[:, 1] of two classes is the probability of the second: a single score, without a second sigmoid."""
    tail = [SOFTMAX, node("Slice", "s", "begin", "end", "axes", to="y")]
    report = made(tmp_path, 2, tail, dims=[1])
    z = logits_of(INPUT[0], 2)
    targets = ortcam.ScoreCAM(report.path).explain(INPUT, targets="all").targets
    np.testing.assert_allclose([target.probability for target in targets], softmax(z), rtol=1e-5)
    np.testing.assert_allclose([target.logit for target in targets], [z[0] - z[1], z[1] - z[0]], rtol=1e-4)


def test_both_sides_of_a_sigmoid_as_two_classes(tmp_path: Path) -> None:
    tail = [SIGMOID, node("Sub", "one", "s", to="n"), node("Concat", "n", "s", to="y", axis=1)]
    report = made(tmp_path, 1, tail, dims=[2])
    assert (report.contract.output, report.contract.activation) == ("probabilities", "softmax")
    explanation = ortcam.ScoreCAM(report.path).explain(INPUT, targets="all")
    masked = masked_logits(1)[:, 0]
    np.testing.assert_allclose(explanation.weights, [sigmoid(-masked), sigmoid(masked)], rtol=1e-4, atol=1e-6)


def test_probabilities_that_a_run_shows(tmp_path: Path) -> None:
    """The mean of two softmaxes: no operator tells, but the scores are from 0 to 1 and sum to 1."""
    tail = [
        SOFTMAX,
        node("Mul", "z", "half", to="t"),
        node("Softmax", "t", to="u", axis=1),
        node("Mean", "s", "u", to="y"),
    ]
    report = made(tmp_path, 5, tail)
    assert report.contract.output == "probabilities"
    assert any("sum to 1" in notice for notice in report.notices)
    assert onnx.load(report.path).graph.output[0].name == "probabilities"
    explanation = ortcam.ScoreCAM(report.path).explain(INPUT, targets="all")

    def mean(z: Array) -> Array:
        return (softmax(z) + softmax(z / 2)) / 2

    shown = [target.probability for target in explanation.targets]
    np.testing.assert_allclose(shown, mean(logits_of(INPUT[0], 5)), rtol=1e-4)
    np.testing.assert_allclose(explanation.weights, np.array([mean(row) for row in masked_logits(5)]).T, rtol=1e-3)


def test_a_softmax_over_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="softmax over one class, which is 1 for every photo"):
        made(tmp_path, 1, [node("Softmax", "z", to="y", axis=1)])


def test_what_is_stated_against_what_is_seen(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'probabilities', but the model returns -.* expected numbers from 0 to 1"):
        made(tmp_path, 5, output_kind="probabilities")
    assert not (tmp_path / "cam.onnx").exists()
    with pytest.raises(OptionError, match=r"output_kind is 'sigmoid', but .* ends in a softmax"):
        made(tmp_path, 5, [node("Softmax", "z", to="y", axis=1)], output_kind="sigmoid")
    with pytest.raises(OptionError, match="output_kind is 'softmax'; expected logits, probabilities, sigmoid"):
        made(tmp_path, 5, output_kind="softmax")
    literally = made(tmp_path, 5, [node("Softmax", "z", to="y", axis=1)], output_kind="logits")
    assert any("is used as logits, as stated" in notice for notice in literally.notices)
    shown = ortcam.ScoreCAM(literally.path).explain(INPUT, targets="all").targets
    twice = softmax(softmax(logits_of(INPUT[0], 5)))
    np.testing.assert_allclose([target.probability for target in shown], twice, rtol=1e-5)


def test_probabilities_that_are_stated(tmp_path: Path) -> None:
    """Independent probabilities by an operator that tells nothing: they are shown as they are."""
    tail = [SIGMOID, node("Mul", "s", "s", to="y")]
    report = made(tmp_path, 5, tail, output_kind="probabilities")
    assert (report.contract.output, report.contract.activation) == ("sigmoid", "sigmoid")
    explanation = ortcam.ScoreCAM(report.path).explain(INPUT, targets="all")
    shown = [target.probability for target in explanation.targets]
    np.testing.assert_allclose(shown, sigmoid(logits_of(INPUT[0], 5)) ** 2, rtol=1e-4)
    np.testing.assert_allclose(explanation.weights, (sigmoid(masked_logits(5)) ** 2).T, rtol=1e-3, atol=1e-6)


def test_a_guess_is_told_where_it_is_made(tmp_path: Path) -> None:
    """export and pack tell that a softmax is assumed; explain where a photo speaks against it, once."""
    report = export(torch_models.multilabel(), tmp_path / "guess.onnx", input_size=32, preprocess="imagenet")
    assert ["a softmax is assumed" in notice for notice in report.notices] == [True]
    packed = pack(report.path, tmp_path / "packed.onnx")
    assert ["a softmax is assumed" in notice for notice in packed.notices] == [True]
    photos = np.random.default_rng(0).integers(0, 255, (3, 40, 40, 3), dtype=np.uint8)
    for explainer in (ortcam.ScoreCAM(report.path), ortcam.PackedExplainer(packed.path)):
        with pytest.warns(OrtcamWarning, match=r"they do not look like it; .* --output sigmoid") as told:
            assert len(list(explainer.explain_batch(photos))) == 3
            explainer.explain(photos[0])
        assert len(told) == 1


@pytest.mark.parametrize("stated", ["sigmoid", "logits"])
def test_a_stated_kind_ends_the_guess(stated: str, tmp_path: Path) -> None:
    """The bare logits speak against a softmax, but what is stated counts, and nothing is noted any more."""
    tail = [node("Mul", "z", "hundred", to="y")]
    report = made(tmp_path, 5, tail, output_kind=stated)
    assert len(report.notices) == 1, "only that no preprocessing is known"
    assert speaks_against_softmax(100 * logits_of(INPUT[0], 5))
    ortcam.ScoreCAM(report.path).explain(INPUT)  # a warning would be an error here
    assert not pack(report.path, tmp_path / "packed.onnx", raw=False).notices


def test_imagenets_classes_are_no_guess(tmp_path: Path) -> None:
    """1000 logits are a softmax's, whatever they look like: no note at export, pack or explain."""
    nodes = [helper.make_node("Tile", ["z", "tiles"], ["y"])]
    source = write(tmp_path / "source.onnx", 5, nodes, [1000], gain=100)
    proto = onnx.load(source)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1, 200]), "tiles"))
    onnx.save(proto, source)
    report = export(source, tmp_path / "cam.onnx")
    assert len(report.notices) == 1, "only that no preprocessing is known"
    ortcam.ScoreCAM(report.path).explain(INPUT)


def test_the_binary_network_of_the_reports(tmp_path: Path) -> None:
    """One logit of a PyTorch module: the sigmoid of torch's own logit, and weights that differ."""
    module = torch_models.binary()
    path = export(module, tmp_path / "binary.onnx", input_size=32, preprocess="raw").path
    tensor = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    explanation = ortcam.ScoreCAM(path).explain(tensor, targets=[1, 0])
    with torch.no_grad():
        logit = float(module(torch.from_numpy(tensor))[0, 0])
    assert explanation.targets[0].probability == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-5)
    assert sum(target.probability for target in explanation.targets) == pytest.approx(1)
    assert explanation.weights.std(axis=1).min() > 1e-4
    np.testing.assert_allclose(explanation.weights.sum(axis=0)[explanation.weights[0] > 0], 1, rtol=1e-5)


def test_what_speaks_against_a_softmax() -> None:
    """Rows of real networks: FER on a photo without a face, OpenNSFW; and three of independent labels."""
    assert not speaks_against_softmax([0.3, -4.3, -1.3, 1.3, 1.1, -0.2, 2.2])
    assert not speaks_against_softmax([3.6, -4.0])
    assert not speaks_against_softmax([6, -8, -9, -7, -8]), "one present: a softmax shows the same"
    centred = np.random.default_rng(0).standard_normal(200)
    assert not speaks_against_softmax([*centred - centred.mean(), 8.0])
    assert speaks_against_softmax([3, 3, -3, -3, -3]), "two present"
    assert speaks_against_softmax([-3, -4, -2, -5]), "none present"
    assert speaks_against_softmax([4, 5, 3]), "all present"
    assert speaks_against_softmax([0.1, 0.9, 0.8, 0.02]), "probabilities already"


def test_files_from_before(tmp_path: Path) -> None:
    """Files without the new entries: one logit has two sides, a sigmoid is one, several logits are a softmax's."""
    for count, tail, expected in (
        (1, [], [sigmoid(-logits_of(INPUT[0], 1)[0]), sigmoid(logits_of(INPUT[0], 1)[0])]),
        (5, [node("Sigmoid", "z", to="y")], sigmoid(logits_of(INPUT[0], 5))),
        (5, [], softmax(logits_of(INPUT[0], 5))),
    ):
        path = made(tmp_path, count, tail).path
        proto = onnx.load(path)
        kept = [one for one in proto.metadata_props if one.key not in ("ortcam.activation", "ortcam.output_scale")]
        if count == 1:
            kept = [one for one in kept if one.key != "ortcam.labels"]
            kept.append(onnx.StringStringEntryProto(key="ortcam.labels", value='["cat"]'))
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)
        onnx.save(proto, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OrtcamWarning)
            targets = ortcam.ScoreCAM(path).explain(INPUT, targets="all").targets
        np.testing.assert_allclose([target.probability for target in targets], expected, rtol=1e-5)
        if count == 1:
            assert [target.label for target in targets] == ["not cat", "cat"]


@pytest.mark.filterwarnings("ignore:the map of class .* is flat")  # where a side's probability is 0 for every mask
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_large_scores_stay_finite(precision: str, tmp_path: Path) -> None:
    """A regression of 1e4 (in float16, 1e3) is a probability of 0 or 1, and weights that are numbers."""
    report = made(tmp_path, 1, gain=1e4 if precision == "fp32" else 1e3, precision=precision)
    f = logits_of(INPUT[0], 1)[0]
    for preset in ortcam.PRESETS:
        explanation = ortcam.ScoreCAM(report.path, preset=preset).explain(INPUT, targets="all")
        shown = [target.probability for target in explanation.targets]
        assert shown == pytest.approx([float(f < 0), float(f > 0)], abs=1e-6)
        assert np.isfinite(explanation.weights).all()
        assert np.isfinite(explanation.maps).all()


def test_the_numbers_of_an_output() -> None:
    """NumPy's reading of outputs: extremes give no NaN and no infinite logit."""
    for kind in ("logits", "log_probabilities", "probabilities", "sigmoid"):
        for activation in ("softmax", "sigmoid"):
            for output in ([1e4, -1e4, 0.0], [0.0], [1.0, 0.0], [-1e9]):
                logits, probabilities = read_output(output, kind, activation)  # type: ignore[arg-type]
                assert len(logits) == len(probabilities) == max(2, len(output))
                assert np.isfinite(logits).all() and ((probabilities >= 0) & (probabilities <= 1)).all()
    np.testing.assert_allclose(read_output([40.0], "logits", "sigmoid")[1][0], np.exp(-40.0), rtol=1e-6)


def test_the_command_line_takes_a_file_and_a_kind(tmp_path: Path) -> None:
    """--output is the file, and a word of the three is the kind; inspect shows what was stated."""
    write(tmp_path / "source.onnx", 5, [])
    ortcam_command = Path(sys.executable).with_name("ortcam")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([ortcam_command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)

    done = run("export", "source.onnx", "-o", "cam.onnx", "--output", "sigmoid", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["path"], told["output"], told["activation"]) == ("cam.onnx", "logits", "sigmoid")
    assert "output: logits (sigmoid)" in run("inspect", "cam.onnx").stdout
    refused = run("export", "source.onnx", "--output", "logits", "--output-kind", "sigmoid")
    assert refused.returncode == 2
    assert "logits and sigmoid" in " ".join(refused.stderr.split())


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_page_reads_scores_alike(tmp_path: Path) -> None:
    text = (Path(ortcam.__file__).parent / "deploy" / "page.html").read_text(encoding="utf-8")
    function = text[text.index("function probabilities") : text.index("function list")]
    cases: list[tuple[list[float], str, str, tuple[float, float] | None]] = [
        ([1.0, 3.0, -2.0], "logits", "softmax", None),
        ([-3.0, 3.0], "logits", "sigmoid", None),
        ([-0.5, -1.5], "log_probabilities", "softmax", None),
        ([30.0, 70.0], "probabilities", "softmax", (100.0, 0.0)),
        ([-0.2, 0.9], "sigmoid", "sigmoid", (2.0, -1.0)),
    ]
    given = [{"scores": s, "output": k, "activation": a, "scale": c} for s, k, a, c in cases]
    each = "(one) => { about = one; return probabilities(one.scores); }"
    script = f"let about; {function} console.log(JSON.stringify({json.dumps(given)}.map({each})))"
    shown = json.loads(subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True).stdout)
    for row, (scores, kind, activation, scale) in zip(shown, cases, strict=True):
        np.testing.assert_allclose(row, read_output(scores, kind, activation, scale)[1], rtol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stated", "kept"),
    [("sigmoid", ("logits", "sigmoid")), ("logits", ("logits", "softmax")), (None, ("logits", None))],
)
def test_a_stated_kind_survives_another_export(
    stated: str | None, kept: tuple[str, str | None], tmp_path: Path
) -> None:
    """Five logits of which the graph says nothing; the second export is not told."""
    first = export(write(tmp_path / "net.onnx", 5, []), tmp_path / "first.onnx", output_kind=stated).path
    again = export(first, tmp_path / "again.onnx").contract
    assert (again.output, again.activation) == kept
    told = export(first, tmp_path / "told.onnx", output_kind="sigmoid").contract
    assert told.activation == "sigmoid"
