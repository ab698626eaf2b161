"""export: a model of another framework becomes a verified ONNX file with its target layer exposed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ortcam.errors import ExportError, OptionError, one_line
from ortcam.exporters.labels import fit_labels, read_labels
from ortcam.exporters.precision import FP16_TOLERANCE, Precision, to_float16
from ortcam.exporters.quiet import home_directory
from ortcam.exporters.sources import Converted, SourceOptions, convert
from ortcam.exporters.verify import Agreement, verify
from ortcam.files import replace_files
from ortcam.graph.expose import expose
from ortcam.graph.layers import FeatureMap, Reading, dims, find_layer, module_outputs
from ortcam.model import Contract, Layout
from ortcam.preprocessing import NAMES, Preprocessing
from ortcam.runtime.shapes import complete_shapes
from ortcam.scorecam import ScoreCAM

OPSETS = (18, 19, 20)
_GRAPH_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    DecodeError,
    EncodeError,
)
# Weights above this go to a file of their own; protobuf cannot hold 2 GB.
EXTERNAL_DATA_BYTES = 1_900_000_000


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        path: the file.
        layer: the target layer's name.
        shape: its channels, height and width; None where they are free.
        contract: what the file's metadata states.
        agreement: how closely the file and its source agree.
        notices: what the user should know.
    """

    path: Path
    layer: str
    shape: tuple[int | None, ...]
    contract: Contract
    agreement: Agreement
    notices: tuple[str, ...]


def export(
    source: Any,
    output: str | PathLike[str],
    layer: str = "auto",
    *,
    weights: str | PathLike[str] | None = None,
    input_size: int | tuple[int, int] | None = None,
    opset: int = 20,
    preprocess: str | PathLike[str] | Preprocessing | Mapping[str, Any] | None = None,
    labels: str | PathLike[str] | Sequence[str] | Mapping[Any, Any] | None = None,
    output_name: str | None = None,
    input_layout: Layout | None = None,
    grid: tuple[int, int] | None = None,
    allow_unsafe: bool = False,
    precision: Precision = "fp32",
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
) -> ExportReport:
    """Write a model file that `ortcam.ScoreCAM` explains.

    The file is verified before it takes its name: source and ONNX Runtime run on the same random inputs, with
    batches of 1 and 3, and scores and target layer must agree to a relative error of 1e-3.

    Args:
        source: a model in memory: an nn.Module in eval mode, a Keras model, a Flax NNX module, or a function of a
            JAX array; ``torchvision:NAME``, ``timm:NAME``; ``FILE.py:CALLABLE`` or ``package.module:CALLABLE``, a
            function without arguments that returns such a model; or a file: ``.onnx``, ``.keras``, ``.h5``,
            ``.hdf5``, ``.tflite``, ``.pt2``, or the folder of a TensorFlow SavedModel.
        output: the file to write, ``.onnx``; its folder is made. Weights of more than 1.9 GB go beside it, to
            ``NAME.onnx.data``.
        layer: ``auto`` (the last spatial feature map after its activation function), a dotted module name, a Keras
            layer (nested: ``outer/inner``), or the name of a value in the graph.
        weights: for a PyTorch module, a state dict file, loaded with ``weights_only=True``; for a Keras model that a
            callable builds, a weights file; ``random`` (seeded) leaves a torchvision or timm network untrained.
            None: those come with their default trained weights.
        input_size: the side, or (height, width), of the input in pixels.
        opset: 18, 19 or 20, for sources that are converted; an ONNX file keeps its own from 18.
        preprocess: ``imagenet``, ``tf``, ``caffe``, ``lite``, ``raw``, a JSON file or object, or a Preprocessing;
            torchvision and timm sources bring their own.
        labels: class names, a file of them, or ``imagenet``, as `read_labels` takes them; torchvision and timm
            sources bring their own.
        output_name: which output holds the class scores, where there are several; None for the first that can.
        input_layout: ``NCHW`` or ``NHWC``, where the source leaves it open.
        grid: (rows, columns) of a vision transformer's patches, where they are not found.
        allow_unsafe: run the code that a model file may bring along: Keras' Lambda layers and custom objects, pickles
            in a .pt2 file. Only for files that you trust.
        precision: ``fp16`` halves the file and the memory, and is faster on GPUs (not on CPUs); verified to 2e-2.
        external_data_bytes: weights above this size go to a file of their own.

    Raises:
        ExportError: the source cannot be loaded or exported, or the result does not agree with it.
        LayerError: the layer does not exist.
        OptionError: an argument makes no sense.
        OutputError: the file cannot be written.
    """
    if not isinstance(output, str | PathLike) or Path(output).suffix != ".onnx":
        raise OptionError(f"output is {str(output)!r}; expected a name that ends in .onnx")
    output = Path(output)
    if isinstance(source, str | PathLike) and output.exists() and Path(source).exists() and output.samefile(source):
        raise OptionError(f"output {output} is the source itself; give the export another name")
    if opset not in OPSETS:
        raise OptionError(
            f"opset is {opset!r}; expected {', '.join(map(str, OPSETS))}: the engine needs 18, and newer ones than 20 "
            "lose GPU kernels in ONNX Runtime"
        )
    if not isinstance(layer, str):
        raise OptionError(f"layer is {layer!r}; expected a name, or 'auto'")
    if input_layout not in (None, "NCHW", "NHWC"):
        raise OptionError(f"input_layout is {input_layout!r}; expected NCHW or NHWC")
    if precision not in get_args(Precision):
        raise OptionError(f"precision is {precision!r}; expected {' or '.join(get_args(Precision))}")
    if isinstance(preprocess, Mapping):
        preprocess = Preprocessing.from_dict(preprocess)
    given = None if labels is None else read_labels(labels)
    size, rows_and_columns = _as_pair(input_size, "input_size", "pixels"), _as_pair(grid, "grid", "patches")
    options = SourceOptions(
        weights, size, opset, preprocess, layer, output_name, input_layout, rows_and_columns, allow_unsafe
    )
    with _graph_errors(source), home_directory():
        converted = convert(source, options)
        exposed = _expose(converted, options, given)
    contract = exposed.contract
    notices = [*converted.notices, *exposed.notices]
    if contract.preprocessing is None:
        notices.append(
            "no preprocessing is known, so only input tensors can be explained; for photos give --preprocess "
            f"{', '.join(NAMES)} or a JSON file (what each makes of your photos: ortcam preprocessing {output} photos/)"
        )
    if exposed.classes == 1 and contract.output == "logits":
        notices.append(
            "the model has one score and no sigmoid, so its softmax is always 1: presets that weigh channels by "
            "probability weigh all alike; explain with --preset paper"
        )
    model = converted.model
    with _graph_errors(converted.name), replace_files(output) as folder:
        draft = folder / output.name
        external = _weight_bytes(model) > external_data_bytes
        ir.external_data.load_to_model(model)  # the weights move with the graph
        ir.save(model, draft, external_data=f"{output.name}.data" if external else None)
        if precision == "fp16":
            converted = _halve(draft, converted, external)
            contract = replace(contract, source=contract.source | {"precision": precision})
        agreement = verify(draft, converted, exposed.source_layer, exposed.feature_map.tokens)
        contract = replace(contract, layer=exposed.source_layer or agreement.layer or contract.layer)
        contract = replace(contract, verified=agreement.to_dict())
        proto = onnx.load(draft, load_external_data=False)
        onnx.helper.set_model_props(
            proto, {entry.key: entry.value for entry in proto.metadata_props} | contract.to_metadata()
        )
        onnx.save(proto, draft)
        ScoreCAM(draft, provider="cpu").rehearse()
    return ExportReport(output, contract.layer, exposed.shape, contract, agreement, tuple(notices))


