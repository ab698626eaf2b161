"""ONNX files that somebody else exported: the graph is edited, the weights stay as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter

from ortcam.convention import Floats
from ortcam.errors import ExportError, OptionError, one_line
from ortcam.exporters.sources import Converted, SourceOptions, choose_preprocessing
from ortcam.exporters.verify import BATCHES, Reference
from ortcam.graph.layers import all_values
from ortcam.model import read_proto
from ortcam.runtime.session import RUNTIME_ERRORS, create_session

OLDEST_OPSET = 18


def convert_onnx_file(path: Path, options: SourceOptions) -> Converted:
    """Read an ONNX classifier [batch,C,H,W] -> [batch,N], and make its batch symbolic.

    Raises:
        ExportError: it is no such classifier, or the newer opset that the engine needs cannot be reached.
        ModelError: the file is missing or no ONNX model.
    """
    if options.weights is not None:
        raise OptionError("weights are for PyTorch sources; an ONNX file has its own")
    proto = read_proto(path)
    inputs = [value for value in proto.graph.input if value.name not in {w.name for w in proto.graph.initializer}]
    if len(inputs) != 1:
        raise ExportError(f"{path} has the inputs {[value.name for value in inputs]}; expected one, the image")
    shape = [dim.dim_value or None for dim in inputs[0].type.tensor_type.shape.dim]
    if len(shape) != 4 or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise ExportError(
            f"{path} takes {inputs[0].name!r} of shape {shape}; expected float32 [batch,channels,height,width]"
        )
    if shape[1] not in (1, 3):
        raise ExportError(
            f"{path} takes an input with {shape[1]} channels in {shape}; "
            "expected 1 or 3, as [batch,channels,height,width]"
        )
    height, width = options.input_size or (shape[2], shape[3])
    if height is None or width is None:
        raise ExportError(f"{path} has an input of any size {shape}; give the size with --input-size")
    notices = [] if shape[0] is None else [f"the batch of {shape[0]} that {path.name} fixes was made free"]
    original = create_session(read_proto(path), [("CPUExecutionProvider", {})], str(path), path.resolve().parent)
    model = _updated(proto, path)
    entry = next(value for value in model.graph.inputs if value.name == inputs[0].name)
    entry.shape = ir.Shape(["batch", shape[1], height if shape[2] else None, width if shape[3] else None])
    model.graph.inputs[:] = [entry]
    if shape[0] is not None:  # the shapes that the file states all carry that batch; they are inferred anew
        for value in all_values(model.graph):
            value.shape = None
    return Converted(
        name=str(path),
        model=model,
        input_shape=(shape[1], height, width),
        reference=lambda _layer: _reference(original, shape[0]),
        source={
            "kind": "onnx",
            "name": path.name,
            "producer": proto.producer_name,
            "versions": {"onnx": onnx.__version__},
        },
        preprocessing=choose_preprocessing(options.preprocess, None, (height, width), shape[1]),
        batches=BATCHES,
        notices=tuple(notices),
    )


def _updated(proto: onnx.ModelProto, path: Path) -> ir.Model:
    """Return the graph in an opset that the scoring graph's own nodes can stand in."""
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        try:
            proto = version_converter.convert_version(onnx.load(path), OLDEST_OPSET)
        except (RuntimeError, ValueError) as error:
            raise ExportError(
                f"{path} has opset {opset}, which cannot be brought to {OLDEST_OPSET}: {one_line(error)}"
            ) from error
        return ir.from_proto(proto)
    model = ir.load(path)
    ir.external_data.load_to_model(model)  # the weights move with the graph
    return model


def _reference(session: object, batch: int | None) -> Reference:
    """Run the original file, row by row where it fixes its batch at one."""

    def run(inputs: Floats, _activations: Floats) -> tuple[Floats, float | None]:
        name = session.get_inputs()[0].name  # type: ignore[attr-defined]
        chunks = [inputs] if batch is None else [inputs[row : row + batch] for row in range(0, len(inputs), batch)]
        try:
            scores = [session.run(None, {name: chunk})[0] for chunk in chunks]  # type: ignore[attr-defined]
        except RUNTIME_ERRORS as error:
            raise ExportError(f"the original model does not run: {one_line(error)}") from error
        return np.concatenate(scores), None

    return run
