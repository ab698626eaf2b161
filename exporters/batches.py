"""Batches: free the batch of graphs that were written for one picture, and find scores that mix pictures of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper

from ortcam.core.convention import Floats
from ortcam.errors import ExportError, ModelError
from ortcam.exporters.verify import TOLERANCE, Agreement, explain_randomness, make_pictures, relative_error
from ortcam.graph.layers import all_values
from ortcam.runtime.session import CPU, RUNTIME_ERRORS, create_session

if TYPE_CHECKING:
    from ortcam.exporters.sources import Converted

ROWS = 3  # pictures to try a freed graph with
ROUNDING = 0.05  # relative error of scores if rounding to 8 bits differs in some places
# Nodes that read a size: their result is the same for every picture.
_SIZES = {"Shape", "Size"}
# The index of the input that gives the shape of the node's result.
_SHAPE_PLACES = {"Reshape": 1, "Expand": 1, "Resize": 3}


# Tensors of a graph for one picture.
_Measured = dict[ir.Value | None, NDArray[Any]]


@dataclass(frozen=True)
class Trial:
    """Pictures and scores to check that a graph runs a batch correctly.

    Attributes:
        pictures: [3,...], in the form of the graph's input.
        expected: returns the source's scores [3,N] for them, one picture at a time if the source takes only one.
        decode: turns the graph's output into float scores.
        tolerance: the largest allowed relative error of the scores.
        folder: where external weights are.
    """

    pictures: NDArray[Any]
    expected: Callable[[], Floats]
    decode: Callable[[NDArray[Any]], Floats]
    tolerance: float
    folder: Path


def set_batch(model: ir.Model, image: ir.Value, shape: tuple[int, ...], batch: int | str) -> None:
    """Make the image the only input, with this batch, in place; drop the other shapes, which hold the old batch."""
    image.shape = ir.Shape([batch, *shape])
    model.graph.inputs[:] = [image]
    for value in all_values(model.graph):
        value.shape = None


def free_batch(model: ir.Model, trial: Trial) -> bool:
    """Free the batch of a graph that was written for one picture, in place; return whether the scores stay the same.

    Exporters write the batch of their example into shapes, and fold tensors that were expanded to it. The function
    first changes reshapes whose shapes begin with 1, then all reshapes whose shapes begin with a number.

    Args:
        model: the graph; its only input has a free batch, and its first output holds the scores.
        trial: pictures and their scores.
    """
    dependent = _from_image(model.graph)
    measured = _measure(model, dependent, trial)
    if measured is None:
        return False
    batch: list[ir.Value] = []
    expected = None
    for only_ones in (True, False):
        changed = _free_shapes(model, dependent, measured, only_ones, batch)
        if only_ones:
            _spread_constants(model, dependent, measured, batch)
        elif not changed:
            return False
        scores = _run(model, trial)
        if scores is None:
            continue
        expected = trial.expected() if expected is None else expected
        fits = len(scores) == len(expected) and scores.size == expected.size
        if fits and relative_error(scores.reshape(expected.shape), expected) <= trial.tolerance:
            return True
    return False


def _from_image(graph: ir.Graph) -> set[ir.Value]:
    """Return the tensors whose values depend on the picture, and not only on its size."""
    reached: set[ir.Value] = {graph.inputs[0]}
    for node in graph:
        if node.op_type not in _SIZES and any(value in reached for value in node.inputs):
            reached.update(node.outputs)
    return reached


def _measure(model: ir.Model, dependent: set[ir.Value], trial: Trial) -> _Measured | None:
    """Return, for one picture, the tensors around the nodes that may hold the batch; None if the graph does not run.

    These are the shapes for reshapes and similar nodes, their results, and the tensors that are joined or cut.
    """
    wanted: dict[ir.Value | None, None] = {}
    for node in model.graph:
        if node.op_type in (*_SHAPE_PLACES, "Concat", "Slice") and node.outputs[0] in dependent:
            around = [node.inputs[0]] if node.op_type == "Slice" else list(set(node.inputs) - dependent)
            wanted |= dict.fromkeys([*around, node.outputs[0]] if around else [])
    values = [value for value in wanted if value is not None and value.name and not value.is_graph_input()]
    constants = {value: ir.convenience.get_const_tensor(value) for value in values}
    found: _Measured = {value: tensor.numpy() for value, tensor in constants.items() if tensor is not None}
    run = [value for value in values if value not in found]
    proto = ir.to_proto(model)
    names = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in run if value.name not in names)
    try:
        session = create_session(proto, CPU, "the model", trial.folder, log_severity=4)
        feed = {model.graph.inputs[0].name: trial.pictures[:1]}
        results = session.run([value.name for value in run], feed) if run else []
    except RUNTIME_ERRORS + (ModelError,):  # noqa: RUF005 (mypy reads the sum, not the star)
        return None
    return found | dict(zip(run, results, strict=True))


def _free_shapes(
    model: ir.Model,
    dependent: set[ir.Value],
    measured: _Measured,
    only_ones: bool,
    batch: list[ir.Value],
) -> bool:
    """Make reshapes, resizes and cuts use the actual batch; return whether any of them held the batch as a number."""
    changed = False
    for node in list(model.graph):
        made = measured.get(node.outputs[0])
        if node.op_type == "Slice" and made is not None and node.inputs[0] is not None:
            read = measured.get(node.inputs[0])
            if read is not None and read.shape == made.shape:  # it cuts the only picture out
                ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
            continue
        place = _SHAPE_PLACES.get(node.op_type)
        if place is None or made is None or len(node.inputs) <= place or node.inputs[0] not in dependent:
            continue
        told = measured.get(node.inputs[place])
        if told is None or told.size != made.ndim or not told.size or told[0] < 1 or (only_ones and made.shape[0] != 1):
            continue
        rest = list(made.shape[1:])
        if node.op_type == "Reshape":
            node.attributes.pop("allowzero", None)  # without a 0 in the shape it says nothing
            free = _constant(model.graph, f"{node.outputs[0].name}.free_batch", [-1, *rest])
        elif told[0] == 1:
            free = _with_batch(model.graph, node, rest, batch)
        else:
            continue
        node.replace_input_with(place, free)
        changed = True
    return changed


def _spread_constants(model: ir.Model, dependent: set[ir.Value], measured: _Measured, batch: list[ir.Value]) -> None:
    """Repeat constants of a batch of 1, such as class tokens, where they are joined to pictures' tensors."""
    for node in list(model.graph):
        made = measured.get(node.outputs[0])
        if node.op_type != "Concat" or made is None or node.attributes["axis"].as_int() in (0, -made.ndim):
            continue
        for place, value in enumerate(node.inputs):
            constant = None if value is None or value in dependent else measured.get(value)
            if constant is not None and constant.shape[:1] == (1,):
                target = _with_batch(model.graph, node, [1] * (constant.ndim - 1), batch)
                spread = ir.node("Expand", [value, target])
                spread.outputs[0].name = f"{node.outputs[0].name}.spread.{place}"
                model.graph.insert_before(node, spread)
                node.replace_input_with(place, spread.outputs[0])


