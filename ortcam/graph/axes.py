"""Find which axes of a graph's tensors are rows, columns or channels, by following them from the image.

Networks cut maps into windows, put windows or heads into the batch, and turn rows into tokens. They do all of this with
Reshape and Transpose, which only regroup axes. An axis is therefore written as parts of the image's rows, of its
columns and of channels. This shows axes that are not whole rows or columns, or that mix them. Axes that cannot be
followed are unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from ortcam.graph.maps import CHANNELS_FIRST, ELEMENTWISE, constant_ints, variable_inputs
from ortcam.model.contract import Layout

Kind = Literal["rows", "columns", "channels", "unknown"]
# Operators that mix or scale values along an axis, and keep the meaning of every axis.
_KEEPING = {
    "BatchNormalization", "Hardmax", "InstanceNormalization", "LayerNormalization", "LogSoftmax", "LpNormalization",
    "RMSNormalization", "SimplifiedLayerNormalization", "Softmax",
}  # fmt: skip
_REGROUPING = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}
_REORDERING = _REGROUPING | {"Transpose", "Identity"}


@dataclass(frozen=True)
class Part:
    """A part of an axis: `size` steps of `stride` along the `whole` rows, columns or channels."""

    kind: Kind
    size: int
    stride: int
    whole: int

    @classmethod
    def full(cls, kind: Kind, size: int) -> tuple[Part, ...]:
        """Return an axis of all rows, columns or channels; an axis of size 1 has no parts."""
        return (cls(kind, size, 1, size),) if size > 1 else ()


Axis = tuple[Part, ...]  # major parts first
Axes = tuple[Axis, ...]  # of a tensor; the batch counts as 1, so its axis has no parts


def may_be(axis: Axis, kind: Kind) -> bool:
    """Return whether an axis can be the rows, columns or channels of a map; unknown axes and axes of size 1 can.

    Every n-th row, as after merging patches, is a row of a coarser map; the rows between are channels of that map.
    Channels between rows are rows of a finer map.
    """
    if not axis or any(part.kind == "unknown" for part in axis):
        return True
    if kind == "channels":
        return all(part.kind == "channels" or part.size * part.stride < part.whole for part in axis)
    first, *others = axis
    spans = first.size * first.stride == first.whole
    return first.kind == kind and spans and all(part.kind == "channels" for part in others)


def is_known(axis: Axis, kind: Kind) -> bool:
    """Return whether an axis is known to be the rows, columns or channels of a map."""
    return may_be(axis, kind) and bool(axis) and all(part.kind != "unknown" for part in axis)


def size_of(axis: Axis) -> int:
    return math.prod(part.size for part in axis)


def possible_layouts(axes: Axes) -> list[Layout]:
    """Return the possible layouts of a 4-D tensor with these axes; none if it is not a map."""
    kinds: dict[Layout, tuple[Kind, Kind, Kind]] = {
        "NCHW": ("channels", "rows", "columns"),
        "NHWC": ("rows", "columns", "channels"),
    }
    fits = {layout: all(map(may_be, axes[1:], order)) for layout, order in kinds.items()}
    return [layout for layout in kinds if axes[0] == () and fits[layout]]


def grid_of(axes: Axes) -> tuple[int, int] | None:
    """Return (rows, columns) of a sequence [batch,T,D] whose tokens are the places of a map in rows; else None."""
    batch, places, channels = axes
    if batch != () or len(places) != 2 or not may_be(channels, "channels"):
        return None
    rows, columns = places
    return (rows.size, columns.size) if is_known((rows,), "rows") and is_known((columns,), "columns") else None


def is_map(axes: Axes) -> bool:
    """Return whether a tensor is known to be a map, or a sequence of its places."""
    if len(axes) == 3:
        return grid_of(axes) is not None
    unknown = any(part.kind == "unknown" for axis in axes for part in axis)
    return len(axes) == 4 and not unknown and len(possible_layouts(axes)) == 1


def may_be_sequence(axes: Axes) -> bool:
    """Return whether a tensor [batch,T,D] may be a sequence of places, as far as its axes are known."""
    unknown = any(part.kind == "unknown" for part in axes[1])
    return axes[0] == () and may_be(axes[2], "channels") and (unknown or grid_of(axes) is not None)


def restores_map(value: ir.Value, known: Mapping[ir.Value, Axes]) -> bool:
    """Return whether a tensor first restores a map, from windows or the like: no tensor that it reorders was a map."""
    node = value.producer()
    if node is None or node.op_type not in _REORDERING or not is_map(known.get(value, ())):
        return False
    while node is not None and node.op_type in _REORDERING:
        before = node.inputs[0]
        if before is None or is_map(known.get(before, ())):
            return False
        node = before.producer()
    return node is not None


def find_axes(graph: ir.Graph, image_layout: Layout) -> dict[ir.Value, Axes]:
    """Return the axes of a graph's tensors, where they can be followed from the image.

    Args:
        graph: its first input is the image; shapes are complete where they can be.
        image_layout: the order of the image's dimensions.
    """
    image = graph.inputs[0]
    sizes = [dim if isinstance(dim, int) else 0 for dim in image.shape or ()]
    if len(sizes) != 4 or 0 in sizes[1:]:
        return {}
    kinds: tuple[Kind, ...] = (
        ("channels", "rows", "columns") if image_layout == "NCHW" else ("rows", "columns", "channels")
    )
    batch = None if image.shape is None else image.shape[0]
    found: dict[ir.Value, Axes] = {
        image: ((), *(Part.full(kind, size) for kind, size in zip(kinds, sizes[1:], strict=True)))
    }
    for node in graph:
        if any(value in found for value in node.inputs if value is not None):
            for output in node.outputs:
                dims = [1 if dim == batch else dim for dim in output.shape or ()]
                axes = _follow(node, [dim if isinstance(dim, int) else None for dim in dims], found)
                if (
                    axes is not None
                    and len(axes) == len(dims)
                    and (output is node.outputs[0] or node.op_type == "Split")
                ):
                    found[output] = axes
    return found


# The dimensions of a node's result for one image; None for an unknown dimension.
_Sizes = list[int | None]


def _follow(node: ir.Node, sizes: _Sizes, found: Mapping[ir.Value, Axes]) -> Axes | None:
    """Return the axes of a node's result; None if they are unknown."""
    first = node.inputs[0]
    given = None if first is None else found.get(first)
    if node.op_type in ELEMENTWISE or node.op_type in ("Expand", "Concat"):
        return _combine(node, sizes, found)
    if node.op_type in ("MatMul", "MatMulInteger"):
        return _multiply(node, sizes, found)
    if given is None:
        return None
    rule = _RULES.get(node.op_type)
    if rule is not None:
        return rule(node, sizes, given)
    return given if node.op_type in _KEEPING else None


