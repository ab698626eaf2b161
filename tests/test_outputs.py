"""What models return: dicts, tuples, embeddings beside the scores, maps and labels. The class scores are found."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from strangers import onnx_models, torch_models

import ortcam
from ortcam.errors import ExportError, OptionError
from ortcam.exporters import ExportReport, export
from ortcam.exporters.pytorch_outputs import find_leaves

X = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
PHOTO = np.random.default_rng(1).integers(0, 255, (40, 40, 3), dtype=np.uint8)


def scores_of(report: ExportReport) -> np.ndarray:
    scores: np.ndarray = ort.InferenceSession(report.path).run(None, {"image": X})[0]
    return scores


# --- PyTorch modules ---


@pytest.mark.parametrize(
    ("form", "taken"),
    [
        ("dict", "'logits' is taken for the class scores, not features;"),
        ("tuple", "'1' is taken for the class scores, not 0;"),
        ("with_none", None),
        ("dataclass", None),
        ("spatial", None),
        ("squeezed", None),
    ],
)
def test_the_scores_of_a_module(form: str, taken: str | None, tmp_path: Path) -> None:
    module = torch_models.Outputs(form).eval()
    report = export(module, tmp_path / "net.onnx", input_size=32)
    with torch.no_grad():
        expected = module.head(module.features(torch.from_numpy(X)).mean((2, 3))).numpy()
    assert np.allclose(scores_of(report), expected[:, :1] if form == "squeezed" else expected, atol=1e-5)
    assert (report.layer, report.shape) == ("features", (32, 8, 8)), "the module's own names"
    assert report.agreement.activations is not None
    notices = [notice for notice in report.notices if "is taken" in notice]
    assert len(notices) == (taken is not None)
    assert taken is None or notices[0].startswith(taken)
    assert not module._forward_hooks, "the module is as it was"


def test_an_entry_by_key_or_index(tmp_path: Path) -> None:
    module = torch_models.dict_output()
    for wanted in ("features", 0):
        report = export(module, tmp_path / "net.onnx", input_size=32, output_name=wanted)
        assert scores_of(report).shape == (2, 32)
    with pytest.raises(OptionError, match="Outputs has no output 'logit'; expected features, logits; nearest: logits"):
        export(module, tmp_path / "net.onnx", input_size=32, output_name="logit")


class Auxiliary(torch_models.Outputs):
    """Scores and those of an auxiliary head, as Inception has them while it is trained."""

    def forward(self, x: torch.Tensor) -> Any:
        pooled = self.features(x).mean((2, 3))
        scores, auxiliary = self.head(pooled), self.head(pooled * 2)
        return (scores, auxiliary) if self.form == "tuple" else {"aux_logits": auxiliary, "logits": scores}


@pytest.mark.slow
def test_an_auxiliary_head_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"returns 0 \[\?,7\]; 1 \[\?,7\]; ortcam cannot tell .* --output-name"):
        export(Auxiliary("tuple").eval(), tmp_path / "net.onnx", input_size=32)
    report = export(Auxiliary("dict").eval(), tmp_path / "net.onnx", input_size=32)
    assert any("'logits' is taken for the class scores, not aux_logits" in notice for notice in report.notices)


def test_what_is_looked_into() -> None:
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    pair = namedtuple("pair", "logits hidden")
    assert list(find_leaves(a)) == ["output"]
    assert list(find_leaves(pair(a, (b, None)))) == ["logits", "hidden.0", "hidden.1"]
    assert list(find_leaves(OrderedDict(out={"cls": [a, b]}))) == ["out.cls.0", "out.cls.1"]
    assert list(find_leaves(torch_models.Output(a))) == ["logits", "hidden_states"]
    assert list(find_leaves(SimpleNamespace(scores=a))) == ["scores"]


@pytest.mark.slow
def test_a_program_that_returns_a_dict(tmp_path: Path) -> None:
    module, shapes = torch_models.dict_output(), ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (torch.from_numpy(X),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    report = export(tmp_path / "net.pt2", tmp_path / "net.onnx")
    assert any("'logits' is taken for the class scores, not features" in notice for notice in report.notices)
    with torch.no_grad():
        assert np.allclose(scores_of(report), module(torch.from_numpy(X))["logits"], atol=1e-5)
    chosen = export(tmp_path / "net.pt2", tmp_path / "net.onnx", output_name="features")
    assert scores_of(chosen).shape == (2, 32)


class TwoArguments(torch_models.Outputs):
    def forward(self, x: torch.Tensor, meta: torch.Tensor) -> Any:
        return super().forward(x)


def test_a_module_of_two_inputs(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match="takes 2 inputs: 'x', 'meta'; expected one, the image: export a model around"
    ):
        export(TwoArguments("dict").eval(), tmp_path / "net.onnx", input_size=32)


# --- ONNX files ---

LABELS = ["ant", "bee", "cat", "dog"]
ML = "ai.onnx.ml"
SOFTMAX = helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1)
ARGMAX = helper.make_node("ArgMax", ["probabilities"], ["index"], axis=1, keepdims=0)
ENCODER = helper.make_node("LabelEncoder", ["index"], ["label"], domain=ML, keys_int64s=range(4), values_strings=LABELS)
FEATURES = [*onnx_models.BODY, SOFTMAX]


def output(name: str, dims: list[Any], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def maps(name: str, key: int = TensorProto.STRING) -> onnx.ValueInfoProto:
    inner = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    return helper.make_value_info(name, helper.make_sequence_type_proto(inner))


def zip_map(**labels: Any) -> onnx.NodeProto:
    return helper.make_node("ZipMap", ["probabilities"], ["maps"], domain=ML, **labels)


LABEL = output("label", ["n"], TensorProto.STRING)
PROBABILITIES, EMBEDDING = output("probabilities", ["n", 4]), output("embedding", ["n", 8])
NAMES = {"names": np.array(LABELS, object), "flat": np.array([-1])}


def expected_probabilities() -> np.ndarray:
    proto = helper.make_model(
        helper.make_graph(FEATURES, "graph", [onnx_models.IMAGE], [PROBABILITIES], [
            numpy_helper.from_array(value, name) for name, value in onnx_models.WEIGHTS.items()
        ]), opset_imports=[helper.make_opsetid("", 13)], ir_version=8,
    )  # fmt: skip
    probabilities: np.ndarray = ort.InferenceSession(proto.SerializeToString()).run(None, {"image in": X})[0]
    return probabilities


# Nodes behind the probabilities, outputs, opset, that of ai.onnx.ml, more weights; and the labels that are found.
CLASSICAL: dict[str, tuple[list[Any], list[Any], int, int, dict[str, Any], list[str] | None]] = {
    "a label and maps": (
        [zip_map(classlabels_strings=LABELS), ARGMAX, ENCODER], [LABEL, maps("maps")], 11, 3, {}, LABELS),
    "maps of indices": ([zip_map(classlabels_int64s=range(4))], [maps("maps", TensorProto.INT64)], 13, 3, {}, None),
    "maps of numbers": (
        [zip_map(classlabels_int64s=[3, 5, 7, 9])], [maps("maps", TensorProto.INT64)], 18, 3, {}, ["3", "5", "7", "9"]),
    "an old encoder": (
        [ARGMAX, helper.make_node("LabelEncoder", ["index"], ["label"], domain=ML, classes_strings=LABELS)],
        [LABEL, PROBABILITIES], 9, 1, {}, LABELS),
    "an encoder of tensors": (
        [ARGMAX, helper.make_node("LabelEncoder", ["index"], ["label"], domain=ML,
                                  keys_tensor=numpy_helper.from_array(np.arange(4)),
                                  values_tensor=helper.make_tensor("", TensorProto.STRING, [4], LABELS))],
        [LABEL, PROBABILITIES], 18, 4, {}, LABELS),
    "an array of names": (
        [ARGMAX, helper.make_node("ArrayFeatureExtractor", ["names", "index"], ["name"], domain=ML),
         helper.make_node("Reshape", ["name", "flat"], ["label"])], [LABEL, PROBABILITIES], 15, 1, NAMES, LABELS),
    "names alone": (
        [ARGMAX, helper.make_node("Gather", ["names", "index"], ["label"])], [LABEL], 18, 3, NAMES, LABELS),
    "the largest alone": (
        [helper.make_node("TopK", ["probabilities", "two"], ["largest", "places"], axis=1)],
        [output("largest", ["n", 2]), output("places", ["n", 2], TensorProto.INT64)], 13, 3,
        {"two": np.array([2])}, None),
    "a sequence": (
        [helper.make_node("SequenceConstruct", ["embedding", "probabilities"], ["both"])],
        [helper.make_value_info("both", helper.make_sequence_type_proto(
            helper.make_tensor_type_proto(TensorProto.FLOAT, None)))], 15, 3, {}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSICAL)
def test_maps_labels_and_sequences(name: str, tmp_path: Path) -> None:
    nodes, outputs, opset, domain, more, labels = CLASSICAL[name]
    path = tmp_path / "plain.onnx"
    onnx_models.save(path, [*FEATURES, *nodes], outputs, opset, more, ((ML, domain),))
    report = export(path, tmp_path / "cam.onnx")
    assert report.contract.labels == (None if labels is None else tuple(labels))
    assert report.contract.output == "probabilities"
    assert np.allclose(scores_of(report), expected_probabilities(), atol=1e-6)
    assert not any(entry.domain for entry in onnx.load(report.path).opset_import)


def test_the_users_labels_win(tmp_path: Path) -> None:
    onnx_models.write_models(tmp_path)
    report = export(tmp_path / "zipmap.onnx", tmp_path / "cam.onnx", preprocess="tf")
    assert report.contract.labels == tuple(LABELS)
    assert ortcam.ScoreCAM(report.path).explain(PHOTO).targets[0].label in LABELS
    named = export(tmp_path / "zipmap.onnx", tmp_path / "cam.onnx", labels=list("abcd"))
    assert named.contract.labels == tuple("abcd")


def test_an_embedding_before_the_scores(tmp_path: Path) -> None:
    onnx_models.write_models(tmp_path)
    report = export(tmp_path / "embedding-first.onnx", tmp_path / "cam.onnx")
    assert any("'scores' is taken for the class scores, not embedding" in notice for notice in report.notices)
    session = ort.InferenceSession(tmp_path / "embedding-first.onnx")
    assert np.allclose(scores_of(report), session.run(["scores"], {"image in": X})[0], atol=1e-6)


def head(name: str, weights: str) -> onnx.NodeProto:
    return helper.make_node("Gemm", ["embedding", weights], [name])


def test_which_of_several_outputs(tmp_path: Path) -> None:
    path = tmp_path / "plain.onnx"

    def taken(nodes: list[Any], outputs: list[Any], more: dict[str, Any] | None = None, **options: Any) -> str | None:
        onnx_models.save(path, nodes, outputs, 13, {"w3": onnx_models.weights(8, 4), **(more or {})})
        notices = export(path, tmp_path / "cam.onnx", **options).notices
        return next((notice.split("'")[1] for notice in notices if "is taken" in notice), None)

    best = helper.make_node("ReduceMax", ["probabilities"], ["confidence"], axes=[1], keepdims=0)
    two = [*onnx_models.BODY[:-1], head("output_0", "w2"), head("output_1", "w3")]
    outputs = [output("output_0", ["n", 4]), output("output_1", ["n", 4])]
    with pytest.raises(ExportError, match=r"returns output_0 \[\?,4\]; output_1 \[\?,4\]; ortcam cannot tell"):
        taken(two, outputs)
    assert taken(two, outputs, output_name="-1") is None
    # The one with a score for each label; the one that is computed from all others; scores, not the largest of them.
    more = {"w3": onnx_models.weights(8, 6)}
    assert taken(two, [outputs[0], output("output_1", ["n", 6])], more, labels=list("abcdef")) == "output_1"
    assert taken(FEATURES, [EMBEDDING, output("scores", ["n", 4]), PROBABILITIES]) == "probabilities"
    assert taken([*FEATURES, best], [output("confidence", ["n"]), PROBABILITIES]) == "probabilities"
    # An embedding as long as the scores.
    square = {"w2": onnx_models.weights(8, 8), "b2": onnx_models.weights(8)}
    assert taken(onnx_models.BODY, [output("scores", ["n", 8]), EMBEDDING], square, labels=list("abcdefgh")) == "scores"


@pytest.mark.parametrize(("axes", "dims", "kind"), [([1], ["n"], "sigmoid"), ([2, 3], ["n", 1, 1, 1], "logits")])
def test_scores_of_other_ranks(axes: list[int], dims: list[Any], kind: str, tmp_path: Path) -> None:
    """One score [batch] of a sigmoid, and scores [batch,1,1,1]."""
    tail = [helper.make_node("Squeeze" if kind == "sigmoid" else "Unsqueeze", ["scores", "axes"], ["turned"])]
    if kind == "sigmoid":
        tail.append(helper.make_node("Sigmoid", ["turned"], ["y"]))
    name = tail[-1].output[0]
    more = {"w2": onnx_models.weights(8, 1), "b2": onnx_models.weights(1), "axes": np.array(axes)}
    path = tmp_path / "plain.onnx"
    onnx_models.save(path, [*onnx_models.BODY, *tail], [output(name, dims)], 13, more)
    report = export(path, tmp_path / "cam.onnx", preprocess="tf")
    assert report.contract.output == kind
    expected = ort.InferenceSession(path).run(None, {"image in": X})[0].reshape(2, 1)
    assert np.allclose(scores_of(report), expected, atol=1e-6)
    probability = ortcam.ScoreCAM(report.path).explain(PHOTO, targets=0).targets[0].probability
    ortcam.pack(report.path, tmp_path / "packed.onnx")
    packed = ortcam.PackedExplainer(tmp_path / "packed.onnx").explain(PHOTO, targets=0).targets[0].probability
    assert packed == pytest.approx(probability, abs=1e-4)


def test_a_loss_beside_the_scores_is_no_score(tmp_path: Path) -> None:
    """A single number [] computed from the scores: ONNX Runtime shows it as it shows an unknown shape."""
    path = tmp_path / "loss.onnx"
    onnx_models.write_models(tmp_path)
    proto = onnx.load(tmp_path / "embedding-first.onnx")
    proto.graph.node.append(helper.make_node("ReduceMean", ["scores"], ["loss"], keepdims=0))
    del proto.graph.output[0]
    proto.graph.output.insert(0, helper.make_tensor_value_info("loss", TensorProto.FLOAT, []))
    onnx.save(proto, path)
    assert export(path, tmp_path / "cam.onnx", preprocess="tf").contract.verified["logits_relative_error"] == 0
    assert ortcam.CamModel(tmp_path / "cam.onnx").classes == 4


def test_sequences_inside_a_graph_stay(tmp_path: Path) -> None:
    onnx_models.write_models(tmp_path)
    proto = onnx.load(tmp_path / "embedding-first.onnx")
    nodes = list(proto.graph.node)
    nodes[1].input[0] = "joined"
    split = helper.make_node("SplitToSequence", ["c"], ["parts"], axis=1, keepdims=1)
    joined = helper.make_node("ConcatFromSequence", ["parts"], ["joined"], axis=1)
    del proto.graph.node[:]
    proto.graph.node.extend([nodes[0], split, joined, *nodes[1:]])
    onnx.save(proto, tmp_path / "parts.onnx")
    export(tmp_path / "embedding-first.onnx", tmp_path / "plain.cam.onnx", preprocess="tf", output_kind="logits")
    export(tmp_path / "parts.onnx", tmp_path / "parts.cam.onnx", preprocess="tf", output_kind="logits")
    photo = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    maps = [ortcam.ScoreCAM(tmp_path / f"{name}.cam.onnx").explain(photo, 0).raw_maps for name in ("plain", "parts")]
    assert np.allclose(*maps, atol=1e-5)


def test_the_largest_score_alone_is_refused(tmp_path: Path) -> None:
    class Largest(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            shares = self.fc(self.conv(x).relu().mean((2, 3))).softmax(1)
            return shares.max(1).values, shares.argmax(1)

    with pytest.raises(ExportError, match="returns only the largest of its scores"):
        export(Largest().eval(), tmp_path / "x.onnx", input_size=32)