def _with_batch(graph: ir.Graph, before: ir.Node, rest: list[int], batch: list[ir.Value]) -> ir.Value:
    """Return the shape [batch, *rest]; the graph reads the batch from the image once."""
    if not batch:
        start, end = _constant(graph, "free_batch.start", [0]), _constant(graph, "free_batch.end", [1])
        shape = ir.node("Shape", [graph.inputs[0]])
        cut = ir.node("Slice", [shape.outputs[0], start, end])
        shape.outputs[0].name, cut.outputs[0].name = "free_batch.shape", "free_batch.batch"
        graph.insert_before(graph[0], [shape, cut])
        batch.append(cut.outputs[0])
    if not rest:
        return batch[0]
    name = f"{before.outputs[0].name}.free_batch.{sum(1 for _ in graph)}"
    joined = ir.node("Concat", [batch[0], _constant(graph, f"{name}.rest", rest)], {"axis": 0})
    joined.outputs[0].name = name
    graph.insert_before(before, joined)
    return joined.outputs[0]


def _constant(graph: ir.Graph, name: str, numbers: list[int]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.array(numbers, np.int64), name=name))
    graph.register_initializer(value)
    return value


def _run(model: ir.Model, trial: Trial) -> Floats | None:
    """Return the scores of all pictures, run as one batch; None if the graph does not run."""
    try:
        session = create_session(ir.to_proto(model), CPU, "the model", trial.folder, log_severity=4)
        (scores,) = session.run([model.graph.outputs[0].name], {model.graph.inputs[0].name: trial.pictures})
    except RUNTIME_ERRORS + (ModelError,):  # noqa: RUF005 (mypy reads the sum, not the star)
        return None
    return trial.decode(np.asarray(scores))


