"""Export a model of another framework as a verified ONNX file with its target layer exposed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ortcam.core.files import replace_files
from ortcam.errors import ExportError, OptionError, OrtcamWarning, one_line
from ortcam.explain.scorecam import ScoreCAM
from ortcam.exporters.batches import settle_batch
from ortcam.exporters.choice import LayerChoice, Target
from ortcam.exporters.labels import fit_labels, read_labels
from ortcam.exporters.outputs import refuse_largest
from ortcam.exporters.places import Places
from ortcam.exporters.precision import FP16_TOLERANCE, Precision, to_float16
from ortcam.exporters.quiet import home_directory
from ortcam.exporters.score_kind import (
    StatedKind,
    check_kind,
    check_stated_kind,
    rename_output,
    settle_kind,
    state_count,
)
from ortcam.exporters.sources import Converted, SourceOptions, convert, find_layer_name
from ortcam.exporters.verify import Agreement, verify
from ortcam.graph.ends import read_scores
from ortcam.graph.expose import expose
from ortcam.graph.layers import FeatureMap, dims
from ortcam.model.contract import Contract, Layout
from ortcam.model.preprocessing import NAMES, Preprocessing
from ortcam.runtime.layer import GRAPH_ERRORS

OPSETS = (18, 19, 20)
_GRAPH_ERRORS = (*GRAPH_ERRORS, ArithmeticError, DecodeError, EncodeError)
# Weights above this go to a file of their own; protobuf cannot hold 2 GB.
EXTERNAL_DATA_BYTES = 1_900_000_000


@dataclass(frozen=True)
class ExportReport:
    """The result of an export.

    Attributes:
        path: the file.
        layer: the target layer's name.
        shape: its channels, height and width; None for a free dimension.
        contract: the contract in the file's metadata.
        agreement: how closely the file and its source agree.
        places: whether the layer's cells are places of the image.
        notices: notices for the user.
        warned: the notices that were also issued as warnings.
    """

    path: Path
    layer: str
    shape: tuple[int | None, ...]
    contract: Contract
    agreement: Agreement
    places: Places
    notices: tuple[str, ...]
    warned: tuple[str, ...] = ()


def export(
    source: Any,
    output: str | PathLike[str],
    layer: Any = "auto",
    *,
    weights: str | PathLike[str] | None = None,
    input_size: int | tuple[int, int] | None = None,
    opset: int = 20,
    preprocess: str | PathLike[str] | Preprocessing | Mapping[str, Any] | None = None,
    labels: str | PathLike[str] | Sequence[str] | Mapping[Any, Any] | None = None,
    output_name: str | int | None = None,
    output_kind: StatedKind | None = None,
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
            ``.hdf5``, ``.tflite``, ``.pt2``, ``.pb`` (a frozen graph), or the folder of a TensorFlow SavedModel.
        output: the file to write, ``.onnx``; its folder is made. Weights of more than 1.9 GB go beside it, to
            ``NAME.onnx.data``.
        layer: ``auto`` (the last spatial feature map after its activation function whose cells are places of the
            image), a dotted module name, a Keras layer (nested: ``outer/inner``), the name of a value in the graph, or
            for a model in memory the module or Keras layer itself, such as ``model.layer4``.
        weights: for a PyTorch module, a checkpoint of torch.save (read with ``weights_only=True``) or a
            ``.safetensors`` file; for a Keras model that a callable builds, a weights file; ``random`` (seeded) leaves
            a torchvision or timm network untrained. None: torchvision and timm load their default trained weights.
        input_size: the side, or (height, width), of the input in pixels.
        opset: 18, 19 or 20, for sources that are converted; an ONNX file keeps its own from 18.
        preprocess: ``imagenet``, ``tf``, ``caffe``, ``lite``, ``raw``, a JSON file or object, or a Preprocessing;
            torchvision and timm sources bring their own.
        labels: class names, a file of them, or ``imagenet``, as `read_labels` takes them; torchvision and timm
            sources bring their own.
        output_name: the name or index of the output that holds the class scores. A module that returns a dict, a tuple
            or the like has outputs by key or index (nested: ``outer.inner``). None decides by the number of labels, by
            the computation of outputs from each other, and by name.
        output_kind: the kind of the class scores, if the graph does not show it: ``logits`` (a softmax makes them
            probabilities), ``probabilities``, or ``sigmoid`` (logits of independent classes, each with a sigmoid).
            None: the kind that the graph shows; else logits of a softmax, or of a sigmoid for a single score.
        input_layout: ``NCHW`` or ``NHWC``, if the source does not state it.
        grid: (rows, columns) of a vision transformer's patches, if ortcam does not find them.
        allow_unsafe: allow code that comes with a model file to run: Keras' Lambda layers and custom objects, pickles
            in a .pt2 file. Use it only for files that you trust.
        precision: ``fp16`` halves the file and the memory, and is faster on GPUs (not on CPUs); verified to 2e-2.
        external_data_bytes: weights above this size go to a file of their own.

    Raises:
        ExportError: the source cannot be loaded or exported, or the result does not agree with it.
        LayerError: the layer is missing, or ``auto`` finds no layer whose cells are places of the image.
        OptionError: an argument is invalid.
        OutputError: the file cannot be written.
    """
    if not isinstance(output, str | PathLike) or Path(output).suffix != ".onnx":
        raise OptionError(f"output is {str(output)!r}; expected a name that ends in .onnx")
    output = Path(output)
    if isinstance(source, str | PathLike) and output.exists() and Path(source).exists() and output.samefile(source):
        raise OptionError(f"output {output} is the source itself; give the export another name")
    if opset not in OPSETS:
        raise OptionError(
            f"opset is {opset!r}; expected {', '.join(map(str, OPSETS))}: the engine needs at least 18, and ONNX "
            "Runtime lacks GPU kernels above 20"
        )
    if not isinstance(layer, str):
        layer = find_layer_name(source, layer)
    if input_layout not in (None, "NCHW", "NHWC"):
        raise OptionError(f"input_layout is {input_layout!r}; expected NCHW or NHWC")
    if precision not in get_args(Precision):
        raise OptionError(f"precision is {precision!r}; expected {' or '.join(get_args(Precision))}")
    check_stated_kind(output_kind)
    if isinstance(preprocess, Mapping):
        preprocess = Preprocessing.from_dict(preprocess)
    given = None if labels is None else read_labels(labels)
    size, rows_and_columns = _as_pair(input_size, "input_size", "pixels"), _as_pair(grid, "grid", "patches")
    options = SourceOptions(
        weights,
        size,
        opset,
        preprocess,
        layer,
        None if output_name is None else str(output_name),
        input_layout,
        rows_and_columns,
        allow_unsafe,
        None if given is None else len(given),
    )
    with _graph_errors(source), home_directory():
        converted = convert(source, options)
        output_kind = output_kind or converted.output_kind
        choice = LayerChoice(converted, options)
        target = choice.choose()
        exposed = _expose(target, given, output_kind)
    contract = exposed.contract
    notices = [*converted.notices, *exposed.notices]
    if contract.preprocessing is None:
        notices.append(
            "no preprocessing is known, so only input tensors can be explained; for photos give --preprocess "
            f"{', '.join(NAMES)} or a JSON file (to compare them: ortcam preprocessing {output} photos/)"
        )
    with _graph_errors(converted.name), replace_files(output) as folder:
        draft = folder / output.name
        written = _write(draft, converted, precision, external_data_bytes)
        checked = choice.check(draft, written, target)
        if checked.better is not None:
            exposed = _expose(checked.better, given, output_kind)
            contract = exposed.contract
            written = _write(draft, checked.better.converted, precision, external_data_bytes)
        if precision == "fp16":
            contract = replace(contract, source=contract.source | {"precision": precision})
        agreement = verify(draft, written, exposed.source_layer, exposed.feature_map.tokens)
        proto = onnx.load(draft, load_external_data=False)
        notice = settle_batch(proto, draft, written, agreement)
        if notice is not None:
            notices.append(notice)
            agreement = replace(agreement, batches=(1,))
        contract = replace(
            contract,
            layer=exposed.source_layer or agreement.layer or contract.layer,
            activations_layout=checked.layout,
            verified=agreement.to_dict() | checked.places.to_dict(),
        )
        contract, more = check_kind(contract, output_kind, agreement.scores)
        notices += more
        if contract.output == "probabilities":
            rename_output(proto, "probabilities")
        state_count(proto, agreement.scores.shape[1])
        onnx.helper.set_model_props(
            proto, {entry.key: entry.value for entry in proto.metadata_props} | contract.to_metadata()
        )
        onnx.save(proto, draft)
        ScoreCAM(draft, provider="cpu").rehearse()
    notices += checked.notices
    for text in checked.notices:
        warnings.warn(text, OrtcamWarning, stacklevel=2)
    shape = replace(exposed.feature_map, layout=checked.layout).shape
    return ExportReport(
        output, contract.layer, shape, contract, agreement, checked.places, tuple(notices), checked.notices
    )


