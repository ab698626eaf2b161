"""Find the target layer of a model of another task: the last map of its backbone at a coarse grid.

All paths of a detector or segmenter meet at no layer, or at a fine one behind the pyramid. The layer is therefore the
last tensor at the coarsest grid of at least 7 x 7 before upsampling, the pyramid and the heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ortcam.graph.axes import find_axes, is_map, possible_layouts
from ortcam.graph.layers import Candidate, FeatureMap, Reading, dims, find_candidates, module_outputs, weights_follow
from ortcam.graph.maps import find_layout

LEAST_GRID = 7
# Operators whose result is not finished: a normalisation or an activation function follows.
_UNFINISHED = {"Conv", "BatchNormalization", "ConvInteger", "InstanceNormalization", "GroupNormalization"}
# Operators that only move, thin out or relabel a map: the map before them is the layer.
_PASSIVE = {
    "AveragePool", "Cast", "Dropout", "Identity", "MaxPool", "Pad", "QuantizeLinear", "Reshape", "Slice", "Squeeze",
    "Transpose", "Unsqueeze",
}  # fmt: skip
_ACTIVATIONS = {"Clip", "HardSigmoid", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Softplus"}
_SIZE_ONLY = {"Shape", "Size", "ConstantOfShape"}


@dataclass(frozen=True)
class _Map:
    """A tensor as a map: its layout and its grid."""

    feature_map: FeatureMap
    grid: tuple[int, int]


def find_task_layers(model: ir.Model, reading: Reading, layers: Mapping[str, ir.Value] | None) -> list[Candidate]:
    """Return the candidates for the target layer, best first; an empty list without candidates.

    Grids of at least 7 x 7 come first, the coarsest of them first; then smaller grids, the finest first. At a grid, the
    last tensor comes first that all paths through this part of the backbone share.

    Of a vector, such as an embedding, the candidates of a classifier come first, if their grids are large enough: all
    paths meet in them, also behind a pyramid.

    Args:
        model: the graph; its first input is the image, its outputs are those of the task.
        reading: how to read the graph.
        layers: the source framework's layers; None for the modules that torch's exporter recorded.
    """
    first: list[Candidate] = []
    if len(dims(model.graph.outputs[0])) == 1:
        first = [one for one in find_candidates(model, reading, layers) if _is_large(one.shape[1:])]
    return first or _find_in_backbone(model, reading, layers) or find_candidates(model, reading, layers)


def _is_large(grid: Sequence[int | None]) -> bool:
    """Return whether rows and columns are known, and at least 7."""
    return all(side is not None and side >= LEAST_GRID for side in grid)


def _find_in_backbone(model: ir.Model, reading: Reading, layers: Mapping[str, ir.Value] | None) -> list[Candidate]:
    path = _path(model.graph)
    maps = _find_maps(model.graph, path, reading)
    trunk = _trunk(model.graph, path, maps)
    grids = sorted({found.grid for value, found in maps.items() if value in trunk}, key=lambda grid: grid[0] * grid[1])
    coarse = [grid for grid in grids if _is_large(grid)]
    named = module_outputs(model.graph) if layers is None else layers
    modules = {named[name]: name for name in reversed(list(named))}
    found = []
    for grid in [*coarse, *reversed([grid for grid in grids if grid not in coarse and max(grid) > 1])]:
        region = {value for value in trunk if value in maps and maps[value].grid == grid}
        for value in reversed(_shared(path, _last_block(path, maps, region))):
            producer = value.producer()
            if producer is None or producer.op_type in _UNFINISHED | _PASSIVE or _is_gated(value):
                continue
            reason = f"the last map of {grid[0]} x {grid[1]} before upsampling and heads, after {producer.op_type}"
            candidate = Candidate(maps[value].feature_map, modules.get(value), producer.op_type, reason)
            found.append((weights_follow(value, path), candidate))
    found.sort(key=lambda pair: not pair[0])
    return [candidate for _, candidate in found]


def _is_gated(value: ir.Value) -> bool:
    """Return whether a tensor only feeds its own activation function, such as x * sigmoid(x)."""
    kinds = {use.node.op_type for use in value.uses()}
    return bool(kinds & _ACTIVATIONS) and kinds <= {"Mul", *_ACTIVATIONS}


def _path(graph: ir.Graph) -> dict[ir.Node, None]:
    """Return, in order, the nodes that carry information from the image to an output."""
    reached: set[ir.Value | None] = {graph.inputs[0]}
    forward = []
    for node in graph:
        if node.op_type not in _SIZE_ONLY and any(value in reached for value in node.inputs if value is not None):
            reached.update(node.outputs)
            forward.append(node)
    needed: set[ir.Value | None] = set(graph.outputs)
    kept = []
    for node in reversed(forward):
        if any(value in needed for value in node.outputs):
            needed.update(node.inputs)
            kept.append(node)
    return dict.fromkeys(reversed(kept))


def _find_maps(graph: ir.Graph, path: dict[ir.Node, None], reading: Reading) -> dict[ir.Value, _Map]:
    """Return the tensors on the path that are maps with more than one place and a known size."""
    axes = find_axes(graph, reading.image_layout)
    maps = {}
    for node in path:
        for value in node.outputs:
            sides = dims(value)
            if len(sides) != 3 or None in sides:
                continue
            known = axes.get(value, ())
            if is_map(known):
                (layout,) = possible_layouts(known)
            elif known and not possible_layouts(known):
                continue
            else:
                read = find_layout(value, graph.inputs[0], reading.image_layout)
                if read is None:
                    continue
                layout = read
            found = FeatureMap(value, layout)
            _, rows, columns = found.shape
            if rows is not None and columns is not None and rows * columns > 1:
                maps[value] = _Map(found, (rows, columns))
    return maps


def _trunk(graph: ir.Graph, path: dict[ir.Node, None], maps: Mapping[ir.Value, _Map]) -> set[ir.Value]:
    """Return the tensors before any upsampling: none that they are computed from has a coarser grid.

    A block that shrinks and upsamples its own input, and adds it to the result, is closed: its sum counts as before any
    upsampling (the residual U-blocks of Qin et al. 2020, U2-Net).
    """
    coarsest: dict[ir.Value, tuple[int, int] | None] = {graph.inputs[0]: None}
    dominators = _Dominators(graph.inputs[0])
    trunk: set[ir.Value] = set()
    raised: set[ir.Value] = set()  # behind an upsampling
    for node in path:
        given = [value for value in node.inputs if value is not None and value in coarsest]
        dominators.add(node, given)
        if node.op_type == "Add" and len(given) == 2:
            opened = next((one for one in given if one not in raised and one in maps), None)
            closed = next((one for one in given if one in raised and one in maps), None)
            if opened is not None and closed is not None and dominators.holds(opened, closed):
                given = [opened]
        grids = [grid for value in given if (grid := coarsest[value]) is not None]
        low = (min(rows for rows, _ in grids), min(columns for _, columns in grids)) if grids else None
        for value in node.outputs:
            own = maps[value].grid if value in maps else None
            up = own is not None and low is not None and (own[0] > low[0] or own[1] > low[1])
            if up or any(one in raised for one in given):
                raised.add(value)
            elif own is not None:
                trunk.add(value)
            coarsest[value] = own if own is not None and not up else low
    return trunk


class _Dominators:
    """The tensors that all paths from the image to a tensor run through, for nodes added in order."""

    def __init__(self, image: ir.Value) -> None:
        self._parent: dict[ir.Value, ir.Value] = {}
        self._depth = {image: 0}

    def add(self, node: ir.Node, given: list[ir.Value]) -> None:
        """Add the outputs of a node that is computed from the given tensors."""
        common = given[0]
        for value in given[1:]:
            common = self._meet(common, value)
        for output in node.outputs:
            self._parent[output], self._depth[output] = common, self._depth[common] + 1

    def holds(self, first: ir.Value, later: ir.Value) -> bool:
        """Return whether all paths to the later tensor run through the first."""
        return self._meet(first, later) is first

    def _meet(self, a: ir.Value, b: ir.Value) -> ir.Value:
        while a is not b:
            if self._depth[a] < self._depth[b]:
                a, b = b, a
            a = self._parent[a]
        return a


def _last_block(path: dict[ir.Node, None], maps: Mapping[ir.Value, _Map], region: set[ir.Value]) -> set[ir.Value]:
    """Return the last of the region's blocks: tensors that are computed from each other without another grid."""
    block: dict[ir.Value, ir.Value] = {}  # a tensor's first one

    def root(value: ir.Value) -> ir.Value:
        while block[value] is not value:
            value = block[value]
        return value

    behind: dict[ir.Value, set[ir.Value]] = {}  # the region's nearest tensors before one that is no map
    last: ir.Value | None = None
    for node in path:
        near: set[ir.Value] = set()
        for value in node.inputs:
            if value is not None:
                near |= {value} if value in region else behind.get(value, set()) if value not in maps else set()
        for value in node.outputs:
            if value in region:
                block[value] = value
                for one in near:
                    block[root(one)] = value
                last = value
            elif value not in maps:
                behind[value] = near
    return {value for value in region if last is not None and root(value) is root(last)}


