"""Import TensorFlow quietly, and convert with tf2onnx: shared by Keras, SavedModel and TFLite sources."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ortcam.errors import ExportError, OrtcamError, one_line
from ortcam.exporters.quiet import environment
from ortcam.exporters.quiet import quiet as quiet_python

__all__ = [
    "NEWEST_OPSET",
    "VERSIONS",
    "BuiltinOperator",
    "Model",
    "SavedModel",
    "TensorType",
    "Traced",
    "keras",
    "quiet",
    "reason",
    "refuse_unconverted",
    "show_maps",
    "sized",
    "tf",
    "tf2onnx",
    "to_numpy",
    "to_onnx",
]

NEWEST_OPSET = 18  # of tf2onnx 1.17


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence TensorFlow, absl and tf2onnx inside the block: loggers, warnings, prints and the output of C++ code."""
    with _discarded(1, sys.stdout), _discarded(2, sys.stderr), quiet_python(logging.CRITICAL):
        yield


@contextlib.contextmanager
def _discarded(descriptor: int, stream: Any) -> Iterator[None]:
    """Discard output to a file descriptor inside the block, after flushing Python's own buffer."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError):  # a process may have closed either
            stream.flush()
            saved = os.dup(descriptor)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, descriptor)
            with Path(os.devnull).open("wb") as sink:
                os.dup2(sink.fileno(), descriptor)
        yield


with quiet(), environment(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3"):
    import keras
    import tensorflow as tf
    import tf2onnx
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
    from tf2onnx.tflite.BuiltinOperator import BuiltinOperator
    from tf2onnx.tflite.Model import Model
    from tf2onnx.tflite.TensorType import TensorType

    with contextlib.suppress(RuntimeError):  # a process that uses TensorFlow already has chosen its devices
        tf.config.set_visible_devices([], "GPU")

VERSIONS = {"tensorflow": tf.__version__, "keras": keras.__version__, "tf2onnx": tf2onnx.__version__}

# Takes an image batch, returns tensors by name.
Function = Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True)
class Traced:
    """A function of TensorFlow tensors, converted.

    Attributes:
        proto: the graph; its outputs have the names and the order of the function's results.
        concrete: the function as TensorFlow runs it.
    """

    proto: onnx.ModelProto
    concrete: Any


def to_onnx(function: Function, image: tf.TensorSpec, name: str) -> Traced:
    """Convert a function of TensorFlow tensors.

    Args:
        function: takes an image batch and returns tensors by name.
        image: the batch's shape and dtype.
        name: the source's name in messages.

    Raises:
        ExportError: the function cannot be traced, or has operations that ONNX lacks.
    """
    order: list[str] = []

    def ordered(inputs: Any) -> dict[str, Any]:
        outputs = dict(function(inputs))
        order[:] = outputs
        return outputs

    spec = tf.TensorSpec(image.shape, image.dtype, name="image")
    try:
        with quiet(), environment(TF_CPP_MIN_LOG_LEVEL="3"):
            traced = tf.function(ordered, autograph=False)
            concrete = traced.get_concrete_function(spec)
            readable = _without_compiled_parts(traced, ordered, spec)
            proto, _ = tf2onnx.convert.from_function(readable, input_signature=[spec], opset=NEWEST_OPSET)
            _fill_in_constants(proto, readable.get_concrete_function(spec))
    except OrtcamError:
        raise
    except Exception as error:  # the model's own code runs here, and tf2onnx raises all kinds
        raise ExportError(f"{name} cannot be converted: {reason(error)}") from error
    outputs = sorted(proto.graph.output, key=lambda output: order.index(output.name))
    outputs = [onnx.ValueInfoProto.FromString(output.SerializeToString()) for output in outputs]
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)
    return Traced(refuse_unconverted(proto, name), concrete)


def _without_compiled_parts(traced: Any, function: Function, image: tf.TensorSpec) -> Any:
    """Return a tf.function without parts that XLA compiles (Keras' grouped convolutions), so that tf2onnx can read it.

    TensorFlow traces through functions while they run eagerly.
    """
    operations = traced.get_concrete_function(image).graph.get_operations()
    if not any("_XlaMustCompile" in operation.node_def.attr for operation in operations):
        return traced
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        readable = tf.function(function, autograph=False)
        readable.get_concrete_function(image)
        return readable
    finally:
        tf.config.run_functions_eagerly(before)


# The most numbers for an image that the feature maps of a run may have. The last maps are returned, because a target
# layer that is found automatically is among them.
_MOST_NUMBERS = 1 << 26


def show_maps(traced: Traced, names: Mapping[str, str]) -> Callable[[NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return a function that computes the tensors [B,...] of rank 3 and 4 that a traced function shares with its graph.

    Args:
        traced: the function.
        names: the source's names of tensors, by TensorFlow's names; these tensors are shown under the source's names.
    """
    with quiet():
        frozen = convert_variables_to_constants_v2(traced.concrete, lower_control_flow=False, aggressive_inlining=True)
    known = {value for node in traced.proto.graph.node for value in node.output}
    tensors = [tensor for operation in frozen.graph.get_operations() for tensor in operation.outputs]
    shown: list[Any] = []
    numbers = 0
    for tensor in reversed(tensors):
        if (tensor.name in names or tensor.name in known) and tensor.shape.rank in (3, 4) and tensor.dtype.is_floating:
            numbers += math.prod(dim or 1 for dim in tensor.shape.as_list()[1:])
            if numbers > _MOST_NUMBERS:
                break
            shown.insert(0, tensor)
    shown.sort(key=lambda tensor: tensor.name not in names)  # of equal tensors, prefer those that the source names
    keys = [names.get(tensor.name, tensor.name) for tensor in shown]
    run = frozen.prune(frozen.inputs, shown)

    def run_maps(inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        with quiet():
            return dict(zip(keys, map(to_numpy, run(tf.constant(inputs))), strict=True))

    return run_maps


def _fill_in_constants(proto: onnx.ModelProto, traced: Any) -> None:
    """Write a model's constant tensors into the graph, in place; tf2onnx turns them into inputs."""
    held = {inner.name: value for value, inner in traced.graph.captures if value.dtype != tf.resource}
    inputs = [entry for entry in proto.graph.input if entry.name not in held]
    if len(inputs) < len(proto.graph.input):
        names = [entry.name for entry in proto.graph.input if entry.name in held]
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(held[name].numpy(), name) for name in names)
        inputs = [onnx.ValueInfoProto.FromString(entry.SerializeToString()) for entry in inputs]
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)


