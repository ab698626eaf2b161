"""Recognise the kind of a source, and convert every kind to the same form, `Converted`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ortcam.errors import ExportError, LayerError, OptionError
from ortcam.exporters.other_files import refuse_other_file
from ortcam.exporters.quiet import environment, require_temporary_folder
from ortcam.exporters.score_kind import StatedKind
from ortcam.exporters.tasks.options import TaskOptions
from ortcam.exporters.verify import BATCHES, TOLERANCE, Reference
from ortcam.model.contract import Layout
from ortcam.model.preprocessing import Preprocessing

if TYPE_CHECKING:
    import onnx_ir as ir

DEFAULT_SIDE = 224


@dataclass(frozen=True)
class SourceOptions:
    """The user's options for a source; None for an option that was not given.

    Attributes:
        weights: a file of weights for the module or model that a callable builds, or ``random`` for a zoo's network.
        input_size: (height, width) of the input.
        opset: 18, 19 or 20, for sources that are converted.
        preprocess: a name, a JSON file or a Preprocessing.
        layers: the layers to expose as the user named them, or ``auto``.
        output: the name, the key or the index of the output that holds the class scores.
        input_layout: the order of the input's dimensions, if the file does not state it.
        grid: (rows, columns) of the patches of a vision transformer.
        allow_unsafe: whether code that comes with a model file (Keras' Lambda layers and custom objects, the pickles of
            a .pt2 file) may run.
        classes: the number of labels.
        task: what the model does with an image.
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
    task: TaskOptions = field(default_factory=TaskOptions)


@dataclass(frozen=True)
class Converted:
    """A source turned into an ONNX graph, with nothing exposed yet.

    Attributes:
        name: the source's name in messages.
        model: the graph; its first input is the image, its first output the class scores.
        input_shape: the input's dimensions without the batch, in the order of `image_layout`.
        reference: takes the name of the target layer in the source framework, or None, and returns a function that runs
            the source for comparison.
        source: kind, name and versions, for the metadata.
        preprocessing, labels: the source's own or the user's; None if unknown.
        output_kind: the kind of scores that the user stated in an earlier export; None if none was stated.
        folder: where the weights are that were not read into memory.
        layers: the source framework's layers and their tensors in the graph, outer layers first; None for the modules
            that torch's exporter recorded.
        image_layout: the order of the input's dimensions.
        batches: the batch sizes that the graph can run.
        takes_bytes: whether the input has the values 0 to 255.
        tolerance, layer_tolerance: the largest allowed relative errors of the scores and of the target layer.
        notices: notices for the user.
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

    @property
    def is_classifier(self) -> bool:
        """Whether the graph's output holds class scores, and not the outputs of another task."""
        return True


KINDS = (
    "torchvision:NAME, timm:NAME, FILE.py:CALLABLE, package.module:CALLABLE, or a file: .onnx, .keras, .h5, .hdf5, "
    ".tflite, .pt2, .pb (frozen graph), or the folder of a TensorFlow SavedModel"
)


@dataclass(frozen=True)
class _Framework:
    """A framework that exporters import only when it is used.

    Attributes:
        extra: the extra of ortcam that installs it.
        package: the package that is looked for to see whether it is installed.
    """

    extra: str
    package: str


@dataclass(frozen=True)
class _Exporter:
    """A function of one of the exporters' modules, which is imported only when it is used.

    Attributes:
        module: the module in `ortcam.exporters`.
        function: the function in it.
        framework: the framework that the module imports; None if it imports none.
    """

    module: str
    function: str
    framework: _Framework | None = None

    def load(self, source: Any) -> Callable[..., Any]:
        """Return the function.

        Args:
            source: the source to export, for messages.

        Raises:
            ExportError: the framework is not installed or cannot be imported; the message names its extra.
        """
        advice = ""
        if self.framework is not None:
            require_temporary_folder()
            package, advice = self.framework.package, f": pip install 'ortcam[{self.framework.extra}]'"
            if importlib.util.find_spec(package) is None:
                raise ExportError(f"exporting {source} needs {package}, which is not installed{advice}")
        try:
            function: Callable[..., Any] = getattr(import_module(f"ortcam.exporters.{self.module}"), self.function)
        except ImportError as error:
            raise ExportError(
                f"exporting {source} needs a package that cannot be imported ({error}){advice}"
            ) from error
        return function

    def convert(self, source: Any, *arguments: Any) -> Converted:
        """Load the function and return its result for the arguments.

        Raises:
            ExportError: as `load` does, or the function itself.
        """
        converted: Converted = self.load(source)(*arguments)
        return converted