def _shared(path: dict[ir.Node, None], region: set[ir.Value]) -> list[ir.Value]:
    """Return, in order, the tensors of a region that every path out of the region runs through.

    Nodes between two tensors of the region, such as the gate of a squeeze-excite block, belong to it.
    """
    before: set[ir.Value | None] = set(region)
    for node in reversed(path):
        if any(value in before for value in node.outputs):
            before.update(node.inputs)
    after: set[ir.Value | None] = set()
    inner = []
    for node in path:
        own = any(value in region for value in node.outputs)
        behind = any(value in after for value in node.inputs if value is not None)
        if own or (behind and any(value in before for value in node.outputs)):
            inner.append(node)
            after.update(value for value in node.outputs if value in region or behind)
    members, open_uses, shared = set(inner), dict[ir.Value, set[ir.Node | None]](), list[ir.Value]()
    entering = sum(_moves(value, path) and value not in after for node in inner for value in set(node.inputs))
    for node in inner:
        for value in set(node.inputs):
            if value in open_uses:
                open_uses[value].discard(node)
                if not open_uses[value]:
                    del open_uses[value]
            elif _moves(value, path) and value not in after:
                entering -= 1
        for value in node.outputs:
            users = {use.node if use.node in members else None for use in value.uses() if use.node in path}
            if users or value.is_graph_output():
                open_uses[value] = {*users, None} if value.is_graph_output() else users
        if not entering and len(open_uses) == 1:
            (alone,) = open_uses
            if alone in node.outputs and alone in region:
                shared.append(alone)
    return shared


def _moves(value: ir.Value | None, path: dict[ir.Node, None]) -> bool:
    """Return whether a tensor carries information from the image."""
    return value is not None and (value.producer() in path or value.is_graph_input())
