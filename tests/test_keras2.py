"""Files of Keras 2: what is exported returns the scores of the same weights in Keras 3."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import onnxruntime as ort
import pytest
from keras import layers

from ortcam.errors import ExportError
from ortcam.exporters import export

Edit = Callable[[dict[str, Any]], None]


def trained(*parts: Any, side: int = 24) -> keras.Model:
    """A model whose every weight matters: batch statistics are not 0 and 1."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((side, side, 3)), *parts])
    random = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, value.shape) for value in layer.get_weights()])
    return model


def teachable_machine() -> keras.Model:
    """What no-code trainers write: a Functional in a Sequential for the features, a Sequential for the classes."""
    image = keras.Input((24, 24, 3))
    x = layers.Conv2D(8, 3, 2, use_bias=False, name="Conv1")(image)
    x = layers.ReLU(6.0, name="Conv1_relu")(layers.BatchNormalization(name="bn_Conv1")(x))
    x = layers.DepthwiseConv2D(3, use_bias=False, name="expanded_conv_depthwise")(x)
    x = layers.ReLU(6.0, name="out_relu")(layers.BatchNormalization(name="expanded_conv_bn")(x))
    inner = keras.Model(image, x, name="mobilenet")
    features = keras.Sequential([inner, layers.GlobalAveragePooling2D()], name="sequential")
    head = keras.Sequential([layers.Dense(16, "relu"), layers.Dense(3, "softmax", use_bias=False)], name="head")
    return trained(features, head)


def as_keras_2(tree: Any, edit: Edit, lists: bool = False) -> Any:
    """Return a description of Keras 3 in the words of Keras 2, and every layer edited."""
    if isinstance(tree, list):
        return [as_keras_2(value, edit, lists) for value in tree]
    if not isinstance(tree, dict):
        return tree
    tree = {
        key: as_keras_2(value, edit, lists)
        for key, value in tree.items()
        if key not in ("module", "registered_name", "build_config", "quantization_config")
    }
    config = tree.get("config")
    if isinstance(config, dict) and "class_name" in tree:
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = config["dtype"]["config"]["name"]
        if "batch_shape" in config:
            config["batch_input_shape"] = config.pop("batch_shape")
        for key in ("input_layers", "output_layers"):
            if key in config and isinstance(config[key][0], str):
                config[key] = [config[key]]
        if tree["class_name"] in ("DepthwiseConv2D", "SeparableConv2D"):
            config |= {"groups": 1, "kernel_regularizer": None}
        if tree["class_name"] == "BatchNormalization":
            config["axis"] = [3]
            config.pop("synchronized", None), config.pop("renorm", None)
        for node in tree.get("inbound_nodes", []):
            assert isinstance(node, dict)
        if "inbound_nodes" in tree:
            tree["inbound_nodes"] = [
                [[*node["args"][0]["config"]["keras_history"], {}]] for node in tree["inbound_nodes"]
            ]
        edit(tree)
        if tree["class_name"] == "Sequential" and config["layers"][0]["class_name"] == "InputLayer":
            first = config["layers"].pop(0)["config"]["batch_input_shape"]
            if config["layers"][0]["class_name"] not in ("Functional", "Sequential"):
                config["layers"][0]["config"]["batch_input_shape"] = first
        if tree["class_name"] == "Sequential" and lists:
            tree["config"] = config["layers"]
    return tree


def nothing(layer: dict[str, Any]) -> None:
    pass


def save(model: keras.Model, path: Path, edit: Edit = nothing, version: str = "2.4.0", lists: bool = False) -> Path:
    model.save(path)
    with h5py.File(path, "r+") as file:
        config = as_keras_2(json.loads(file.attrs["model_config"]), edit, lists)
        file.attrs["model_config"], file.attrs["keras_version"] = json.dumps(config), version
    return path


def assert_same_scores(source: Path, model: keras.Model, layer: str | None = None) -> None:
    report = export(source, source.with_suffix(".onnx"))
    assert layer in (None, report.layer)
    images = np.random.default_rng(1).standard_normal((2, *model.input_shape[1:])).astype(np.float32)
    ours = ort.InferenceSession(report.path).run(None, {"image": images})[0]
    theirs = model(images, training=False).numpy()
    assert theirs.std(axis=0).min() > 1e-4, "scores that are the same for all images would prove nothing"
    assert np.abs(ours - theirs).max() < 1e-5  # float32


