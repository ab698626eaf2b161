"""Read ONNX files from elsewhere."""

from __future__ import annotations

from pathlib import Path

import onnx

from ortcam.errors import OptionError
from ortcam.exporters.adopt import ForeignGraph, adopt
from ortcam.exporters.score_kind import kind_of
from ortcam.exporters.sources import Converted, SourceOptions
from ortcam.model.contract import PREFIX, Contract
from ortcam.model.source import read_proto


def convert_onnx_file(path: Path, options: SourceOptions) -> Converted:
    """Read an ONNX classifier: one image in, class scores out.

    A file that ortcam wrote keeps its preprocessing, its labels and the kind of its scores.

    Raises:
        ExportError: the model is not such a classifier, or cannot be converted to the opset that the engine needs.
        ModelError: the file is missing, is not an ONNX model, or ONNX Runtime refuses it.
    """
    if options.weights is not None:
        raise OptionError("weights are for PyTorch and Keras sources; an ONNX file has its own")
    proto = read_proto(path)
    contract = own_contract(proto, path)
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
        output_kind=kind_of(contract) if contract.layers else None,
    )
    return adopt(foreign, options)


def own_contract(proto: onnx.ModelProto, path: Path) -> Contract:
    """Return the contract of a file that ortcam wrote, else an empty contract."""
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    return Contract.from_metadata(entries, str(path)) if PREFIX + "format" in entries else Contract(())
