"""Convert a model file to float16: weights and arithmetic in float16, inputs and outputs still in float32."""

from __future__ import annotations

from typing import Literal

import onnx

from ortcam.errors import ExportError, one_line

Precision = Literal["fp32", "fp16"]
FP16_TOLERANCE = 2e-2  # float16 has 11 bits of mantissa; sums over a network lose some of them


def to_float16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a model to float16 with ONNX Runtime's own converter; the names of its values stay the same.

    Raises:
        ExportError: the converter fails.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        converted: onnx.ModelProto = convert_float_to_float16(proto, keep_io_types=True, disable_shape_infer=True)
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise ExportError(f"ONNX Runtime's converter cannot turn the model into float16: {one_line(error)}") from error
    return converted
