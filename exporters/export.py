"""Export a model of another framework as a verified ONNX file with its target layers exposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, get_args

from ortcam.errors import OptionError
from ortcam.exporters.draft import EXTERNAL_DATA_BYTES, graph_errors
from ortcam.exporters.labels import read_labels
from ortcam.exporters.precision import Precision
from ortcam.exporters.quiet import home_directory
from ortcam.exporters.report import ExportReport
from ortcam.exporters.score_kind import StatedKind, check_stated_kind
from ortcam.exporters.scores import ClassScores
from ortcam.exporters.sources import SourceOptions, convert, find_layer_name
from ortcam.exporters.tasks.adopt import ConvertedTask
from ortcam.exporters.tasks.options import check_options
from ortcam.exporters.tasks.results import TaskOutputs
from ortcam.exporters.write import Results, write_file
from ortcam.model.contract import Layout
from ortcam.model.preprocessing import Preprocessing

OPSETS = (18, 19, 20)


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
    task: str = "auto",
    boxes: str | None = None,
    scores: str | None = None,
    anchors: str | PathLike[str] | Sequence[Any] | None = None,
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
            for a model in memory the module or Keras layer itself, such as ``model.layer4``. A list of these exposes
            several layers in one file, the target layer first.
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
        task: ``classify``, ``detect``, ``segment``, ``embed`` or ``value``. ``auto`` reads the file's metadata and
            known forms of detectors; everything else is a classifier.
        boxes: of a detector, ``NAME:FORMAT``: a tensor [B,N,4] and its format (see `BoxFormat`).
        scores: of a detector, ``NAME:KIND``: a tensor [B,N,C] and its kind (see `ScoreKind`); of a segmenter, the mask
            and ``softmax``, ``logits`` or ``probabilities``.
        anchors: of a detector with undecoded boxes, [N,4] or a file of it: centre x, centre y, width and height, as
            parts of the input. Of the heads of a YOLOv5, [levels,3,2]: widths and heights in pixels.

    Raises:
        ExportError: the source cannot be loaded or exported, or the result does not agree with it.
        LayerError: a layer is missing or is given twice, or ``auto`` finds no layer whose cells are places of the
            image.
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
    layers = _layer_names(source, layer)
    if input_layout not in (None, "NCHW", "NHWC"):
        raise OptionError(f"input_layout is {input_layout!r}; expected NCHW or NHWC")
    if precision not in get_args(Precision):
        raise OptionError(f"precision is {precision!r}; expected {' or '.join(get_args(Precision))}")
    check_stated_kind(output_kind)
    if isinstance(preprocess, Mapping):
        preprocess = Preprocessing.from_dict(preprocess)
    given = None if labels is None else read_labels(labels)
    size, rows_and_columns = _as_pair(input_size, "input_size", "pixels"), _as_pair(grid, "grid", "patches")
    stated = check_options(task, boxes, scores, anchors)
    options = SourceOptions(
        weights,
        size,
        opset,
        preprocess,
        layers,
        None if output_name is None else str(output_name),
        input_layout,
        rows_and_columns,
        allow_unsafe,
        None if given is None else len(given),
        stated,
    )
    with graph_errors(source), home_directory():
        converted = convert(source, options)
    results: Results = ClassScores(given, output_kind or converted.output_kind)
    if isinstance(converted, ConvertedTask):
        results = TaskOutputs(given)
    return write_file(source, converted, options, output, precision, external_data_bytes, results)


def _layer_names(source: Any, layer: Any) -> tuple[str, ...]:
    """Return the names of the given layers: one or several names, modules or Keras layers."""
    given = layer if isinstance(layer, list | tuple) else [layer]
    if not given:
        raise OptionError("layer is an empty list; expected one or several layers, or 'auto'")
    return tuple(one if isinstance(one, str) else find_layer_name(source, one) for one in given)


def _as_pair(given: Any, name: str, unit: str) -> tuple[int, int] | None:
    if given is None:
        return None
    sides = tuple(given) if isinstance(given, Sequence) else (given, given)
    if len(sides) != 2 or not all(hasattr(side, "__index__") and int(side) > 0 for side in sides):
        raise OptionError(f"{name} is {given!r}; expected a side or (height, width) in {unit}")
    return int(sides[0]), int(sides[1])
