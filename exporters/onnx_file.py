"""ONNX files that somebody else exported: the graph is edited, the weights stay as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter

from ortcam.convention import Floats
from ortcam.errors import ExportError, ModelError, OptionError, one_line
from ortcam.exporters.sources import Converted, SourceOptions, choose_preprocessing
from ortcam.exporters.verify import BATCHES, Reference
from ortcam.graph.layers import all_values
from ortcam.model import PREFIX, Contract, read_proto
from ortcam.runtime.session import RUNTIME_ERRORS, create_session

OLDEST_OPSET, NEWEST_OPSET = 18, 20


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
    if (shape[2] or height, shape[3] or width) != (height, width):
        raise ExportError(
            f"{path} takes inputs of {shape[2]}x{shape[3]} only; --input-size {height}x{width} does not fit"
        )
    if shape[0] not in (None, 1):
        raise ExportError(f"{path} fixes a batch of {shape[0]}; expected a free batch or a batch of 1")
    contract = own_contract(proto, path)
    preprocessing = choose_preprocessing(
        options.preprocess, contract.preprocessing, options.input_size, shape[1], (height, width)
    )
    if preprocessing is not None and preprocessing.channel_count != shape[1]:
        raise ExportError(
            f"{path} takes {shape[1]} channels, but the preprocessing makes {preprocessing.channel_count}"
        )
    original = create_session(read_proto(path), [("CPUExecutionProvider", {})], str(path), path.resolve().parent)
    notices = []
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset > NEWEST_OPSET:
        notices.append(f"opset {opset} is kept; with more than {NEWEST_OPSET} ONNX Runtime may lack CUDA kernels")
    batches: tuple[int, ...] = BATCHES
    model = _updated(proto, path, opset)
    _shape_input(model, inputs[0].name, ["batch", shape[1], shape[2], shape[3]])
    if shape[0] is not None:
        if _runs(model, inputs[0].name, (3, shape[1], height, width), path):
            notices.append(f"the batch of 1 that {path.name} fixes was made free")
        else:
            model, batches = _updated(read_proto(path), path, opset), (1,)
            _shape_input(model, inputs[0].name, list(shape))
            notices.append(f"{path.name} fixes a batch of 1 in its graph: masked images are run one at a time")
    return Converted(
        name=str(path),
        model=model,
        input_shape=(shape[1], height, width),
        reference=lambda _module: _reference(original, shape[0]),
        source={
            "kind": "onnx",
            "name": path.name,
            "producer": proto.producer_name,
            "versions": {"onnx": onnx.__version__},
        },
        preprocessing=preprocessing,
        labels=contract.labels,
        batches=batches,
        notices=tuple(notices),
    )


def own_contract(proto: onnx.ModelProto, path: Path) -> Contract:
    """Return the contract that a file of ortcam's states already, else an empty one."""
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    return Contract.from_metadata(entries, str(path)) if PREFIX + "format" in entries else Contract("", "")


def _shape_input(model: ir.Model, name: str, shape: list[int | str | None]) -> None:
    """Make the image the only input, with this shape; all other shapes carry the file's batch and are forgotten."""
    entry = next(value for value in model.graph.inputs if value.name == name)
    entry.shape = ir.Shape(shape)
    model.graph.inputs[:] = [entry]
    for value in all_values(model.graph):
        value.shape = None


def _runs(model: ir.Model, name: str, shape: tuple[int, ...], path: Path) -> bool:
    """Whether the graph runs on an input of this shape."""
    try:
        session = create_session(
            ir.to_proto(model), [("CPUExecutionProvider", {})], str(path), path.resolve().parent, log_severity=4
        )
        results = session.run(None, {name: np.zeros(shape, np.float32)})
    except RUNTIME_ERRORS + (ModelError,):  # noqa: RUF005 (mypy reads the sum, not the star)
        return False
    return len(results[0]) == shape[0]


def _updated(proto: onnx.ModelProto, path: Path, opset: int) -> ir.Model:
    """Return the graph in an opset that the scoring graph's own nodes can stand in, with its weights in memory."""
    try:
        if opset < OLDEST_OPSET:
            return ir.from_proto(version_converter.convert_version(onnx.load(path), OLDEST_OPSET))
        model = ir.from_proto(proto) if not _has_external_data(proto) else ir.load(path)
        ir.external_data.load_to_model(model)  # the weights move with the graph
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        reason = f"; its opset {opset} must be brought to {OLDEST_OPSET}" if opset < OLDEST_OPSET else ""
        raise ExportError(f"{path} has a graph that cannot be edited: {one_line(error)}{reason}") from error
    return model


def _has_external_data(proto: onnx.ModelProto) -> bool:
    return any(weight.data_location == onnx.TensorProto.EXTERNAL for weight in proto.graph.initializer)


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
