"""What kind of model a source is, and the one shape that every kind is turned into."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ortcam.errors import ExportError, LayerError, OptionError
from ortcam.exporters.other_files import refuse_other_file
from ortcam.exporters.quiet import environment, require_temporary_folder
from ortcam.exporters.score_kind import StatedKind
from ortcam.exporters.verify import BATCHES, TOLERANCE, Reference
from ortcam.model.contract import Layout
from ortcam.model.preprocessing import Preprocessing

if TYPE_CHECKING:
    import onnx_ir as ir

DEFAULT_SIDE = 224


@dataclass(frozen=True)
class SourceOptions:
    """What the user said of the source; None where nothing.

    Attributes:
        weights: a file of weights for the module or model that a callable builds, or ``random`` for a zoo's network.
        input_size: (height, width) of the input.
        opset: 18, 19 or 20, for sources that are converted.
        preprocess: a name, a JSON file or a Preprocessing.
        layers: the layers to expose as the user named them, or ``auto``.
        output: the name, the key or the index of the output that holds the class scores.
        input_layout: the order of the input's dimensions, where the file leaves it open.
        grid: (rows, columns) of the patches of a vision transformer.
        allow_unsafe: whether code that a model file brings along (Keras' Lambda layers and custom objects, the pickles
            of a .pt2 file) may be run.
        classes: how many labels there are.
    """

    weights: str | PathLike[str] | None = None
    input_size: tuple[int, int] | None = None
    opset: int = 20
    preprocess: str | PathLike[str] | Preprocessing | None = None
    layers: tuple[str, ...] = ("auto",)
    output: str | None = None
    input_layout: Layout | None = None
    grid: tuple[int, int] | None = None
    allow_unsafe: bool = False
    classes: int | None = None


@dataclass(frozen=True)
class Converted:
    """A source turned into an ONNX graph, with nothing exposed yet.

    Attributes:
        name: what messages call the source.
        model: the graph; its first input is the image, its first output the class scores.
        input_shape: the input's dimensions without the batch, in the order of `image_layout`.
        reference: given the name of the target layer in the source framework, or None, returns what runs the source
            for comparison.
        source: for the metadata: kind, name, versions.
        preprocessing, labels: the source's own, or what the user gave; None when unknown.
        output_kind: what an earlier export was told that the scores are; None where it was not.
        folder: where weights are that were not read into memory.
        layers: the source framework's layers and their tensors in the graph, outer ones first; None for the modules
            that torch's exporter recorded.
        image_layout: the order of the input's dimensions.
        batches: the batch sizes that the graph can run.
        takes_bytes: whether the input is made of the values 0 to 255.
        tolerance, layer_tolerance: how far scores and target layer may be from the source's, relatively.
        notices: what the user should know.
    """

    name: str
    model: ir.Model
    input_shape: tuple[int, ...]
    reference: Callable[[str | None], Reference]
    source: dict[str, Any]
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None = None
    output_kind: StatedKind | None = None
    folder: Path = Path()
    layers: Mapping[str, ir.Value] | None = None
    image_layout: Layout = "NCHW"
    batches: tuple[int, ...] = BATCHES
    takes_bytes: bool = False
    tolerance: float = TOLERANCE
    layer_tolerance: float = TOLERANCE
    notices: tuple[str, ...] = ()


KINDS = (
    "torchvision:NAME, timm:NAME, FILE.py:CALLABLE, package.module:CALLABLE, or a file: .onnx, .keras, .h5, .hdf5, "
    ".tflite, .pt2, .pb (frozen graph), or the folder of a TensorFlow SavedModel"
)
_SAVED_MODEL = ("saved_model", "convert_saved_model", "tensorflow", "tf2onnx")
# What converts a file of each kind, the extra that it needs, and a package by which to know whether it is there.
_FILES = {
    ".onnx": ("onnx_file", "convert_onnx_file", None, None),
    ".keras": ("keras", "convert_keras_file", "tensorflow", "tf2onnx"),
    ".h5": ("keras", "convert_keras_file", "tensorflow", "tf2onnx"),
    ".hdf5": ("keras", "convert_keras_file", "tensorflow", "tf2onnx"),
    ".tflite": ("tflite", "convert_tflite", "tensorflow", "tf2onnx"),
    ".pb": ("frozen_graph", "convert_frozen_graph", "tensorflow", "tf2onnx"),
    ".pbtxt": ("frozen_graph", "convert_frozen_graph", "tensorflow", "tf2onnx"),
    ".pt2": ("pytorch_program", "convert_program", "torch", "torch"),
    ".pt": ("pytorch_program", "refuse_torch_file", "torch", "torch"),
    ".pth": ("pytorch_program", "refuse_torch_file", "torch", "torch"),
    ".ts": ("pytorch_program", "refuse_torch_file", "torch", "torch"),
    ".torchscript": ("pytorch_program", "refuse_torch_file", "torch", "torch"),
}


def convert(source: Any, options: SourceOptions) -> Converted:
    """Turn a source of any kind into an ONNX graph.

    Raises:
        ExportError: the kind is unknown or its framework is missing, or the source cannot be converted.
    """
    if not isinstance(source, str | PathLike):
        return _convert_object(source, getattr(source, "__name__", type(source).__name__), options)
    path = Path(source)
    if not str(source).strip():
        raise ExportError(f"the source is empty; expected {KINDS}")
    suffix = path.suffix.lower()
    refuse_other_file(path, is_source=suffix in _FILES and not path.is_dir())
    if path.is_dir() or path.name in ("saved_model.pb", "saved_model.pbtxt"):
        return _convert_with(*_SAVED_MODEL, source, path, options)
    if suffix in _FILES:
        return _convert_with(*_FILES[suffix], source, path, options)
    origin, colon, name = str(source).rpartition(":")
    if not colon or not origin:
        raise ExportError(f"source {str(source)!r} is of no known kind; expected {KINDS}")
    if origin in ("torchvision", "timm"):
        module = _load("pytorch_sources", "load_zoo_module", "torch", "torch", source)(origin, name, options)
        return _convert_with("pytorch", "convert_module", "torch", "torch", source, module, options)
    from ortcam.exporters.callables import call

    settings = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}  # the backend that can be converted
    with environment(**{name: os.environ.get(name, value) for name, value in settings.items()}):
        model = call(origin, name)
    return _convert_object(model, str(source), options)


def _convert_object(model: Any, name: str, options: SourceOptions) -> Converted:
    """Convert a model in memory: a PyTorch, Keras or Flax NNX one, or a function of JAX arrays."""
    roots = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    if "torch" in roots:
        loaded = _load("pytorch_sources", "load_given_module", "torch", "torch", name)(model, name, options)
        return _convert_with("pytorch", "convert_module", "torch", "torch", name, loaded, options)
    if roots & {"keras", "tf_keras"}:
        return _convert_with("keras", "convert_keras_model", "tensorflow", "tf2onnx", name, model, name, options)
    if callable(model):
        return _convert_with("jax", "convert_function", "jax", "jax2onnx", name, model, name, options)
    raise ExportError(
        f"{name} is of no known kind ({type(model).__name__}); expected an nn.Module, a Keras model, a Flax NNX module "
        "or a function of JAX arrays"
    )


def find_layer_name(model: Any, layer: Any) -> str:
    """Return the name of a layer that the user gave as an object: an nn.Module, a Keras layer or a Flax NNX module.

    Args:
        model: the model in memory that holds it.
        layer: the object.

    Raises:
        LayerError: the model does not hold it, or is not in memory.
        OptionError: it is no layer.
    """
    roots = {base.__module__.partition(".")[0] for base in type(layer).__mro__}
    if not roots & {"torch", "keras", "tf_keras", "flax"}:
        raise OptionError(f"layer is {layer!r}; expected a name, 'auto', or a module or layer of the model itself")
    if isinstance(model, str | PathLike):
        raise LayerError(f"layer is a {type(layer).__name__}, but the model is {model}; give the layer's name instead")
    named: Iterable[tuple[str, Any]] = ()
    if hasattr(model, "named_modules"):
        named = model.named_modules()
    elif roots & {"keras", "tf_keras"}:
        named = _load("keras", "find_layers", "tensorflow", "tf2onnx", type(model).__name__)(model).items()
    elif "flax" in roots:
        from flax import nnx

        named = ((".".join(map(str, path)), part) for path, part in nnx.iter_graph(model))
    name = next((name for name, part in named if part is layer and name), None)
    if name is None:
        raise LayerError(
            f"layer is a {type(layer).__name__} that is not inside the {type(model).__name__}; expected one of its own "
            "layers, or a name"
        )
    return name


def _convert_with(
    module: str, function: str, extra: str | None, package: str | None, source: Any, *arguments: Any
) -> Converted:
    converted: Converted = _load(module, function, extra, package, source)(*arguments)
    return converted


def _load(module: str, function: str, extra: str | None, package: str | None, source: Any) -> Any:
    """Return a function of an exporter's module; a framework that is missing is a line that names its extra."""
    if package is not None:
        require_temporary_folder()
    if package is not None and importlib.util.find_spec(package) is None:
        raise ExportError(f"exporting {source} needs {package}, which is not installed: pip install 'ortcam[{extra}]'")
    try:
        return getattr(import_module(f"ortcam.exporters.{module}"), function)
    except ImportError as error:
        raise ExportError(
            f"exporting {source} needs a package that cannot be imported ({error}): pip install 'ortcam[{extra}]'"
        ) from error


def choose_preprocessing(
    given: str | PathLike[str] | Preprocessing | None,
    own: Preprocessing | None,
    size: tuple[int, int] | None,
    channels: int,
    natural: tuple[int, int] | None = None,
) -> Preprocessing | None:
    """Return the user's preprocessing, else the source's own, for the input size that was asked for.

    Args:
        given: what the user said.
        own: what the source brings.
        size: the size that the user asked for.
        channels: how many channels the input has.
        natural: the size of the input where the user asked for none; None for the source's own, or 224x224.
    """
    if given is None:
        return own if own is None or size is None else own.resized(*size)
    if isinstance(given, Preprocessing):
        return given if size is None else given.resized(*size)
    if Path(given).suffix.lower() == ".json":
        preprocessing = Preprocessing.from_file(given)
        return preprocessing if size is None else preprocessing.resized(*size)
    if natural is None:
        natural = (DEFAULT_SIDE, DEFAULT_SIDE) if own is None else (own.height, own.width)
    height, width = size or natural
    return Preprocessing.named(str(given), height, width, channels)
