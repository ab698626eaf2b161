"""Write the tail of a model a second time into a graph that holds the model: features and masks -> scores.

The nodes of the tail get names of their own, and read the same weights. Nodes that do not follow from the features are
not written again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx

from ortcam.graph import names, scoring
from ortcam.graph.builder import Builder, Value
from ortcam.graph.standard import in_order
from ortcam.graph.wiring import Wiring
from ortcam.model.contract import Contract, Sequenced, Stage, output_name
from ortcam.model.protobuf import read_by, rename

_MOST_BYTES = 64 << 20  # of the features that are changed at once
_MOST_COPIES = 16  # of the tail's nodes; for more, they are in a Loop, where convolutions are slower
_SMALL = 64  # numbers of an initializer that a node's axes may be


@dataclass(frozen=True)
class Tail:
    """The tail of a model behind a layer, for one kind of change.

    Attributes:
        nodes: its nodes, in order. They read the inputs of a scoring graph (`ortcam.graph.names`), and weights and
            other constants of the model.
        inputs: the names of these inputs.
    """

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Changes:
    """The rows of a tail: changed features of one photo. Row m has the m-th mask.

    Attributes:
        features: float32 [1,K,h,w] or [1,h,w,K], the layer of the plain pass.
        others: float32 [1,O,D], the tokens that are no patches, if the layer is taken from a sequence; else None.
        bank: float32 [A,h,w], the masks; None for ablations.
        count: the number of rows.
        targets: int64 [T].
        scored: the names of the scores that are returned side by side (`ortcam.graph.names`).
        references: further inputs of a scoring graph that hold the targets, of a model of another task.
    """

    features: Value
    others: Value | None
    bank: Value | None
    count: int
    targets: Value
    scored: tuple[str, ...] = (names.TARGET_LOGITS,)
    references: Mapping[str, Value] = field(default_factory=dict)


def rows_at_once(shape: tuple[int, int, int], count: int) -> int:
    """Return the number of rows that are run at once, of `count` rows of features of (K, h, w)."""
    return max(1, min(count, _MOST_BYTES // (4 * prod(shape))))


def build_tail(
    proto: onnx.ModelProto,
    contract: Contract,
    wiring: Wiring,
    shape: tuple[int, int, int],
    stages: Sequence[Stage] = (),
    sequence: Sequenced | None = None,
) -> Tail:
    """Build the tail of a model.

    Args:
        proto: the parsed file; it stays as it is.
        contract: its contract.
        wiring: the kind of change, at a layer.
        shape: (K, h, w) of the layer.
        stages: the earlier stages that are outputs.
        sequence: the tokens that the target layer is taken from, if they are an output.

    Raises:
        LayerError: the model has no tail behind the layer.
    """
    model = proto.graph
    small = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    graph = small.graph
    graph.name = "tail"
    for part in ("node", "input", "output"):
        getattr(graph, part).extend(getattr(model, part))
    for one in model.initializer:
        if prod(one.dims) <= _SMALL:
            graph.initializer.append(one)
        else:
            graph.value_info.append(onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims))
    layout = contract.layouts(stages)[wiring.layer]
    layer = next(one for one in graph.output if one.name == output_name(wiring.layer))
    dims = shape if layout == "NCHW" else (*shape[1:], shape[0])
    for dim, size in zip(layer.type.tensor_type.shape.dim[1:], dims, strict=True):
        dim.dim_value = size
    own = {name for node in model.node for name in node.output} | {one.name for one in model.initializer}
    made = scoring.build_scoring_graph(small, contract, "logits", wiring, stages, sequence).graph
    inputs = tuple(one.name for one in made.input)
    following, kept = set(inputs), []
    for node in in_order(made.node):
        follows = not following.isdisjoint(read_by(node))
        if follows:
            following.update(node.output)
        if follows or own.isdisjoint(node.output):
            kept.append(node)
    return Tail(tuple(kept), inputs)


def write_tail(
    graph: Builder, tail: Tail, changes: Changes, at_once: int, fixed: bool, renamed: Mapping[str, str]
) -> Value:
    """Write a tail for all rows of changed features.

    Args:
        graph: the graph, which holds the nodes and weights of the model.
        tail: the tail.
        changes: the rows.
        at_once: the number of rows per copy of the tail, or per turn of a Loop.
        fixed: the model accepts only this number of rows.
        renamed: the names of the model's values in the graph, where they differ from the model file's.

    Returns:
        The scores, float32 [M,T], or [M,2T] of two kinds.
    """
    count = changes.count
    copies = -(-count // at_once)
    if copies > _MOST_COPIES:

        def turn(number: Value) -> list[Value]:
            rows = graph.arange(graph.constant([at_once])) + number * at_once
            return [_write_copy(graph, tail, changes, graph.minimum(rows, count - 1), renamed)]

        (scores,) = graph.loop(graph.constant(copies, np.int64), [], turn)
        scores = graph.reshape(scores, copies * at_once, graph.size(changes.targets, 0) * len(changes.scored))
        return graph.slice(scores, 0, count, 0)
    parts = []
    for begin in range(0, count, at_once):
        rows = np.arange(begin, begin + at_once if fixed else min(begin + at_once, count))
        parts.append(_write_copy(graph, tail, changes, graph.constant(np.minimum(rows, count - 1)), renamed))
    scores = parts[0] if len(parts) == 1 else graph.concat(parts, 0)
    return graph.slice(scores, 0, count, 0) if fixed else scores


def _write_copy(graph: Builder, tail: Tail, changes: Changes, rows: Value, renamed: Mapping[str, str]) -> Value:
    """Write the nodes of a tail for int64 [B] rows: scores [B,T]."""
    prefix = graph.unused("tail") + "."
    feeds = {
        names.PHOTOS: changes.features,
        names.PHOTO_INDEX: graph.constant([0]),
        names.NUMBERS: rows,
        names.AFFINE: graph.constant(np.array([0, 1, 0], np.float32).reshape(1, 3, 1, 1)),
        names.TARGETS: graph.op(
            "Expand",
            graph.expand_dims(changes.targets, 0),
            graph.shape(graph.size(rows, 0), graph.size(changes.targets, 0)),
        ),
    }
    given = {names.BANK: changes.bank, names.OTHER_TOKENS: changes.others}
    feeds |= {name: value for name, value in given.items() if value is not None} | dict(changes.references)
    nodes = leading_to(set(changes.scored), tail.nodes)
    written = {name for node in nodes for name in node.output} | set(tail.inputs)
    for name in tail.inputs:
        graph.named(feeds[name], prefix + name)
    body = onnx.GraphProto()
    body.node.extend(nodes)
    for node in body.node:
        node.name = prefix + node.name if node.name else ""
    rename(body, {**renamed, **{name: prefix + name for name in written if name}})
    graph.embed(body.node, (), ())
    made = [graph.refer(prefix + name, np.float32) for name in changes.scored]
    return made[0] if len(made) == 1 else graph.concat(made, 1)


def leading_to(needed: set[str], nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return the nodes, in order, that values are computed from; `needed` grows."""
    kept = []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed.update(read_by(node))
            kept.append(node)
    return kept[::-1]