@pytest.mark.parametrize("lists", [False, True], ids=["2.4", "2.1"])
def test_what_no_code_trainers_write(lists: bool, tmp_path: Path) -> None:
    model = teachable_machine()
    source = save(model, tmp_path / "keras_model.h5", lists=lists)
    with h5py.File(source) as file:
        assert '"groups": 1' in file.attrs["model_config"]
    with pytest.raises((TypeError, ValueError)):  # what this is about
        keras.saving.load_model(source, compile=False)
    assert_same_scores(source, model, "sequential/mobilenet/out_relu" if not lists else None)


def test_options_and_names_that_keras_3_lacks(tmp_path: Path) -> None:
    def edit(layer: dict[str, Any]) -> None:
        kind, config = layer["class_name"], layer["config"]
        if kind == "LeakyReLU":
            config["alpha"] = config.pop("negative_slope")
        elif kind == "ReLU":
            layer["class_name"], layer["config"] = "ThresholdedReLU", {"name": config["name"], "theta": 0.25}
        elif kind == "BatchNormalization":
            layer["class_name"] = "BatchNormalizationV1"
            config |= {"renorm": False, "fused": True, "virtual_batch_size": None, "adjustment": None}
            config |= {"gamma_initializer": {"class_name": "Constant", "module": "tensorflow.python.ops.init_ops_v2"}}
        elif kind == "SpatialDropout2D":
            config["trainable"] = True
        elif kind == "RandomFlip":
            config["rng_type"] = "stateful"
        elif kind == "Conv2D":
            config["kernel_regularizer"] = {"class_name": "L2", "config": {"l2": 0.01}}

    model = trained(
        layers.RandomFlip(name="flip"),
        layers.Conv2D(8, 3, name="Conv_slash"),
        layers.BatchNormalization(),
        layers.LeakyReLU(0.3),
        layers.SeparableConv2D(8, 3),
        layers.SpatialDropout2D(0.2),
        layers.ReLU(threshold=0.25),
        layers.GlobalAveragePooling2D(),
        layers.Dense(5),
    )

    def with_slash(layer: dict[str, Any]) -> None:
        edit(layer)
        if layer["config"].get("name") == "Conv_slash":
            layer["config"]["name"] = "Conv/slash"

    source = save(model, tmp_path / "old.h5", with_slash)
    assert_same_scores(source, model)
    assert export(source, tmp_path / "conv.onnx", layer="Conv_slash").shape == (8, 22, 22)


def test_the_zip_of_keras_2(tmp_path: Path) -> None:
    """Keras 2.12 to 2.15 wrote .keras files too, whose weights lie under another name."""
    model = teachable_machine()
    model.save(tmp_path / "new.keras")
    with zipfile.ZipFile(tmp_path / "new.keras") as archive:
        config = as_keras_2(json.loads(archive.read("config.json")), nothing)
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts |= {"config.json": json.dumps(config).encode(), "metadata.json": b'{"keras_version": "2.15.0"}'}
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert_same_scores(tmp_path / "old.keras", model, "sequential/mobilenet/out_relu")


def grouped(layer: dict[str, Any]) -> None:
    if layer["class_name"] == "DepthwiseConv2D":
        layer["config"]["groups"] = 2


def unknown_option(layer: dict[str, Any]) -> None:
    if layer["class_name"] == "ReLU":
        layer["config"]["leak"] = 0.5


def operation(layer: dict[str, Any]) -> None:
    if layer["class_name"] == "ReLU":
        layer["class_name"], layer["config"]["function"] = "TFOpLambda", "math.truediv"


def lambda_layer(layer: dict[str, Any]) -> None:
    if layer["class_name"] == "ReLU":
        layer["class_name"] = "Lambda"


def custom(layer: dict[str, Any]) -> None:
    if layer["class_name"] == "ReLU":
        layer |= {"class_name": "Mish", "module": "my_layers"}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            grouped,
            r"DepthwiseConv2D layer with groups=2, which Keras 3 lacks; .*tf\.saved_model\.save\(model, FOLDER\)",
        ),
        (unknown_option, "ReLU layer with leak=0.5, which Keras 3 lacks"),
        (operation, r"the TensorFlow operation math\.truediv among its layers, .*tf\.saved_model\.save"),
        (lambda_layer, "has a Lambda layer, whose code in the file is not run"),
        (custom, r"the custom object my_layers\.Mish"),
    ],
)
def test_what_is_refused(edit: Edit, message: str, tmp_path: Path) -> None:
    source = save(teachable_machine(), tmp_path / "keras_model.h5", edit)
    with pytest.raises(ExportError, match=message) as caught:
        export(source, tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
