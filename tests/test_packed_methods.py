"""A method of one pass in one file: the engine's map, class, count and record, whatever the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from conftest import FlatLayer, Tiny, correlation
from torch import nn

import ortcam
from ortcam.errors import LayerError, OptionError
from ortcam.explain.explainer import ModelExplainer
from ortcam.exporters import export
from ortcam.graph import tails
from ortcam.methods import METHODS, make_method

CLOSE = 1e-4  # of a map in [0,1]: float32 sums in another order; up to 4e-5 was seen
CASES: list[tuple[str, dict[str, str]]] = [
    ("cam", {}),
    ("recipro-cam", {}),
    ("recipro-cam", {"kernel": "gaussian", "score": "logit"}),
    ("ablation-cam", {}),
    ("eigen-cam", {}),
    ("eigen-cam", {"centred": "no"}),
    ("fused", {"passes": "0"}),
]
TARGETS = [3, 1]


@pytest.fixture(scope="module")
def first(models: Path) -> Path:
    """Channels first, 16 x 8 x 8; some channels are zero."""
    return export(Tiny().eval(), models / "first.onnx", preprocess="imagenet", input_size=32).path


@pytest.fixture(scope="module")
def last(models: Path) -> Path:
    """Channels last, 8 x 12 x 24, not square."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 24, 5, 5), nn.Linear(24, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            maps = torch.relu(self.conv(x).permute(0, 2, 3, 1))
            scores: torch.Tensor = self.fc(maps.mean((1, 2)))
            return 6 * scores

    path = models / "last.onnx"
    report = export(Last().eval(), path, preprocess="imagenet", input_size=(40, 60), output_kind="logits")
    assert report.contract.activations_layout == "NHWC"
    return report.path


def assert_as_engine(
    model: Path, photo: Path, path: Path, method: Any, layer: str | None = None, **options: Any
) -> ortcam.PackedExplanation:
    """Pack the model; two targets and the top class have the engine's map, count and record."""
    ortcam.pack(model, path, method=method, verify=False, layer=layer, **options)
    explainer, engine = ortcam.PackedExplainer(path, provider="cpu"), ModelExplainer(model, method, "cpu", layer=layer)
    for targets in (None, TARGETS):
        packed, expected = explainer.explain(photo, targets=targets), engine.explain(photo, targets=targets)
        assert [one.index for one in packed.targets] == [one.index for one in expected.targets]
        assert packed.scored == expected.scored
        assert packed.errors == (None,) * len(packed.targets)
        stages = {key: value for key, value in expected.provenance.method.items() if key == "stages"}
        assert packed.provenance.method == method.describe()
        assert expected.provenance.method == method.describe() | stages
        for ours, theirs in zip(packed.maps, expected.maps, strict=True):
            assert np.abs(ours - theirs).max() <= CLOSE
            if theirs.std() > 0:
                assert correlation(ours, theirs) >= 0.9999
    assert expected.maps[0].std() > 0.01, "a map this flat would prove nothing"
    return packed


