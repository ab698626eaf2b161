"""Convert Keras models (.keras and .h5 files, and models in memory): TensorFlow traces, tf2onnx converts."""

from __future__ import annotations

import contextlib
import functools
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import h5py
from numpy.typing import NDArray

from ortcam.errors import ExportError, LayerError, OptionError, nearest
from ortcam.exporters.adopt import ForeignGraph, adopt
from ortcam.exporters.interface import explain_inputs
from ortcam.exporters.keras2 import CODE, SAVED_MODEL, is_old, modernise
from ortcam.exporters.quiet import temporary_folder
from ortcam.exporters.sources import Converted, SourceOptions
from ortcam.exporters.tensorflow import (
    VERSIONS,
    Traced,
    keras,
    quiet,
    reason,
    show_maps,
    sized,
    tf,
    to_numpy,
    to_onnx,
)

BUILDER = "give FILE.py:CALLABLE that builds the model, and the weights with --weights"


def convert_keras_file(path: Path, options: SourceOptions) -> Converted:
    """Turn a .keras or .h5 file into an ONNX graph with a symbolic batch.

    Raises:
        ExportError: the file is not a Keras model, holds code that `options.allow_unsafe` does not allow, or cannot be
            converted.
        LayerError: the target layer is missing.
        OptionError: weights were given; the file has its own.
    """
    if options.weights is not None:
        raise OptionError(f"got weights, but {path} has its own; leave them out: weights are for models built by code")
    config, version = _read_config(path)
    old = is_old(version)
    newer = modernise(config, path) if old else config
    if not options.allow_unsafe:
        _refuse_code(newer, path)
    _refuse_other_backends()
    try:
        with _described_as(newer, path) if newer != config else contextlib.nullcontext(path) as readable, quiet():
            model = keras.saving.load_model(readable, compile=False, safe_mode=not options.allow_unsafe)
    except Exception as error:
        advice = f"if it needs code of its own, {BUILDER} {path}"
        raise ExportError(
            f"{path} cannot be loaded by Keras {keras.__version__}: {reason(error)}; "
            + (f"Keras {version or 'before 2'} wrote it: {SAVED_MODEL}" if old else advice)
        ) from error
    return _convert(model, str(path), path.name, options)


@contextlib.contextmanager
def _described_as(config: Any, path: Path) -> Iterator[Path]:
    """Yield a copy of a file with another description of its layers, and delete the copy after the block."""
    with temporary_folder() as folder:
        readable = folder / path.name
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive, zipfile.ZipFile(readable, "w") as copied:
                for name in archive.namelist():
                    copied.writestr(name, json.dumps(config) if name == "config.json" else archive.read(name))
        else:
            readable.write_bytes(path.read_bytes())
            with h5py.File(readable, "r+") as file:
                file.attrs["model_config"] = json.dumps(config)
        yield readable


def convert_keras_model(model: Any, name: str, options: SourceOptions) -> Converted:
    """Turn a Keras model in memory into an ONNX graph with a symbolic batch.

    Args:
        model: a keras.Model; `options.weights`, if given, are loaded into it.
        name: its name in messages.
        options: the user's options.

    Raises:
        ExportError: the model is not a keras.Model, was never built, runs on another backend, or cannot be converted.
        LayerError: the target layer is missing.
    """
    if not isinstance(model, keras.Model):
        raise ExportError(
            f"{name} is a {type(model).__module__}.{type(model).__qualname__}; expected a keras.Model of Keras 3 (save "
            "a model of tf_keras with tf.saved_model.save, and give the folder)"
        )
    _refuse_other_backends()
    _input_spec(model, name, options)  # weights can be loaded into a built model only
    if options.weights is not None:
        _load_weights(model, options.weights, name)
    return _convert(model, name, name, options)


def _read_config(path: Path) -> tuple[Any, str | None]:
    """Return the JSON that describes the layers of a file, and the version of Keras that wrote it; build nothing.

    Raises:
        ExportError: the file is missing, is not a Keras file, or has only weights.
    """
    try:
        if h5py.is_hdf5(path):
            _refuse_wrong_suffix(path, "HDF5", (".h5", ".hdf5"))
            with h5py.File(path) as file:
                text, version = file.attrs.get("model_config"), file.attrs.get("keras_version")
        elif zipfile.is_zipfile(path):
            _refuse_wrong_suffix(path, "a zip", (".keras",))
            with zipfile.ZipFile(path) as archive:
                if "config.json" not in archive.namelist():
                    raise ExportError(f"{path} is a zip without config.json; expected a file that model.save() wrote")
                text = archive.read("config.json")
                metadata = json.loads(archive.read("metadata.json")) if "metadata.json" in archive.namelist() else {}
                version = metadata.get("keras_version", "3")
        else:
            size = path.stat().st_size  # of a missing file: the OSError below
            raise ExportError(
                f"{path} ({size} bytes) is not a Keras file, or is cut short; expected the zip (.keras) or HDF5 (.h5) "
                "that model.save() writes"
            )
        if text is None:
            raise ExportError(f"{path} has only weights, and no model; {BUILDER} {path}")
        return json.loads(text), version.decode() if isinstance(version, bytes) else version
    except FileNotFoundError as error:
        raise ExportError(f"cannot read {path}: no such file") from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise ExportError(f"{path} is not a Keras file, or is damaged: {reason(error)}") from error


