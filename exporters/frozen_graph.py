"""Convert frozen TensorFlow graphs: a GraphDef in a .pb or .pbtxt file, with constant weights and no signature."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from ortcam.errors import ExportError, OptionError, nearest
from ortcam.exporters.adopt import ForeignGraph, adopt
from ortcam.exporters.outputs import EXPECTED_SCORES, ONLY_CLASSIFIERS
from ortcam.exporters.saved_model import UNSAFE
from ortcam.exporters.sources import Converted, SourceOptions
from ortcam.exporters.tensorflow import (
    VERSIONS,
    SavedModel,
    quiet,
    reason,
    show_maps,
    sized,
    tf,
    to_numpy,
    to_onnx,
)

_VARIABLES = {"Variable", "VariableV2", "VarHandleOp"}
_PLACEHOLDERS = {"Placeholder", "PlaceholderV2"}
_NO_SCORES = {"Const", "Placeholder", "PlaceholderWithDefault"}
_SAVE = "save the model with tf.saved_model.save or model.save('model.keras')"


def convert_frozen_graph(path: Path, options: SourceOptions) -> Converted:
    """Turn a frozen TensorFlow graph into an ONNX graph.

    The class scores are the floating-point tensor from which the graph computes no other floating-point tensor. The
    image is the only placeholder from which it computes the scores.

    Args:
        path: the .pb or .pbtxt file.
        options: `output` names the node of the scores; `input_size` gives a free height and width.

    Raises:
        ExportError: the file does not hold a frozen graph of an image classifier, or cannot be converted.
        OptionError: weights were given, or the output is missing.
    """
    if options.weights is not None:
        raise OptionError(f"got weights, but {path} has its own; leave them out: weights are for models built by code")
    name = str(path)
    graph_def = _read(path)
    _refuse_what_cannot_run(graph_def, name, options.allow_unsafe)
    imported = _import(graph_def, name)
    outputs = _find_outputs(graph_def, imported.graph, options, name)
    if options.output is not None:
        options = replace(options, output=outputs[0])
    placeholder = imported.graph.get_tensor_by_name(f"{_find_image(graph_def, outputs, name)}:0")
    shape = None if placeholder.shape.rank is None else placeholder.shape.as_list()
    if shape is None and options.input_size is not None:  # TensorFlow 1 kept no shape; images were channels last
        shape = [None, *options.input_size, 3]
    image = sized(shape, placeholder.dtype, options.input_size, name)
    function = imported.prune(placeholder, {each: imported.graph.get_tensor_by_name(f"{each}:0") for each in outputs})
    traced = to_onnx(lambda values: {each: function(values)[each] for each in outputs}, image, name)
    names = [output.name for output in traced.proto.graph.output]
    layers = _find_tensors(traced.proto, {node.name for node in graph_def.node})
    run_maps = show_maps(traced, {tensor: node for node, tensor in layers.items()})

    def run(values: NDArray[Any], place: int) -> tuple[NDArray[Any], Mapping[str, NDArray[Any]]]:
        with quiet():
            result = to_numpy(function(tf.constant(values))[names[place]])
        return result, run_maps(values)

    foreign = ForeignGraph(
        name=name,
        proto=traced.proto,
        source={"kind": "frozen graph", "name": path.name, "versions": VERSIONS},
        run=run,
        runs_batch=image.shape[0],
        layers=layers,
    )
    return adopt(foreign, options)


def _read(path: Path) -> Any:
    """Return the GraphDef in a file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExportError(f"cannot read {path}: no such file") from error
    graph_def = tf.compat.v1.GraphDef()
    try:
        if path.suffix.lower() == ".pbtxt":
            text_format.Parse(content.decode(), graph_def)
        else:
            graph_def.ParseFromString(content)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError):
        graph_def = tf.compat.v1.GraphDef()
    if not any(node.op for node in graph_def.node):
        raise ExportError(f"{path} ({len(content)} bytes) {_describe(path, content)}")
    return graph_def