@pytest.mark.parametrize("source", ["first", pytest.param("last", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.filterwarnings("ignore:the map of class:ortcam.OrtcamWarning")  # of Ablation-CAM, as the engine's
def test_as_the_engine(
    name: str,
    options: dict[str, str],
    source: str,
    photos: dict[str, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    model = request.getfixturevalue(source)
    packed = assert_as_engine(model, photos["chelsea"], tmp_path / "a.onnx", make_method(name, options))
    packed.save(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert record["method"] == {"name": name, **make_method(name, options).describe()}
    assert [target["error"] for target in record["targets"]] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_trained_network(
    name: str, options: dict[str, str], lite0_file: Path, photos: dict[str, Path], tmp_path: Path
) -> None:
    method = make_method(name, options)
    for photo in ("chelsea", "coffee", "imagenet_03"):
        assert_as_engine(lite0_file, photos[photo], tmp_path / "a.onnx", method)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "copies"), [(None, 1), (7, 6), (2, 0)])
def test_tails_of_an_earlier_layer(
    batch_size: int | None, copies: int, resnet18: nn.Module, photos: dict[str, Path], tmp_path: Path
) -> None:
    """All 36 tails at once, in six copies of the nodes, or in a Loop; the weights are in the file once."""
    model = export(resnet18, tmp_path / "a.onnx", preprocess="imagenet", input_size=96, layer="layer3").path
    method = make_method("recipro-cam", {"score": "logit"})
    assert_as_engine(model, photos["chelsea"], tmp_path / "b.onnx", method, batch_size=batch_size, raw=False)
    proto = onnx.load(tmp_path / "b.onnx")
    kinds = [node.op_type for node in proto.graph.node]
    own = [node.op_type for node in onnx.load(model).graph.node].count("Conv")
    assert kinds.count("Loop") == (copies == 0)
    assert kinds.count("Conv") == own + 5 * copies  # layer4 of a ResNet-18 has five convolutions
    assert (tmp_path / "b.onnx").stat().st_size <= model.stat().st_size + 200_000
    assert [opset.domain for opset in proto.opset_import] == [""]


@pytest.mark.slow
def test_a_transformer_of_one_image_a_batch(photos: dict[str, Path], tmp_path: Path) -> None:
    """The patches of a sequence are changed, and the class token stays. A batch of 1 puts 24 tails into a Loop."""
    torch.manual_seed(0)
    module = timm.models.VisionTransformer(
        img_size=(64, 96), patch_size=16, embed_dim=48, depth=2, num_heads=2, num_classes=10
    ).eval()
    with torch.no_grad():
        module.head.weight.mul_(40)
    report = export(module, tmp_path / "vit.onnx", preprocess="imagenet", input_size=(64, 96), output_kind="logits")
    for name, options in (("recipro-cam", {"score": "logit", "kernel": "gaussian"}), ("eigen-cam", {})):
        assert_as_engine(report.path, photos["chelsea"], tmp_path / "a.onnx", make_method(name, options))


def test_a_model_of_four_images_a_batch(first: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    """Every run has four: the plain pass as well, and the last tails."""
    proto = onnx.load(first)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "four.onnx")
    for name in ("cam", "eigen-cam"):
        assert_as_engine(tmp_path / "four.onnx", photos["coffee"], tmp_path / "a.onnx", make_method(name))


@pytest.mark.slow
def test_a_single_score_has_two_classes(photos: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 12, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 1), nn.Sigmoid()
    ).eval()
    model = export(module, tmp_path / "a.onnx", preprocess="tf", input_size=50).path
    for name in ("cam", "recipro-cam"):
        path = ortcam.pack(model, tmp_path / "b.onnx", method=name).path
        both = ortcam.PackedExplainer(path).explain(photos["coffee"], targets=[0, 1])
        expected = ModelExplainer(model, make_method(name), "cpu").explain(photos["coffee"], targets=[0, 1])
        assert np.abs(both.maps - expected.maps).max() <= CLOSE
        assert [one.probability for one in both.targets] == pytest.approx(
            [one.probability for one in expected.targets], abs=1e-5
        )


def test_preprocessed_tensors(first: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    path = ortcam.pack(first, tmp_path / "a.onnx", method="cam", raw=False, target=2).path
    whole = ortcam.PackedExplainer(path).explain(photos["chelsea"])
    expected = ModelExplainer(first, make_method("cam"), "cpu").explain(photos["chelsea"])
    assert np.abs(whole.maps - expected.maps).max() <= CLOSE


# --- Bad input ---


def run(path: Path, image: np.ndarray, target: Any = (-1,)) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    made: list[np.ndarray] = session.run(None, {"image": image, "target": np.array(target, np.int64)})
    return made


def test_bad_input_is_an_error(first: Path, tmp_path: Path) -> None:
    path = ortcam.pack(first, tmp_path / "a.onnx", method="cam", verify=False).path
    photo = np.zeros((9, 9, 3), np.uint8)
    for target in [(10,), (-2,), (3, 10), ()]:
        with pytest.raises(Exception, match="ortcam: target is out of range; expected class indices from 0"):
            run(path, photo, target)
    with pytest.raises(Exception, match="ortcam: the image has no pixels"):
        run(path, photo[:0])
    tensors = ortcam.pack(first, tmp_path / "b.onnx", method="cam", raw=False, verify=False).path
    with pytest.raises(Exception, match="ortcam: the image has NaN or infinite values"):
        run(tensors, np.full((1, 3, 32, 32), np.nan, np.float32))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_layer_that_varies_nowhere(name: str, options: dict[str, str], tmp_path: Path) -> None:
    """The map is finite; that of Eigen-CAM, whose channels are centred, is zero."""
    model = export(FlatLayer(), tmp_path / "flat.onnx", preprocess="imagenet", input_size=16).path
    photo = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    path = ortcam.pack(model, tmp_path / "b.onnx", method=make_method(name, options), verify=False).path
    _, _, saliency, _, error = run(path, photo)
    assert np.isfinite(saliency).all()
    assert np.isnan(error).all()
    if options == {} and name == "eigen-cam":
        np.testing.assert_array_equal(saliency, 0)


class Squared(nn.Module):
    """A head that is not linear, whose layer has 16 x 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU())
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(self.features(x).mean((2, 3)) ** 2)
        return scores


def test_what_cannot_be_packed(first: Path, tmp_path: Path) -> None:
    """In one line, and no file is written."""
    path = tmp_path / "b.onnx"
    one_pass = {"cam", "recipro-cam", "ablation-cam", "eigen-cam"}
    with pytest.raises(OptionError, match="method fused runs 16 masked images, which cannot be packed; give passes=0"):
        ortcam.pack(first, path, method=ortcam.Fused())
    for name in METHODS.keys() - one_pass - {"score-cam", "fused"}:
        with pytest.raises(OptionError, match=f"method {name} cannot be packed; expected score-cam, cam, recipro-cam"):
            ortcam.pack(first, path, method=name)
    with pytest.raises(OptionError, match="method 'camm' is unknown"):
        ortcam.pack(first, path, method="camm")
    with pytest.raises(OptionError, match="got a preset with method cam; only score-cam has presets"):
        ortcam.pack(first, path, method="cam", preset="paper")
    with pytest.raises(OptionError, match="recipro-cam runs no masked images; leave budget"):
        ortcam.pack(first, path, method="recipro-cam", budget=8)
    squared = export(Squared().eval(), tmp_path / "a.onnx", preprocess="imagenet", input_size=32).path
    with pytest.raises(LayerError, match="not a pooling and a linear head, which cam needs"):
        ortcam.pack(squared, path, method="cam", verify=False)
    assert not path.exists()
    assert ortcam.pack(squared, path, method="recipro-cam").r == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_a_head_that_is_linear_for_some_photos_only(tmp_path: Path) -> None:
    """It is packed if it is linear for the synthetic photo, so the file checks each photo too."""

    class Bent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 3)
            with torch.no_grad():
                self.conv.weight.fill_(0.01)
                self.conv.bias.zero_()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = torch.relu(self.conv(x)).mean((2, 3))
            scores: torch.Tensor = self.fc(torch.minimum(pooled, torch.tensor(100.0)))
            return scores

    torch.manual_seed(0)
    model = export(Bent().eval(), tmp_path / "a.onnx", preprocess="raw", input_size=32, output_kind="logits").path
    path = ortcam.pack(model, tmp_path / "b.onnx", method="cam").path
    bright = np.full((32, 32, 3), 255, np.uint8)
    with pytest.raises(LayerError, match="do not add up over the places"):
        ModelExplainer(model, make_method("cam"), "cpu").explain(bright)
    with pytest.raises(Exception, match="ortcam: the scores do not add up over the places of the layer"):
        run(path, bright)


def test_a_file_without_a_method_is_of_score_cam(first: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    """An older ortcam wrote no method."""
    path = ortcam.pack(first, tmp_path / "a.onnx", budget=5, verify=False).path
    proto = onnx.load(path)
    (entry,) = [entry for entry in proto.metadata_props if entry.key == "ortcam.explainer"]
    facts = json.loads(entry.value)
    assert facts.pop("method") == {"name": "score-cam"}
    entry.value = json.dumps(facts)
    onnx.save(proto, path)
    assert ortcam.PackedExplainer(path).explain(photos["chelsea"]).provenance.method == {"name": "score-cam"}


def test_rows_at_once() -> None:
    """64 MB of features: 267 of EfficientNet-Lite0's last layer, at least one."""
    assert tails.rows_at_once((1280, 7, 7), 1280) == 267
    assert tails.rows_at_once((1280, 7, 7), 50) == 50
    assert tails.rows_at_once((512, 224, 224), 50176) == 1