def _refuse_wrong_suffix(path: Path, what: str, suffixes: tuple[str, ...]) -> None:
    """Refuse a file whose suffix does not match its content, because Keras chooses its reader by the suffix."""
    if path.suffix not in suffixes:
        expected = " or ".join(suffixes)
        raise ExportError(f"{path} is {what} inside; Keras reads it only from a name that ends in {expected}")


def _refuse_code(config: Any, path: Path) -> None:
    """Refuse a file that holds code, or names code outside Keras."""
    name, kind = next(_find_code(config), (None, None))
    if kind == "code":
        raise ExportError(
            f"{path} has a {name} layer, whose code in the file is not run; use --allow-unsafe if you trust the file"
        )
    if kind == "object":
        raise ExportError(
            f"{path} has the custom object {name}, which is not part of Keras; {BUILDER} {path} (or use --allow-unsafe "
            "if you trust the file and the object is registered with Keras)"
        )


def _find_code(config: Any) -> Iterator[tuple[str, Literal["code", "object"]]]:
    """Yield the entries of a configuration that would run code from the file, or code that the file names."""
    if isinstance(config, Mapping):
        name, module, registered = (config.get(key) for key in ("class_name", "module", "registered_name"))
        if name == "function":
            name = config.get("config")
        package = module.partition(".")[0] if isinstance(module, str) else ""
        custom = next((text for text in (name, registered) if isinstance(text, str) and ">" in text), None)
        if isinstance(name, str) and name in CODE:
            yield name.strip("_").capitalize() if name == "__lambda__" else name, "code"
        elif custom is not None:
            yield custom, "object"
        elif "class_name" in config and package not in ("", "keras", "builtins"):
            yield f"{module}.{name}", "object"
        for key, value in config.items():
            if key != "compile_config":  # losses and metrics: not loaded
                yield from _find_code(value)
    elif isinstance(config, list):
        for value in config:
            yield from _find_code(value)


def _refuse_other_backends() -> None:
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ExportError(
            f"Keras runs on {backend} in this process, and only its TensorFlow backend can be converted; set the "
            "environment variable KERAS_BACKEND=tensorflow before Keras is imported"
        )


def _load_weights(model: Any, weights: str | PathLike[str], name: str) -> None:
    if not Path(weights).is_file():
        raise ExportError(f"cannot read the weights {weights}: no such file")
    try:
        with quiet():
            model.load_weights(weights)
    except Exception as error:
        raise ExportError(f"{name} cannot take the weights {weights}: {reason(error)}") from error


def _convert(model: Any, name: str, short_name: str, options: SourceOptions) -> Converted:
    """Convert a model; trace the Keras layers to expose as additional outputs, so that their tensors stay."""
    image = _input_spec(model, name, options)
    layers = find_layers(model)
    found = {layer: _find_path(layers, layer) for layer in options.layers}
    asked = {layer: path for layer, path in found.items() if path is not None}
    targets = tuple(dict.fromkeys(asked.values()))
    alone = len(asked) == len(found)
    traced, paths = _trace(model, image, name, {path: layers[path] for path in targets} if alone else layers, targets)
    values = [value for node in traced.proto.graph.node for value in node.output]
    for layer in found:
        if layer not in asked and layer not in ("auto", *values):
            short = [known.rpartition("/")[2] for known in layers]
            raise LayerError(f"layer {layer!r} is not in {name}{nearest(layer, [*layers, *short])}")
    run_maps = show_maps(traced, paths)

    def run(inputs: NDArray[Any], place: int) -> tuple[NDArray[Any], Mapping[str, NDArray[Any]]]:
        with quiet():
            scores = to_numpy(_flat(model(tf.constant(inputs), training=False))[place])
        maps = run_maps(inputs)
        named = {name: maps[path] for layer, path in asked.items() for name in (path, layer)}
        return scores, named if alone else maps | named

    foreign = ForeignGraph(
        name=name,
        proto=traced.proto,
        source={"kind": "keras", "name": short_name, "versions": VERSIONS},
        run=run,
        runs_batch=image.shape[0],
        layers={name: _exposed(path) for layer, path in asked.items() for name in (path, layer)},
    )
    return adopt(foreign, options)


def _input_spec(model: Any, name: str, options: SourceOptions) -> tf.TensorSpec:
    """Return the input of a model. A subclassed model knows its input only after its first call.

    Raises:
        ExportError: the input is unknown, or is not a single image.
    """
    inputs = getattr(model, "inputs", None)
    if inputs:
        shapes, dtype = [tuple(entry.shape) for entry in inputs], inputs[0].dtype
    else:
        built = (model.get_build_config() or {}) if model.built else {}
        shapes = [tuple(shape) for shape in built.get("shapes_dict", {"": built.get("input_shape")}).values() if shape]
        shapes, dtype = [(None, *shape[1:]) for shape in shapes], "float32"
    if not shapes:
        raise ExportError(
            f"{name} was never built, so its input is unknown; call it on an image, or "
            "model.build((None, height, width, channels)), before the export"
        )
    if len(shapes) > 1:
        names = [str(getattr(entry, "name", "")) for entry in inputs or ()] or [
            f"input {place}" for place in range(len(shapes))
        ]
        raise ExportError(
            explain_inputs(name, {key: str(list(shape)) for key, shape in zip(names, shapes, strict=True)})
        )
    return sized(shapes[0], dtype, options.input_size, name)


