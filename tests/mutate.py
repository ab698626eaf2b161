"""Exports mutants of a real ONNX file, one after the other: python mutate.py FILE FIRST COUNT FOLDER.

Prints a line of JSON for each: the number of the mutant, and the error's message or null. What is not a line of an
OrtcamError ends the process, which the test that started it sees.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

import ortcam
from ortcam.exporters import export

Random = np.random.Generator


def mutate_bytes(whole: bytes, random: Random) -> bytes:
    """Change, cut out, repeat or cut off bytes; mostly among those that are no weights."""
    broken = bytearray(whole)
    for _ in range(random.integers(1, 5)):
        kind = random.integers(0, 10)
        at = int(random.integers(0, len(broken)))
        if kind < 8:  # the names and structure of the nodes come first in a file, the weights behind them
            at = int(random.integers(0, min(len(broken), 12_000)))
            broken[at] = random.integers(0, 256)
        elif kind < 9 and random.integers(0, 2):
            del broken[at : at + int(random.integers(1, 9))]
        elif kind < 9:
            broken[at:at] = broken[at : at + int(random.integers(1, 33))]
        else:
            del broken[at:]
    return bytes(broken)


def _some(random: Random, graph: onnx.GraphProto) -> onnx.NodeProto:
    return graph.node[int(random.integers(0, len(graph.node)))]


def swap_operator(random: Random, graph: onnx.GraphProto) -> None:
    _some(random, graph).op_type = _some(random, graph).op_type


def unknown_operator(random: Random, graph: onnx.GraphProto) -> None:
    node = _some(random, graph)
    node.op_type, node.domain = "Frobnicate", str(random.choice(["", "custom", "ai.onnx.ml"]))


def rewire(random: Random, graph: onnx.GraphProto) -> None:
    node, other = _some(random, graph), _some(random, graph)
    if node.input and other.output:  # may close a cycle
        node.input[int(random.integers(0, len(node.input)))] = other.output[0]


def dangle(random: Random, graph: onnx.GraphProto) -> None:
    node = _some(random, graph)
    if node.input:
        node.input[int(random.integers(0, len(node.input)))] = "nowhere"


def drop_node(random: Random, graph: onnx.GraphProto) -> None:
    del graph.node[int(random.integers(0, len(graph.node)))]


def repeat_node(random: Random, graph: onnx.GraphProto) -> None:
    graph.node.append(_some(random, graph))


def drop_inputs(random: Random, graph: onnx.GraphProto) -> None:
    node = _some(random, graph)
    del node.input[int(random.integers(0, len(node.input) + 1)) :]


def more_outputs(random: Random, graph: onnx.GraphProto) -> None:
    _some(random, graph).output.extend(["more", ""])


def change_attribute(random: Random, graph: onnx.GraphProto) -> None:
    with_ints = [a for node in graph.node for a in node.attribute if a.ints or a.type == onnx.AttributeProto.INT]
    if not with_ints:
        return
    attribute = with_ints[int(random.integers(0, len(with_ints)))]
    number = int(random.choice([-(2**63), -7, -1, 0, 1, 3, 255, 2**31, 2**62]))
    if attribute.ints:
        attribute.ints[int(random.integers(0, len(attribute.ints)))] = number
    else:
        attribute.i = number


def change_weight_shape(random: Random, graph: onnx.GraphProto) -> None:
    weight = graph.initializer[int(random.integers(0, len(graph.initializer)))]
    if weight.dims:
        at = int(random.integers(0, len(weight.dims)))
        weight.dims[at] = int(random.choice([-1, 0, 1, weight.dims[at] + 1, 2**40]))


def change_weight_type(random: Random, graph: onnx.GraphProto) -> None:
    graph.initializer[int(random.integers(0, len(graph.initializer)))].data_type = int(random.integers(0, 25))


def drop_weight(random: Random, graph: onnx.GraphProto) -> None:
    del graph.initializer[int(random.integers(0, len(graph.initializer)))]


def external_weight(random: Random, graph: onnx.GraphProto) -> None:
    weight = graph.initializer[int(random.integers(0, len(graph.initializer)))]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    place = str(random.choice(["nothing.bin", "../../../etc/passwd", "/etc/passwd", ""]))
    weight.external_data.add(key="location", value=place)


def change_input(random: Random, graph: onnx.GraphProto) -> None:
    kind = graph.input[0].type.tensor_type
    what = int(random.integers(0, 3))
    if what == 0:
        kind.elem_type = int(random.integers(0, 25))
    elif what == 1 and kind.shape.dim:
        del kind.shape.dim[int(random.integers(0, len(kind.shape.dim))) :]
    elif kind.shape.dim:
        dim = kind.shape.dim[int(random.integers(0, len(kind.shape.dim)))]
        dim.dim_value = int(random.choice([-1, 0, 1, 5, 10_000, 2**40]))


def change_output(random: Random, graph: onnx.GraphProto) -> None:
    graph.output[0].name = str(random.choice(["nowhere", "", graph.node[0].output[0], graph.node[-2].output[0]]))


def change_opset(random: Random, model: onnx.ModelProto) -> None:
    model.opset_import[0].version = int(random.choice([0, 1, 5, 7, 9, 11, 13, 18, 22, 99, 2**40]))


def change_ir(random: Random, model: onnx.ModelProto) -> None:
    model.ir_version = int(random.choice([0, 1, 3, 99, 2**40]))


OF_GRAPH: list[Callable[[Random, onnx.GraphProto], None]] = [
    swap_operator, unknown_operator, rewire, dangle, drop_node, repeat_node, drop_inputs, more_outputs,
    change_attribute, change_weight_shape, change_weight_type, drop_weight, external_weight, change_input,
    change_output,
]  # fmt: skip
OF_MODEL: list[Callable[[Random, onnx.ModelProto], None]] = [change_opset, change_ir]


def mutant(whole: bytes, number: int) -> bytes:
    """Return the mutant of that number: even ones have other bytes, odd ones another graph."""
    random = np.random.default_rng(number)
    if number % 2 == 0:
        return mutate_bytes(whole, random)
    model = onnx.ModelProto.FromString(whole)
    for _ in range(random.integers(1, 3)):
        choice = int(random.integers(0, len(OF_GRAPH) + len(OF_MODEL)))
        if choice < len(OF_GRAPH):
            OF_GRAPH[choice](random, model.graph)
        else:
            OF_MODEL[choice - len(OF_GRAPH)](random, model)
    return model.SerializeToString()


def main(file: str, first: str, count: str, folder: str) -> None:
    whole = Path(file).read_bytes()
    source, output = Path(folder) / "mutant.onnx", Path(folder) / "out" / "cam.onnx"
    for number in range(int(first), int(first) + int(count)):
        print(json.dumps({"begun": number}), flush=True)
        source.write_bytes(mutant(whole, number))
        message = None
        try:
            export(source, output, preprocess="imagenet", input_size=None)
        except ortcam.OrtcamError as error:
            message = str(error)
        left = [path.name for path in output.parent.iterdir()] if output.parent.exists() else []
        print(json.dumps({"number": number, "error": message, "left": left}), flush=True)
        output.unlink(missing_ok=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
