"""Translate files of Keras 2 for Keras 3.

Only the descriptions of layers are rewritten; the weights stay unchanged. An option that Keras 3 lacks is dropped if
its value does not change predictions; otherwise the file is refused.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ortcam.errors import ExportError
from ortcam.exporters.tensorflow import keras

SAVED_MODEL = (
    "save it with the Keras 2 that wrote it (tf_keras reads such files too): tf.saved_model.save(model, FOLDER), and "
    "give the folder"
)
# Layers that hold code, or the path of code; Keras refuses them as well, unless the user declares them safe.
CODE = {"Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper"}
_MODELS = {"Sequential", "Functional", "Model"}
_PACKAGES = {"", "keras", "tf_keras", "tensorflow", "builtins"}
_RENAMED = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
    "ThresholdedReLU": "ReLU",
}
_RENAMED_OPTIONS = {
    ("ThresholdedReLU", "theta"): "threshold",
    ("LeakyReLU", "alpha"): "negative_slope",
    ("InputLayer", "batch_input_shape"): "batch_shape",
}
# Where weights begin and how they are bound in training: the file has the weights.
_TRAINING = ("_initializer", "_regularizer", "_constraint")
# Options that Keras accepts for any layer, or reads without naming them in a signature.
_ALWAYS = {"name", "trainable", "dtype"}
# Options that Keras 3 dropped, with the values that do not change predictions; None for all values.
_DROPPED: dict[str, tuple[Any, ...] | None] = {
    "groups": (1,),
    "time_major": (False,),
    "ragged": (False, None),
    "sparse": (False, None),
    "dynamic": (False, None),
    "adjustment": (None,),
    "type_spec": (None,),
    "noise_shape": (None,),
    "keepdims": (False,),
    "data_format": (None, "channels_last"),
    "dilation_rate": (1, [1, 1]),
    "softmax_robust_masking": (False,),
    "optional": (False,),
    **dict.fromkeys(
        (
            "renorm", "renorm_clipping", "renorm_momentum", "fused", "virtual_batch_size", "synchronized", "batch_size",
            "rng_type", "trainable", "dtype", "input_shape", "batch_input_shape",
            "force_generator", "seed", "implementation", "unroll", "query_shape", "key_shape",
            "value_shape", "input_dim", "input_length", "input_dtype", "experimental_autocast",
        )
    ),
}  # fmt: skip


def is_old(version: str | None) -> bool:
    """Return whether a file of this `keras_version` is older than Keras 3; the first versions wrote no version."""
    return version is None or version.partition(".")[0] in ("0", "1", "2")


def modernise(config: Any, path: Path) -> Any:
    """Translate Keras 2's description of a model into a description that Keras 3 reads.

    Args:
        config: the JSON in the file.
        path: the file, for messages.

    Raises:
        ExportError: the description has an option that Keras 3 lacks and that changes predictions, or an operation that
            Keras 3 cannot read.
    """
    config = _with_named_layers(copy.deepcopy(config), itertools.count(1))
    for layer in list(_find_layers(config)):
        _refuse_operation(layer, path)
        if _is_of_keras(layer):
            _modernise_layer(layer, path)
    names = {name: name.replace("/", "_") for name in _find_names(config) if "/" in name}
    return _rename(config, names) if names and not set(names.values()) & set(_find_names(config)) else config


def _with_named_layers(tree: Any, numbers: Iterator[int]) -> Any:
    """Return a tree in which the layers of a Sequential have their own key, as since Keras 2.2.3."""
    if isinstance(tree, list):
        return [_with_named_layers(value, numbers) for value in tree]
    if not isinstance(tree, dict):
        return tree
    tree = {key: _with_named_layers(value, numbers) for key, value in tree.items()}
    if tree.get("class_name") == "Sequential" and isinstance(tree.get("config"), list):
        name = tree.get("name", f"sequential_{next(numbers)}")  # layers of a Functional have names
        tree["config"] = {"name": name, "layers": tree["config"]}
    return tree


def _find_layers(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if isinstance(tree.get("class_name"), str) and isinstance(tree.get("config"), dict):
            yield tree
        for key, value in tree.items():
            if key != "compile_config" and not key.endswith(_TRAINING):
                yield from _find_layers(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _find_layers(value)


def _find_names(tree: Any) -> Iterator[str]:
    for layer in _find_layers(tree):
        name = layer["config"].get("name")
        if isinstance(name, str):
            yield name


def _rename(tree: Any, names: Mapping[str, str]) -> Any:
    """Return a tree with layers renamed, because Keras 3 does not allow slashes in their names."""
    if isinstance(tree, dict):
        return {key: _rename(value, names) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_rename(value, names) for value in tree]
    return names.get(tree, tree) if isinstance(tree, str) else tree


def _refuse_operation(layer: Mapping[str, Any], path: Path) -> None:
    if layer["class_name"] in ("TFOpLambda", "SlicingOpLambda", "ClassMethod", "TensorFlowOpLayer"):
        function = layer["config"].get("function", layer["config"].get("name"))
        raise ExportError(
            f"{path} has the TensorFlow operation {function} among its layers, which Keras 3 cannot read; {SAVED_MODEL}"
        )


def _is_of_keras(layer: Mapping[str, Any]) -> bool:
    """Return whether a layer belongs to Keras, by its class and its module."""
    module, registered = layer.get("module") or "", layer.get("registered_name") or ""
    return _class_of(layer) is not None and module.partition(".")[0] in _PACKAGES and ">" not in registered


def _class_of(layer: Mapping[str, Any]) -> Any:
    name = _RENAMED.get(layer["class_name"], layer["class_name"])
    if name in CODE:
        return None
    if name in _MODELS:
        return keras.Sequential if name == "Sequential" else keras.Model
    found = getattr(keras.layers, name, None)
    return found if isinstance(found, type) and issubclass(found, keras.Layer) else None


def _modernise_layer(layer: dict[str, Any], path: Path) -> None:
    old, kind = layer["class_name"], _class_of(layer)
    layer.pop("build_config", None)
    layer |= {"class_name": _RENAMED.get(old, old), "module": _module_of(kind), "registered_name": None}
    if kind is keras.Model:
        layer |= {"class_name": "Functional", "registered_name": "Functional"}
    config = layer["config"]
    policy = config.get("dtype")
    if isinstance(policy, dict):  # {"class_name": "Policy", "config": {"name": "mixed_float16"}}
        config["dtype"] = policy.get("config", {}).get("name", "float32")
    if old == "Sequential":
        config["layers"] = _with_input(config["layers"])
    if old in _MODELS:
        for key in (
            "input_layers",
            "output_layers",
        ):  # one tensor, not a list of one, which a Sequential cannot pass on
            if isinstance(config.get(key), list) and len(config[key]) == 1:
                (config[key],) = config[key]
        return
    if isinstance(config.get("axis"), list) and len(config["axis"]) == 1:
        (config["axis"],) = config["axis"]
    parameters = inspect.signature(kind.__init__).parameters
    known = {*parameters, *(_ALWAYS if "kwargs" in parameters else ())}
    for key in list(config):
        if key.endswith(_TRAINING):
            del config[key]
        elif (old, key) in _RENAMED_OPTIONS:
            config[_RENAMED_OPTIONS[old, key]] = config.pop(key)
        elif key not in known:
            _refuse_change(old, key, config.pop(key), path)


def _module_of(kind: Any) -> str:
    if kind is keras.Model:
        return "keras.src.models.functional"
    return "keras" if kind is keras.Sequential else "keras.layers"


_OF_KERAS = {"module": "keras.layers", "registered_name": None}


def _with_input(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the layers of a Sequential with an input layer. Older files state the input's shape in the first layer."""
    if not layers or layers[0]["class_name"] == "InputLayer":
        return layers
    shape = layers[0]["config"].get("batch_input_shape")
    if shape is None:
        return layers
    name = f"{layers[0]['config'].get('name', 'sequential')}_input"
    return [{"class_name": "InputLayer", "config": {"batch_shape": shape, "name": name}, **_OF_KERAS}, *layers]


def _refuse_change(name: str, option: str, value: Any, path: Path) -> None:
    """Refuse a file with an option that Keras 3 dropped, if its value changes the result of the layer."""
    neutral = _DROPPED.get(option, ())
    if neutral is None or value in neutral:
        return
    raise ExportError(f"{path} has a {name} layer with {option}={value!r}, which Keras 3 lacks; {SAVED_MODEL}")