def settle_batch(proto: onnx.ModelProto, draft: Path, converted: Converted, agreement: Agreement) -> str | None:
    """Fix the batch of a written file to 1, in place, if its scores depend on the other pictures of a batch.

    Args:
        proto: the file; `draft` is its path.
        converted: the source.
        agreement: the result of its verification.

    Returns:
        A notice for the user; None if the scores of a picture do not depend on the others.

    Raises:
        ExportError: the scores are random, or do not depend on a picture that is alone in its batch.
    """
    if agreement.mixing <= _most_mixing({node.op_type for node in _nodes(proto.graph)}, converted.tolerance):
        return None
    difference = f"a picture's scores differ by {agreement.mixing:.1g} with the other pictures of its batch"
    session = create_session(proto, CPU, "the exported model", draft.resolve().parent, log_severity=4)
    pictures = make_pictures(converted, np.random.default_rng(2), ROWS)
    alone = [session.run(None, {"image": picture[None]})[0] for picture in (*pictures, pictures[0])]
    if relative_error(alone[-1], alone[0]) > TOLERANCE:
        raise ExportError(f"{converted.name} {explain_randomness(alone[-1], alone[0])}")
    if max(relative_error(scores, alone[0]) for scores in alone[1:]) < TOLERANCE:
        raise ExportError(
            f"{converted.name} compares the pictures of a batch: {difference}, and alone all pictures have the same "
            "scores; expected a model that scores each picture by itself"
        )
    for value in (*proto.graph.input, *proto.graph.output):
        for batch in value.type.tensor_type.shape.dim[:1]:  # no dimension if the shape is unknown
            batch.dim_value = 1
    return f"{difference}: masked images are run one at a time, each alone in its batch"


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield all nodes, including those of subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _most_mixing(operators: set[str], tolerance: float) -> float:
    """Return the largest allowed relative difference between a picture's scores alone and in a batch.

    Static quantization rounds at every layer, so the last bits of a float sometimes decide a whole step. Dynamic
    quantization measures the largest number of the batch, so its scores do depend on the other pictures.
    """
    if "DynamicQuantizeLinear" in operators:
        return TOLERANCE
    is_quantized = any(name == "QuantizeLinear" or name.startswith("QLinear") for name in operators)
    return max(tolerance, ROUNDING if is_quantized else TOLERANCE)


def leave_training(proto: onnx.ModelProto, name: str) -> str | None:
    """Switch off dropout that is in training mode, in place; return a notice for the user.

    Raises:
        ExportError: a BatchNormalization is in training mode. It normalises by the batch, and ONNX Runtime changes its
            statistics at every run.
    """
    weights = {weight.name: weight for weight in proto.graph.initializer}
    weights |= {node.output[0]: node.attribute[0].t for node in proto.graph.node if node.op_type == "Constant"}
    dropped, normalized = [], []
    for node in _nodes(proto.graph):
        if node.op_type == "Dropout" and node.input[2:]:
            if node.input[2] not in weights or numpy_helper.to_array(weights[node.input[2]]).any():
                dropped.append(node)
            del node.input[2:]
        elif node.op_type == "BatchNormalization" and (
            len(node.output) > 1 or any(entry.name == "training_mode" and entry.i for entry in node.attribute)
        ):
            normalized.append(node)
    if normalized:
        raise ExportError(
            f"{name} is in training mode: {len(normalized)} BatchNormalization normalise by the current batch "
            f"(first: {normalized[0].name or normalized[0].output[0]}); export the source again after model.eval(), "
            "with running statistics"
        )
    return f"{name} has {len(dropped)} Dropout in training mode, which are switched off" if dropped else None