def _describe(path: Path, content: bytes) -> str:
    """Say what a file is if it is not a TensorFlow graph."""
    with contextlib.suppress(DecodeError):
        if SavedModel.FromString(content).meta_graphs[:1]:
            return (
                "is the graph of a SavedModel; name it saved_model.pb beside its folder variables, and give the folder"
            )
    with contextlib.suppress(DecodeError):
        if onnx.ModelProto.FromString(content).graph.node[:1]:
            return f"is an ONNX file; name it {path.stem}.onnx"
    return "is not a TensorFlow graph, or is damaged; expected a frozen GraphDef, or the folder of a SavedModel"


def _refuse_what_cannot_run(graph_def: Any, name: str, allow_unsafe: bool) -> None:
    """Refuse a graph without its weights, and a graph that reads or writes files or calls Python."""
    nodes = [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]
    operations = {node.op for node in nodes}
    unsafe = sorted(operations & set(UNSAFE))
    if unsafe and not allow_unsafe:
        raise ExportError(
            f"{name} has operations that read or write files or run Python ({', '.join(unsafe)}) and is not loaded; "
            "use --allow-unsafe if you trust it"
        )
    if operations & _VARIABLES:
        raise ExportError(
            f"{name} is a graph without its weights (it has variables); expected a frozen graph; where the model was "
            f"trained, {_SAVE}"
        )


def _import(graph_def: Any, name: str) -> Any:
    """Return the graph as a function of TensorFlow 2, without running it."""
    try:
        with quiet():
            return tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph_def, name=""), [])
    except Exception as error:  # TensorFlow raises all kinds
        raise ExportError(f"{name} cannot be loaded by TensorFlow {tf.__version__}: {reason(error)}") from error


def _find_outputs(graph_def: Any, graph: Any, options: SourceOptions, name: str) -> list[str]:
    """Return the last nodes that can be class scores or outputs of the stated task, or the node that the user named."""
    wanted, ranks = options.output, (None, 2, 3, 4) if options.task.is_stated else (None, 2, 4)
    known = {node.name for node in graph_def.node}
    if wanted is not None:
        node = wanted.removesuffix(":0")
        if node not in known:
            raise OptionError(f"{name} has no node {wanted!r}{nearest(wanted, known)}")
        return [node]
    nodes = {node.name: node for node in graph_def.node}
    while True:  # remove summaries, class numbers and losses until only scores are left
        read = {_node_of(entry) for node in nodes.values() for entry in node.input}
        ends = [end for end in nodes if end not in read]
        others = [end for end in ends if not _may_be_scores(graph.get_operation_by_name(end), ranks)]
        if not others:
            break
        for end in others:
            del nodes[end]
    if not ends:
        last = [node.name for node in graph_def.node][-3:]
        raise ExportError(f"{name} ends in {last}; {EXPECTED_SCORES}")
    return ends


def _node_of(entry: str) -> str:
    """Return the name of the node in an input's name: ``node``, ``node:1`` or ``^node``."""
    return entry.lstrip("^").partition(":")[0]


def _may_be_scores(operation: Any, ranks: tuple[int | None, ...]) -> bool:
    if operation.type in _NO_SCORES or len(operation.outputs) != 1:
        return False
    (result,) = operation.outputs
    return result.dtype.is_floating and result.shape.rank in ranks


def _find_tensors(proto: onnx.ModelProto, nodes: set[str]) -> dict[str, str]:
    """Return the tensor of the ONNX graph for each node of the frozen graph; tensor names there have a prefix."""
    found = {}
    for value in (value for node in proto.graph.node for value in node.output):
        node = value.partition("PartitionedCall/")[2].removesuffix(":0")
        if node in nodes:
            found[node] = value
    return found


def _find_image(graph_def: Any, outputs: list[str], name: str) -> str:
    """Return the only placeholder from which the outputs are computed."""
    nodes = {node.name: node for node in graph_def.node}
    waiting, needed = list(outputs), set()
    while waiting:
        node = waiting.pop()
        if node in nodes and node not in needed:
            needed.add(node)
            waiting += map(_node_of, nodes[node].input)
    found = [node.name for node in graph_def.node if node.op in _PLACEHOLDERS and node.name in needed]
    if len(found) != 1:
        raise ExportError(
            f"{name} has the placeholders {found}; expected one, the image: {ONLY_CLASSIFIERS}; where the model was "
            f"trained, {_SAVE}"
        )
    return str(found[0])