_TORCH = _Framework("torch", "torch")
_TENSORFLOW = _Framework("tensorflow", "tf2onnx")
_JAX = _Framework("jax", "jax2onnx")

_MODULE = _Exporter("pytorch", "convert_module", _TORCH)
_SAVED_MODEL = _Exporter("saved_model", "convert_saved_model", _TENSORFLOW)
_KERAS_FILE = _Exporter("keras", "convert_keras_file", _TENSORFLOW)
_FROZEN_GRAPH = _Exporter("frozen_graph", "convert_frozen_graph", _TENSORFLOW)
_TORCH_FILE = _Exporter("pytorch_program", "refuse_torch_file", _TORCH)
_FILES = {
    ".onnx": _Exporter("onnx_file", "convert_onnx_file"),
    ".keras": _KERAS_FILE,
    ".h5": _KERAS_FILE,
    ".hdf5": _KERAS_FILE,
    ".tflite": _Exporter("tflite", "convert_tflite", _TENSORFLOW),
    ".pb": _FROZEN_GRAPH,
    ".pbtxt": _FROZEN_GRAPH,
    ".pt2": _Exporter("pytorch_program", "convert_program", _TORCH),
    ".pt": _TORCH_FILE,
    ".pth": _TORCH_FILE,
    ".ts": _TORCH_FILE,
    ".torchscript": _TORCH_FILE,
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
        return _SAVED_MODEL.convert(source, path, options)
    if suffix in _FILES:
        return _FILES[suffix].convert(source, path, options)
    origin, colon, name = str(source).rpartition(":")
    if not colon or not origin:
        raise ExportError(f"source {str(source)!r} is of unknown kind; expected {KINDS}")
    if origin in ("torchvision", "timm"):
        module = _Exporter("pytorch_sources", "load_zoo_module", _TORCH).load(source)(origin, name, options)
        return _MODULE.convert(source, module, options)
    from ortcam.exporters.callables import call

    settings = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}  # the backend that can be converted
    with environment(**{name: os.environ.get(name, value) for name, value in settings.items()}):
        model = call(origin, name)
    return _convert_object(model, str(source), options)


def _convert_object(model: Any, name: str, options: SourceOptions) -> Converted:
    """Convert a model in memory: a PyTorch, Keras or Flax NNX model, or a function of JAX arrays."""
    roots = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    if "torch" in roots:
        loaded = _Exporter("pytorch_sources", "load_given_module", _TORCH).load(name)(model, name, options)
        return _MODULE.convert(name, loaded, options)
    if roots & {"keras", "tf_keras"}:
        return _Exporter("keras", "convert_keras_model", _TENSORFLOW).convert(name, model, name, options)
    if callable(model):
        return _Exporter("jax", "convert_function", _JAX).convert(name, model, name, options)
    raise ExportError(
        f"{name} is of unknown kind ({type(model).__name__}); expected an nn.Module, a Keras model, a Flax NNX module "
        "or a function of JAX arrays"
    )


def find_layer_name(model: Any, layer: Any) -> str:
    """Return the name of a layer that the user gave as an object: an nn.Module, a Keras layer or a Flax NNX module.

    Args:
        model: the model in memory that holds it.
        layer: the object.

    Raises:
        LayerError: the model does not hold it, or is not in memory.
        OptionError: the object is not a layer.
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
        named = _Exporter("keras", "find_layers", _TENSORFLOW).load(type(model).__name__)(model).items()
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


def choose_preprocessing(
    given: str | PathLike[str] | Preprocessing | None,
    own: Preprocessing | None,
    size: tuple[int, int] | None,
    channels: int,
    natural: tuple[int, int] | None = None,
) -> Preprocessing | None:
    """Return the user's preprocessing, else the source's own, for the user's input size.

    Args:
        given: the user's preprocessing.
        own: the source's own preprocessing.
        size: the user's input size.
        channels: the number of the input's channels.
        natural: the size of the input if the user gave none; None for the source's own size, or 224x224.
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