def refuse_unconverted(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return the graph if all its operations are ONNX operators; replace the erfc of Keras' GELU by 1 - erf.

    Raises:
        ExportError: tf2onnx left operations of TensorFlow in the graph.
    """
    nodes = [part for node in proto.graph.node for part in (_expand_erfc(node) if node.op_type == "Erfc" else [node])]
    foreign = sorted({node.op_type for node in nodes if not onnx.defs.has(node.op_type, node.domain)})
    if foreign:
        compiled = "StatefulPartitionedCall" in foreign
        raise ExportError(
            f"{name} cannot be converted: ONNX has no counterpart of {', '.join(foreign)}"
            + ("; of a model with grouped convolutions, give the .keras file" if compiled else "")
        )
    if len(nodes) > len(proto.graph.node):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
    return proto


def _expand_erfc(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return 1 - erf(x), float32, in place of erfc(x)."""
    (output,) = node.output
    one, erf = f"{output}/one", f"{output}/erf"
    return [
        onnx.helper.make_node("Constant", [], [one], value_float=1.0),
        onnx.helper.make_node("Erf", node.input, [erf], name=erf),
        onnx.helper.make_node("Sub", [one, erf], [output], name=node.name),
    ]


def reason(error: BaseException) -> str:
    """Return the first part of an error of TensorFlow or Keras, without the place and the arguments that follow it."""
    text = str(error).rpartition("Exception encountered: ")[2].strip()
    text = re.split(r"\n\n|Arguments received by|Full object config|\{\{function_node", text)[0]
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # Keras sets names in bold
    return one_line(RuntimeError(text) if text.strip() else error)


def to_numpy(tensor: Any) -> NDArray[Any]:
    """Return a tensor's values; half-precision values as float32."""
    tensor = tf.convert_to_tensor(tensor)
    values: NDArray[Any] = (tf.cast(tensor, tf.float32) if tensor.dtype.is_floating else tensor).numpy()
    return np.asarray(values)


def sized(
    shape: Sequence[int | None] | None, dtype: Any, size: tuple[int, int] | None, name: str, takes: str = "takes"
) -> tf.TensorSpec:
    """Return the shape of an image batch, with the user's size if the model's size is free.

    Raises:
        ExportError: it is not an image batch, or its size is free and the user gave none.
    """
    dtype = tf.as_dtype(dtype)
    if shape is None or len(shape) != 4 or not (dtype.is_floating or dtype.is_integer):
        what = "a tensor of any rank" if shape is None else list(shape)
        raise ExportError(
            f"{name} {takes} {dtype.name} {what}; expected images, such as float32 [batch,height,width,channels]"
        )
    places = (2, 3) if shape[1] in (1, 3) and shape[3] not in (1, 3) else (1, 2)
    filled = list(shape)
    for place, side in zip(places, size or (None, None), strict=True):
        if filled[place] is None:
            filled[place] = side
    if None in (filled[places[0]], filled[places[1]]):
        raise ExportError(f"{name} {takes} images of any size {list(shape)}; give the size with --input-size")
    return tf.TensorSpec(filled, dtype)
