"""Find the shapes of a graph's tensors: ONNX infers them where it can, and one run shows the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from ortcam.errors import ModelError
from ortcam.graph.layers import all_values, infer_shapes
from ortcam.runtime.session import CPU, RUNTIME_ERRORS, create_session


def complete_shapes(model: ir.Model, folder: Path, input_shape: tuple[int, ...] | None) -> list[ir.Value]:
    """Set the shapes and types of the graph's tensors, in place, and return the tensors whose shape was measured.

    A measured shape holds for one image. A dimension other than the first may grow with the batch, so a measured shape
    must not be written into a file.

    Args:
        model: the graph; its first input is the image.
        folder: where external weights are.
        input_shape: the image's dimensions without the batch; None if they are unknown; the graph is then not run.
    """
    infer_shapes(model)
    unknown = [value for value in all_values(model.graph) if value.name and not _is_known(value)]
    if not unknown or input_shape is None:
        return []
    image = model.graph.inputs[0]
    dtype = np.float32 if image.dtype is None else image.dtype.numpy()
    proto = ir.to_proto(model)
    outputs = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in unknown if value.name not in outputs)
    names = [value.name for value in unknown]
    try:
        session = create_session(proto, CPU, "the model", folder, log_severity=4)
        results = session.run(names, {image.name: np.zeros((1, *input_shape), dtype)})
    except RUNTIME_ERRORS + (ModelError,):  # noqa: RUF005 (mypy reads the sum, not the star)
        return []
    batch = image.shape[0] if image.shape is not None else 1
    for value, result in zip(unknown, results, strict=True):
        if isinstance(result, np.ndarray) and result.ndim:
            value.shape = ir.Shape([batch if result.shape[0] == 1 else result.shape[0], *result.shape[1:]])
            value.type = value.type or ir.TensorType(ir.DataType.from_numpy(result.dtype))
    return unknown


def _is_known(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(dim, int) for dim in list(value.shape)[1:])
