"""Convert a graph to an editable form: a supported opset, no functions, no weights among the inputs."""

from __future__ import annotations

from pathlib import Path, PurePath

import onnx
import onnx_ir as ir
from onnx import inliner, version_converter

from ortcam.errors import ExportError, one_line

OLDEST_OPSET, NEWEST_OPSET = 18, 20
# The IR version of these opsets; older IR versions list weights among the inputs.
_OLDEST_IR = 8


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators in a model; 0 if the model states none."""
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)


def make_editable(proto: onnx.ModelProto, folder: Path, name: str) -> ir.Model:
    """Return a graph in an opset that the scoring graph's nodes support; external weights stay outside.

    Args:
        proto: the graph; its nodes stay unchanged.
        folder: where its external weights are.
        name: its name in messages.

    Raises:
        ExportError: it cannot be converted or read.
    """
    opset = opset_of(proto)
    try:
        if proto.functions:
            proto = inliner.inline_local_functions(proto)
        if opset < OLDEST_OPSET:
            proto.ir_version = max(proto.ir_version, _OLDEST_IR)  # from 4 on, weights need not be inputs
            proto = version_converter.convert_version(proto, OLDEST_OPSET)
        model = ir.from_proto(proto)
    except (version_converter.ConvertError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"; its opset {opset} must be brought to {OLDEST_OPSET}" if opset < OLDEST_OPSET else ""
        raise ExportError(f"{name} has a graph that cannot be edited: {one_line(error)}{reason}") from error
    model.ir_version = max(model.ir_version, _OLDEST_IR)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value.base_dir = folder
    weights = set(model.graph.initializers)
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.name not in weights]
    return model


def refuse_escapes(proto: onnx.ModelProto, name: str) -> None:
    """Refuse a graph that names weights outside the model's own folder.

    Raises:
        ExportError: the graph names such weights.
    """
    for weight in proto.graph.initializer:
        for entry in weight.external_data:
            place = PurePath(entry.value)
            if entry.key == "location" and (place.is_absolute() or ".." in place.parts):
                raise ExportError(f"{name} keeps weights in {entry.value!r}; expected a file beside it")
