"""Read ONNX files from elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx

from ortcam.errors import OptionError
from ortcam.exporters.adopt import ForeignGraph, adopt
from ortcam.exporters.score_kind import kind_of
from ortcam.exporters.sources import Converted, SourceOptions
from ortcam.exporters.tasks.options import TaskOptions
from ortcam.model.contract import PREFIX, Contract, Task
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
    unread = options.task.boxes is None and options.task.scores is None and options.output is None
    if not contract.classifies and unread and options.task.task in ("auto", contract.task):
        options = replace(options, task=_TASKS[contract.task], output=next(iter(contract.outputs)))
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


def own_contract(proto: onnx.ModelProto, path: Path) -> Contract:
    """Return the contract of a file that ortcam wrote, else an empty contract."""
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    return Contract.from_metadata(entries, str(path)) if PREFIX + "format" in entries else Contract(())