def find_layers(parent: Any, prefix: str = "") -> dict[str, Any]:
    """Return all layers by name, each once, outer layers first; a nested layer's name is ``outer/inner``."""
    found: dict[str, Any] = {}
    waiting = [(prefix, parent)]
    for prefix, layer in waiting:
        for child in _children(layer):
            if not any(child is known for known in found.values()):
                found.setdefault(prefix + child.name, child)
                waiting.append((f"{prefix}{child.name}/", child))
    return found


def _children(layer: Any) -> list[Any]:
    """Return the layers inside a layer, and the operations, such as additions, between those of a functional model."""
    if isinstance(layer, keras.Model):
        return list(getattr(layer, "operations", layer.layers))
    if isinstance(layer, keras.Layer):
        return list(layer._flatten_layers(include_self=False, recursive=False))
    return []


def _find_path(layers: Mapping[str, Any], layer: str) -> str | None:
    """Return the path of the layer that the user named; a unique inner name needs no path."""
    if layer in layers:
        return layer
    inner = [path for path in layers if path.rpartition("/")[2] == layer]
    return inner[0] if len(inner) == 1 else None


def _exposed(path: str) -> str:
    """Return the name of the graph's tensor for a traced layer."""
    return f"{path}/output"


def _trace(
    model: Any, image: tf.TensorSpec, name: str, layers: Mapping[str, Any], targets: Sequence[str]
) -> tuple[Traced, dict[str, str]]:
    """Convert a model, with the tensors of some layers in the graph, though not among its outputs.

    Args:
        model, image, name: the model, its input, and its name in messages.
        layers: the layers whose tensors are named.
        targets: the layers whose tensors must be in the graph.

    Returns:
        The graph, and the layers' names by TensorFlow's names for their results.
    """
    paths: dict[str, str] = {}

    def trace(inputs: Any) -> dict[str, Any]:
        with _recorded(layers) as results:
            returned = model(inputs, training=False)
        outputs = _flat(returned)
        paths.clear()
        for path in sorted(results, key=lambda path: path not in targets):
            if tf.is_tensor(results[path]):  # if several layers return the same tensor, the first made it
                paths.setdefault(results[path].name, path)
        named = dict(zip(_output_names(model, returned, len(outputs)), outputs, strict=True))
        for target in targets:
            result = results.get(target)
            if result is None or not tf.is_tensor(result):
                what = "is not called in a prediction" if result is None else "returns more than one tensor"
                raise LayerError(f"layer {target!r} of {name} {what}; expected a layer that returns a feature map")
            if paths[result.name] != target:
                raise LayerError(
                    f"layers {paths[result.name]!r} and {target!r} of {name} are the same tensor; expected each layer "
                    "once"
                )
            named[_exposed(target)] = tf.identity(result)
        return named

    traced = to_onnx(trace, image, name)
    exposed = set(map(_exposed, targets))
    outputs = [output for output in traced.proto.graph.output if output.name not in exposed]
    del traced.proto.graph.output[:]
    traced.proto.graph.output.extend(outputs)
    return traced, paths


def _flat(results: Any) -> list[Any]:
    flat: list[Any] = tf.nest.flatten(results)
    return flat


def _output_names(model: Any, returned: Any, count: int) -> list[str]:
    """Return the keys of the dict that a model returns, else Keras' names of its outputs."""
    if isinstance(returned, Mapping) and len(returned) == count:
        return sorted(map(str, returned))  # the order in which TensorFlow flattens it
    names = [str(name) for name in getattr(model, "output_names", ())]
    return names if len(set(names)) == count else [f"output_{index}" for index in range(count)]


@contextlib.contextmanager
def _recorded(layers: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Record the results of layers by name while the context lasts, in the order of their calls.

    If a layer is called several times, the last result counts, as for a hook.
    """
    results: dict[str, Any] = {}

    def record(names: list[str], call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def recording(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            for name in names:
                results.pop(name, None)
                results[name] = result
            return result

        return recording

    with contextlib.ExitStack() as stack:
        for layer in {id(layer): layer for layer in layers.values()}.values():
            before = vars(layer).get("call")
            vars(layer)["call"] = record([name for name, known in layers.items() if known is layer], layer.call)
            stack.callback(_restore, layer, before)
        yield results


def _restore(layer: Any, call: Any) -> None:
    """Restore a layer's own `call`; None restores the `call` of its class."""
    if call is None:
        del vars(layer)["call"]
    else:
        vars(layer)["call"] = call