def _halve(draft: Path, converted: Converted, external: bool) -> Converted:
    """Turn a written file into float16, and allow for that when it is verified."""
    if external:
        raise ExportError("a model with external weights cannot be turned into float16; export it as fp32")
    onnx.save(to_float16(onnx.load(draft)), draft)
    return replace(
        converted,
        tolerance=max(converted.tolerance, FP16_TOLERANCE),
        layer_tolerance=max(converted.layer_tolerance, FP16_TOLERANCE),
    )


@contextlib.contextmanager
def _graph_errors(source: Any) -> Iterator[None]:
    """Report what onnx and onnx-ir raise on a graph that breaks their rules as a fault of the source."""
    try:
        yield
    except OSError:  # of the disk, not of the graph
        raise
    except _GRAPH_ERRORS as error:
        name = source if isinstance(source, str | PathLike) else type(source).__name__
        raise ExportError(
            f"{name} has a graph that cannot be read or edited: {type(error).__name__}: {one_line(error)}"
        ) from error


@dataclass(frozen=True)
class _Exposed:
    """What was exposed.

    Attributes:
        feature_map: the target layer.
        shape: its dimensions, channels first.
        source_layer: its name among the source's layers, where it has one.
        contract: what the file states.
        classes: how many scores there are; None where that is not known.
        notices: what the user should know.
    """

    feature_map: FeatureMap
    shape: tuple[int | None, ...]
    source_layer: str | None
    contract: Contract
    classes: int | None
    notices: tuple[str, ...]


def _expose(converted: Converted, options: SourceOptions, labels: tuple[str, ...] | None) -> _Exposed:
    """Make the target layer an output of the converted graph, in place."""
    model = converted.model
    measured = complete_shapes(model, converted.folder, converted.input_shape)
    reading = Reading(converted.image_layout, options.grid)
    feature_map, name = find_layer(model, options.layer, converted.name, reading, converted.layers)
    layers = module_outputs(model.graph) if converted.layers is None else converted.layers
    classes = _count_classes(model)
    fitting, notice = fit_labels(labels or converted.labels, classes, labels is not None)
    contract = Contract(
        layer=name,
        value=feature_map.value.name or "",
        image_layout=converted.image_layout,
        activations_layout=feature_map.layout,
        preprocessing=converted.preprocessing,
        labels=fitting,
        source=converted.source,
    )
    shape = feature_map.shape
    contract = expose(model, feature_map, contract)
    notices = () if notice is None else (notice,)
    exposed = _Exposed(feature_map, shape, name if name in layers else None, contract, classes, notices)
    RemoveUnusedNodesPass()(model)
    for value in measured:
        if value is not feature_map.value:
            value.shape = None
    return exposed


def _as_pair(given: Any, name: str, unit: str) -> tuple[int, int] | None:
    if given is None:
        return None
    sides = tuple(given) if isinstance(given, Sequence) else (given, given)
    if len(sides) != 2 or not all(hasattr(side, "__index__") and int(side) > 0 for side in sides):
        raise OptionError(f"{name} is {given!r}; expected a side or (height, width) in {unit}")
    return int(sides[0]), int(sides[1])


def _count_classes(model: ir.Model) -> int | None:
    """Return how many scores [batch,N], or [batch,N,1,1], there are; None where that is not known."""
    counts = [dim for dim in dims(model.graph.outputs[0]) if dim != 1]
    return 1 if not counts and dims(model.graph.outputs[0]) else counts[0] if len(counts) == 1 else None


def _weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