def _write(draft: Path, converted: Converted, precision: Precision, external_data_bytes: int) -> Converted:
    """Write the graph of a source to a file; return the source with the tolerances of the file's precision."""
    model = converted.model
    external = _weight_bytes(model) > external_data_bytes
    ir.external_data.load_to_model(model)  # the weights move with the graph
    ir.save(model, draft, external_data=f"{draft.name}.data" if external else None)
    if precision == "fp32":
        return converted
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
    """Raise errors of onnx and onnx-ir about an invalid graph as an ExportError that names the source."""
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
    """The result of exposing a layer.

    Attributes:
        feature_map: the target layer.
        source_layer: its name among the source's layers; None without one.
        contract: the contract for the file's metadata.
        notices: notices for the user.
    """

    feature_map: FeatureMap
    source_layer: str | None
    contract: Contract
    notices: tuple[str, ...]


def _expose(target: Target, labels: tuple[str, ...] | None, stated: StatedKind | None) -> _Exposed:
    """Make the target layer an output of its graph, in place."""
    converted, feature_map = target.converted, target.feature_map
    model = converted.model
    refuse_largest(model.graph.outputs[0], converted.name)
    classes = _count_classes(model)
    fitting, notice = fit_labels(labels or converted.labels, classes, labels is not None)
    contract = Contract(
        layer=target.name,
        value=feature_map.value.name or "",
        image_layout=converted.image_layout,
        activations_layout=feature_map.layout,
        preprocessing=converted.preprocessing,
        labels=fitting,
        source=converted.source,
    )
    scores, notices = settle_kind(read_scores(model.graph.outputs[0]), stated, classes, converted.name)
    contract = expose(model, feature_map, contract, scores)
    notices = notices if notice is None else (notice, *notices)
    name = target.name if target.name in target.layers else None
    exposed = _Exposed(feature_map, name, contract, notices)
    RemoveUnusedNodesPass()(model)
    for value in target.measured:
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
    """Return the number of scores in [batch,N], [batch,N,1,1] or [batch]; None if it is unknown."""
    shape = model.graph.outputs[0].shape
    if shape is not None and len(shape) == 1:
        return shape[0] if isinstance(shape[0], int) else 1
    counts = [dim for dim in dims(model.graph.outputs[0]) if dim != 1]
    return 1 if not counts and dims(model.graph.outputs[0]) else counts[0] if len(counts) == 1 else None


def _weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