def _filled(sizes: _Sizes, total: int) -> list[int] | None:
    """Fill in at most one unknown dimension from the count of numbers; return None if it cannot be filled in."""
    known = math.prod(size for size in sizes if size is not None)
    if sizes.count(None) > 1 or not known or total % known or (None not in sizes and total != known):
        return None
    return [total // known if size is None else size for size in sizes]


def _regroup(node: ir.Node, sizes: _Sizes, given: Axes) -> Axes | None:
    """Follow operators that keep the order of all numbers."""
    filled = _filled(sizes, math.prod(map(size_of, given)))
    if filled is None:
        return None
    waiting = _joined([part for axis in given for part in axis])
    axes = []
    for size in filled:
        axis: list[Part] = []
        missing = size
        while missing > 1:
            if not waiting:
                return None
            part = waiting.pop(0)
            if part.size > missing:
                if part.size % missing:
                    return None
                rest = part.size // missing
                waiting.insert(0, replace(part, size=rest))
                part = replace(part, size=missing, stride=part.stride * rest)
            elif missing % part.size:
                return None
            missing //= part.size
            axis.append(part)
        axes.append(tuple(_joined(axis)))
    return tuple(axes)


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Join parts that also follow each other in the image."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last and (last.kind, last.whole, last.stride) == (part.kind, part.whole, part.size * part.stride):
            joined[-1] = replace(part, size=last.size * part.size)
        else:
            joined.append(part)
    return joined


def _permute(node: ir.Node, sizes: _Sizes, given: Axes) -> Axes | None:
    perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(len(given))[::-1]
    return tuple(given[axis] for axis in perm)


def _convolve(node: ir.Node, sizes: _Sizes, given: Axes) -> Axes | None:
    """Follow operators on [batch,channels,...]: rows and columns become other rows and columns."""
    known = [size for size in sizes[1:] if size is not None]
    if len(known) != len(given) - 1:
        return None
    axes = [given[0], Part.full("channels", known[0])]
    axes += [_resampled(axis, size) for axis, size in zip(given[2:], known[1:], strict=True)]
    return tuple(axes)


def _resampled(axis: Axis, size: int) -> Axis:
    """Return an axis after resampling: another size over the same range."""
    kind = axis[0].kind if axis else "unknown"
    if is_known(axis, kind):
        return Part.full(kind, size)
    return axis if size_of(axis) == size else Part.full("unknown", size)


def _resize(node: ir.Node, sizes: _Sizes, given: Axes) -> Axes | None:
    """Follow operators that change the size of axes: resampled and padded rows stay rows, cut rows may not."""
    known = [size for size in sizes if size is not None]
    if len(known) != len(given):
        return None
    if node.op_type in ("Resize", "Pad"):
        return (given[0], *(_resampled(axis, size) for axis, size in zip(given[1:], known[1:], strict=True)))
    axes = []
    for axis, size in zip(given, known, strict=True):
        kind: Kind = "channels" if is_known(axis, "channels") else "unknown"
        axes.append(axis if size == size_of(axis) else Part.full(kind, size))
    return tuple(axes)


def _cut(node: ir.Node, sizes: _Sizes, given: Axes) -> Axes | None:
    steps = constant_ints(node.inputs[4]) if len(node.inputs) > 4 else [1]
    return _resize(node, sizes, given) if steps is not None and set(steps) == {1} else None


def _gather(node: ir.Node, sizes: _Sizes, given: Axes) -> Axes | None:
    axis = node.attributes["axis"].as_int() % len(given) if "axis" in node.attributes else 0
    indices = node.inputs[1]
    if indices is None or indices.shape is None or len(indices.shape) != 0:
        return None
    return given[:axis] + given[axis + 1 :]


def _reduce(node: ir.Node, sizes: _Sizes, given: Axes) -> Axes | None:
    attribute = node.attributes.get("axes")
    listed = (
        attribute.as_ints() if attribute is not None else constant_ints(node.inputs[1]) if node.inputs[1:] else None
    )
    if listed is None:
        return None
    reduced = {axis % len(given) for axis in listed}
    if "keepdims" in node.attributes and node.attributes["keepdims"].as_int() == 0:
        return tuple(axis for place, axis in enumerate(given) if place not in reduced)
    return tuple(() if place in reduced else axis for place, axis in enumerate(given))


def _combine(node: ir.Node, sizes: _Sizes, found: Mapping[ir.Value, Axes]) -> Axes | None:
    """Follow concatenation, and operators that combine tensors place by place with broadcasting."""
    given = [found[value] for value in variable_inputs(node) if value in found]
    rank = len(sizes)
    if not given or any(len(axes) > rank for axes in given):
        return None
    joined = node.attributes["axis"].as_int() % rank if node.op_type == "Concat" else None
    combined = []
    for place in range(rank):
        choices = [axes[place - rank] for axes in given if rank - place <= len(axes)]
        if place == joined:
            size = sizes[place]
            if size is None:
                return None
            channels = all(is_known(axis, "channels") for axis in choices) and len(given) == len(node.inputs)
            combined.append(Part.full("channels" if channels else "unknown", size))
            continue
        known = {axis for axis in choices if axis and all(part.kind != "unknown" for part in axis)}
        agreed = next(iter(known)) if len(known) == 1 else None
        combined.append(agreed if agreed is not None else _unknown(choices))
    return tuple(combined)


def _settled(axis: Axis) -> Axis:
    """Return the rows of a coarser map as rows of a map, after the rows between them were mixed."""
    if len(axis) == 1 and is_known(axis, axis[0].kind):
        return Part.full(axis[0].kind, axis[0].size)
    return axis


def _unknown(choices: Sequence[Axis]) -> Axis:
    return Part.full("unknown", max((size_of(axis) for axis in choices), default=1))


def _multiply(node: ir.Node, sizes: _Sizes, found: Mapping[ir.Value, Axes]) -> Axes | None:
    """Follow a matrix product [...,m,k] x [...,k,n]: with a weight, it makes new channels or mixes all places."""
    given, other = (None if value is None else found.get(value) for value in node.inputs[:2])
    if len(variable_inputs(node)) > 1:
        if given is None or other is None or len(other) != len(given):
            return None
        return (*given[:-1], other[-1])
    if given is not None and sizes[-1] is not None:
        kind: Kind = "channels" if is_known(given[-1], "channels") else "unknown"
        return (*map(_settled, given[:-1]), Part.full(kind, sizes[-1]))
    if other is not None and len(sizes) == len(other) > 1 and sizes[-2] is not None:
        return (*other[:-2], Part.full("unknown", sizes[-2]), other[-1])
    return None


_Rule = Callable[[ir.Node, _Sizes, Axes], Axes | None]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_REGROUPING, _regroup),
    **dict.fromkeys(CHANNELS_FIRST - _KEEPING, _convolve),
    **dict.fromkeys(("Resize", "Pad", "Split"), _resize),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd"), _reduce),
    "Transpose": _permute,
    "Slice": _cut,
    "Gather": _gather,
}
