"""Read ONNX files from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from ortcam.errors import ExportError, OptionError
from ortcam.exporters.adopt import ForeignGraph, adopt
from ortcam.exporters.score_kind import kind_of
from ortcam.exporters.sources import Converted, SourceOptions
from ortcam.exporters.tasks.options import TaskOptions, read_boxes, read_kind
from ortcam.model.contract import PREFIX, ROLES, Contract, Task
from ortcam.model.source import read_proto

# How the outputs of a model file are read when it is exported again.
_TASKS: dict[Task, TaskOptions] = {
    "detect": TaskOptions("detect", "boxes:xyxy", "scores:probabilities"),
    "segment": TaskOptions("segment", scores="mask:probabilities"),
    "embed": TaskOptions("embed"),
    "value": TaskOptions("value"),
}


def convert_onnx_file(path: Path, options: SourceOptions) -> Converted:
    """Read an ONNX file: one image in, class scores or the outputs of another task out.

    A file that ortcam wrote keeps its task, its preprocessing, its labels and the kind of its scores.

    Raises:
        ExportError: the model is not of this form, or cannot be converted to the opset that the engine needs.
        ModelError: the file is missing, is not an ONNX model, or ONNX Runtime refuses it.
    """
    if options.weights is not None:
        raise OptionError("weights are for PyTorch and Keras sources; an ONNX file has its own")
    proto = read_proto(path)
    contract = own_contract(proto, path)
    if contract.layers:
        if any(layer.output is None for layer in contract.layers):
            raise ExportError(f"{path} is a packed explainer; expected the model file from which it was packed")
        _hide_layers(proto, contract)
        options = _as_written(options, contract, proto.graph.output, path)
    source = {
        "kind": "onnx",
        "name": path.name,
        "producer": proto.producer_name,
        "versions": {"onnx": onnx.__version__},
    }
    foreign = ForeignGraph(
        str(path),
        proto,
        source,
        folder=path.resolve().parent,
        layers={layer.name: layer.output for layer in contract.layers if layer.output is not None},
        preprocessing=contract.preprocessing,
        labels=contract.labels,
        output_kind=kind_of(contract) if contract.layers and contract.classifies else None,
    )
    return adopt(foreign, options)


def _hide_layers(proto: onnx.ModelProto, contract: Contract) -> None:
    """Remove the exposed layers from the outputs of a file, in place; their tensors stay inside the graph."""
    exposed = {layer.output for layer in contract.layers}
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in proto.graph.output]
    del proto.graph.output[:]
    proto.graph.output.extend(value for value in kept if value.name not in exposed)


def _as_written(
    options: SourceOptions, contract: Contract, outputs: Sequence[onnx.ValueInfoProto], path: Path
) -> SourceOptions:
    """Return the options that read a file that ortcam wrote for the task of its contract.

    Raises:
        ExportError: the user wants another task, and names no tensor for it.
        OptionError: the user names an exposed layer.
    """
    task, stated = contract.task, options.task
    left = ", ".join(value.name for value in outputs)
    named = [] if options.output is None else [options.output]
    named += [] if stated.boxes is None else read_boxes(stated.boxes).names
    named += [] if stated.scores is None else read_kind(stated.scores).names
    for layer in contract.layers:
        if layer.output in named:
            raise OptionError(f"{layer.output!r} of {path} is its layer {layer.name!r}; expected one of {left}")
    if stated.task not in ("auto", task) and not named:
        how = "--boxes and --scores" if stated.task == "detect" else "--output-name"
        raise ExportError(
            f"{path} was exported for task {task}, and returns {left}; expected --task {task}: export its source for "
            f"task {stated.task}, or name tensors of the graph with {how}"
        )
    if task == "classify" or stated.task not in ("auto", task) or stated.boxes is not None or stated.scores is not None:
        return options
    if options.output in (None, *contract.outputs.values()):
        output = None if task == "detect" else contract.outputs[ROLES[task][0]]
        return replace(options, task=_TASKS[task], output=output)
    return replace(options, task=replace(stated, task=task))  # another tensor of the same task


def own_contract(proto: onnx.ModelProto, path: Path) -> Contract:
    """Return the contract of a file that ortcam wrote, else an empty contract."""
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    return Contract.from_metadata(entries, str(path)) if PREFIX + "format" in entries else Contract(())
